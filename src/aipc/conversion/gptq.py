"""4-bit codes chosen by what the model computes with them on a text: GPTQ's error feedback.

The columns of a matrix are rounded one after the other, and what one loses the later ones make up for as far
as the inputs of the matrix allow. With e the error of a row, and H = x^T x over the inputs x of all tokens,
the error of the outputs is e H e^T; with H = V V^T, V upper triangular, it is the sum over the columns i of

    (V_ii e_i + sum of V_ji e_j over the columns j before i)^2

so column i is rounded where that sum is smallest, at w_i + sum of V_ji / V_ii e_j. Columns with the largest
inputs come first, as long as others can make up for them. Scales and zero points stay those of scale_search.

Source: Frantar et al., GPTQ (2022), with its "activation order" and fixed groups; the form without an inverse
is that of Chee et al., QuIP (2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.quantize import Packed, Scheme, dequantize, quantize
from aipc.conversion.recipe import Recipe
from aipc.conversion.scale_search import quantize_least_squares
from aipc.conversion.streamed import StreamedWeights
from aipc.phi3 import Phi3Config, WeightSpec

# Numbers of a matrix that are rounded at once: the more rows, the less each step of Python costs.
_BLOCK_ELEMENTS = 2**24
# Columns that see the errors of earlier blocks of columns in one product.
_COLUMNS = 64

# Columns of the Gram matrix that are factorised at once.
_FACTOR_COLUMNS = 256

# What is added to the diagonal of H, in shares of its mean. Few tokens say little of most directions of the
# inputs: with 0.6 tokens a column the best share on the demo model was 0.2, with 10 or more 0.05 and less.
_DAMPING = 0.01
_DAMPING_OF_FEW_TOKENS = 0.2

Store = Callable[[WeightSpec, int, Packed], None]


class CalibratedWeights(StreamedWeights):
    """Weights as they will be stored, of which the 4-bit matrices are quantised when their inputs come.

    So every matrix sees what the quantised layers before it make of the text, and is made to mend that.

    store    takes the rows of each 4-bit matrix that start at an even number
    memory   beside the inputs: H of the widest matrix, and a few blocks of 2^24 numbers
    """

    def __init__(self, checkpoint: Checkpoint, config: Phi3Config, recipe: Recipe, store: Store) -> None:
        super().__init__(checkpoint)
        self._specs = {spec.name: spec for spec in config.weights()}
        self._recipe = recipe
        self._store = store

    def read(self, name: str, rows: slice) -> np.ndarray:
        """See `StreamedWeights.read`: of a matrix that needs no calibration."""
        weight = super().read(name, rows)
        return dequantize(quantize(weight, self._recipe.scheme_for(self._specs[name])))

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """See `Weights.product`; a 4-bit matrix is quantised for these inputs, and stored."""
        spec = self._specs[name]
        scheme = self._recipe.scheme_for(spec)
        if scheme is None or not self._recipe.is_4_bit(spec):
            return super().product(name, x)
        feedback = feedback_of(x)
        rows, columns = spec.shape
        step = max(2, _BLOCK_ELEMENTS // columns // 2 * 2)
        product = np.empty((len(x), rows), np.float32)
        for start in range(0, rows, step):
            block = slice(start, min(start + step, rows))
            packed = quantize_with_feedback(self._checkpoint.read(name, block), scheme, feedback)
            self._store(spec, start, packed)
            product[:, block] = x @ dequantize(packed).T
        return product


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the columns of a matrix make up for each other.

    order     [in] the columns; the last of them is rounded first
    weights   [in, in] float32; below the diagonal, column i is what column order[i] takes of each error
              before it
    """

    order: np.ndarray
    weights: np.ndarray


def feedback_of(x: np.ndarray) -> Feedback:
    """The feedback that suits the inputs of a matrix.

    x        [tokens, in] float32
    """
    tokens, columns = x.shape
    order = np.argsort(np.einsum("tc,tc->c", x, x), kind="stable")
    x = x[:, order]
    damping = _DAMPING + _DAMPING_OF_FEW_TOKENS * columns / tokens
    while True:
        gram = x.T @ x
        gram.reshape(-1)[:: columns + 1] += damping * (float(np.mean(np.diag(gram))) or 1.0)
        try:
            factorise(gram)
            break
        except np.linalg.LinAlgError:  # too little for float32
            damping *= 10
    # Lower triangular: in the order of rounding, which is the reverse, it is the upper one.
    gram /= np.diag(gram).copy()
    return Feedback(order, gram)


def factorise(matrix: np.ndarray) -> None:
    """Put the Cholesky factor in place of the lower triangle; the upper one is left as it comes.

    As np.linalg.cholesky, which takes seven times the memory: it computes in float64.

    matrix   [n, n] float32, symmetric
    raises   LinAlgError if it is not positive definite
    """
    for start in range(0, len(matrix), _FACTOR_COLUMNS):
        stop = start + _FACTOR_COLUMNS
        corner = np.linalg.cholesky(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = corner
        below = matrix[stop:, start:stop]
        below[:] = below @ np.linalg.inv(corner).T
        for later in range(stop, len(matrix), _FACTOR_COLUMNS):
            rest = below[later - stop :]
            matrix[later:, later : later + _FACTOR_COLUMNS] -= rest @ rest[:_FACTOR_COLUMNS].T


def quantize_with_feedback(weight: np.ndarray, scheme: Scheme, feedback: Feedback) -> Packed:
    """Quantise rows of a matrix to 4 bits, with the scales of `quantize_least_squares`.

    weight   [rows, in] float32
    raises   as `quantize`
    """
    searched = quantize_least_squares(weight, scheme)
    assert searched.scale is not None  # noqa: S101 - a 4-bit scheme has scales
    scale = searched.scale.T.astype(np.float32)
    zero = np.zeros_like(scale) if searched.zero_point is None else searched.zero_point.T.astype(np.float32)
    inputs = weight.shape[1]
    groups = feedback.order // (inputs // scheme.groups(inputs))
    # By column: first what is to be rounded, then what was lost.
    errors = weight.T[feedback.order]
    codes = np.empty(errors.shape, searched.codes.dtype)
    for stop in range(inputs, 0, -_COLUMNS):
        start = max(0, stop - _COLUMNS)
        targets = feedback.weights[stop:, start:stop].T @ errors[stop:]
        targets += errors[start:stop]
        for column in range(stop - 1, start - 1, -1):
            group = groups[column]
            steps = targets[column - start]
            steps += feedback.weights[column + 1 : stop, column] @ errors[column + 1 : stop]
            steps /= scale[group]
            steps += zero[group]
            np.rint(steps, out=steps)
            np.clip(steps, *scheme.code_range, out=steps)
            codes[column] = steps
            steps -= zero[group]
            steps *= scale[group]
            errors[column] -= steps
    chosen = np.empty_like(searched.codes)
    chosen[:, feedback.order] = codes.T
    return Packed(chosen, searched.scale, searched.zero_point, scheme)
