"""4-bit codes chosen by what the model computes with them on tokens: GPTQ's error feedback.

The columns of a matrix are rounded one after the other, and what one loses the later ones make up for as far
as the inputs of the matrix allow. With e the error of a row, and H = x^T x over the inputs x of all tokens,
the error of the outputs is e H e^T; with H = V V^T, V upper triangular, it is the sum over the columns i of

    (V_ii e_i + sum of V_ji e_j over the columns j before i)^2

so column i is rounded where that sum is smallest, at w_i + sum of V_ji / V_ii e_j. Columns with the largest
inputs come first, as long as others can make up for them. Scales and zero points stay those of scale_search.

Nearly all of the time goes into products of matrices, which are cut so that few of them are thin: the factor
of H is made a panel of columns at a time, straight from the inputs, and the feedback halves the columns again
and again, so that the first half of a matrix gives the second what it owes in a single product.

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
from aipc.conversion.threads import in_threads
from aipc.errors import CheckpointError, SchemeError
from aipc.phi3 import Phi3Config, WeightSpec

# Numbers of a matrix that a thread rounds at once: the more rows, the less each step of Python costs.
_BLOCK_ELEMENTS = 2**23
# While one thread is between two products, the other one has its own.
_THREADS = 2
# Columns that are rounded one by one, before the errors of all of them go to the others in one product.
_COLUMNS = 64

# Columns of the factor that are made at once.
_PANEL = 256
# Rows that are transposed at once: few enough for the cache, and for what it knows of addresses.
_TRANSPOSED_ROWS = 64

# What is added to the diagonal of H, in shares of its mean. Few tokens say little of most directions of the
# inputs: with 0.6 tokens a column the best share on the demo model was 0.2, with 10 or more 0.05 and less.
_DAMPING = 0.01
_DAMPING_OF_FEW_TOKENS = 0.2

Store = Callable[[WeightSpec, int, Packed], None]
Stored = Callable[[WeightSpec, slice], None]


class CalibratedWeights(StreamedWeights):
    """Weights as they will be stored, of which the 4-bit matrices are quantised when their inputs come.

    So every matrix sees what the quantised layers before it make of the tokens, and is made to mend that.

    store    takes the rows of each 4-bit matrix that start at an even number, from several threads
    stored   is told of them, from the thread that runs the decoder
    columns  of a matrix, neighbours, that make up for each other; None for all
    memory   beside the inputs: the factor of the widest matrix, and a few blocks of 2^23 numbers a thread
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Phi3Config,
        recipe: Recipe,
        store: Store,
        stored: Stored,
        *,
        columns: int | None = None,
    ) -> None:
        super().__init__(checkpoint)
        self._specs = {spec.name: spec for spec in config.weights()}
        self._recipe = recipe
        self._columns = columns
        self._store = store
        self._stored = stored

    def read(self, name: str, rows: slice) -> np.ndarray:
        """See `StreamedWeights.read`: of a matrix that needs no calibration."""
        weight = super().read(name, rows)
        return dequantize(quantize(weight, self._recipe.scheme_for(self._specs[name])))

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """See `Weights.product`; a 4-bit matrix is quantised for these inputs, and stored.

        raises   CheckpointError where the inputs are beyond float32
        """
        spec = self._specs[name]
        scheme = self._recipe.scheme_for(spec)
        if scheme is None or not self._recipe.is_4_bit(spec):
            return super().product(name, x)
        if not np.isfinite(x).all():
            raise CheckpointError(
                f"what the model makes of the tokens is NaN or infinite before {name}",
                hint="the weights before it are damaged: take another copy of the model",
            )
        parts = feedback_within(x, self._columns or x.shape[1])
        product = np.empty((len(x), spec.shape[0]), np.float32)

        def settle(block: slice) -> slice:
            weight = self._checkpoint.read(name, block)
            try:
                packed = quantize_with_feedback(weight, scheme, *parts)
            except SchemeError as exc:
                raise SchemeError(f"{name}: {exc.message}", exc.hint) from exc
            self._store(spec, block.start, packed)
            with np.errstate(over="ignore", invalid="ignore"):  # the next matrix refuses what is not finite
                np.matmul(x, dequantize(packed).T, out=product[:, block])
            return block

        for block in in_threads(settle, _row_blocks(*spec.shape), _THREADS):
            self._stored(spec, block)
        return product


def _row_blocks(rows: int, columns: int) -> list[slice]:
    """Blocks of about the same size, each of which starts at an even row."""
    most = max(2, _BLOCK_ELEMENTS // columns // 2 * 2)
    count = -(-rows // most)
    step = -(-rows // count // 2) * 2
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass(frozen=True, slots=True)
class Feedback:
    """How some columns of a matrix, neighbours, make up for each other.

    order     [n] the columns; the last of them is rounded first
    weights   [n, n] float32; below the diagonal, column i is what column order[i] takes of each error
              before it; above the diagonal stands nothing
    """

    order: np.ndarray
    weights: np.ndarray


def feedback_of(x: np.ndarray, first: int = 0) -> Feedback:
    """The feedback that suits the inputs of neighbouring columns of a matrix.

    x        [tokens, n] float32, finite
    first    the first of the columns
    """
    tokens, columns = x.shape
    energies = np.einsum("tc,tc->c", x, x)
    order = np.argsort(energies, kind="stable")
    x = np.take(x, order, axis=1)
    mean = float(energies.mean(dtype=np.float64)) or 1.0
    damping = _DAMPING + _DAMPING_OF_FEW_TOKENS * columns / tokens
    while True:
        try:
            weights = factor_of_gram(x, damping * mean)
            break
        except np.linalg.LinAlgError:  # too little for float32
            damping *= 10
    # Lower triangular: in the order of rounding, which is the reverse, it is the upper one.
    for start in range(0, columns, _PANEL):
        panel = weights[start:, start : start + _PANEL]
        panel /= np.diag(panel).copy()
    return Feedback(order + first, weights)


def feedback_within(x: np.ndarray, size: int) -> list[Feedback]:
    """The feedback of the columns in parts of `size` neighbours, each part for itself; see `feedback_of`."""
    return [feedback_of(x[:, start : start + size], start) for start in range(0, x.shape[1], size)]


def factor_of_gram(x: np.ndarray, added: float) -> np.ndarray:
    """The Cholesky factor of x^T x + added I, without that matrix: a panel of columns after the other.

    x        [tokens, n] float32
    returns  [n, n] float32; what stands above the diagonal means nothing
    raises   LinAlgError if the matrix is not positive definite as far as float32 can tell
    """
    columns = x.shape[1]
    factor = np.zeros((columns, columns), np.float32)
    for start in range(0, columns, _PANEL):
        stop = min(start + _PANEL, columns)
        panel = x[:, start:].T @ x[:, start:stop]
        panel -= factor[start:, :start] @ factor[start:stop, :start].T
        corner = panel[: stop - start]
        corner.reshape(-1)[:: stop - start + 1] += np.float32(added)
        corner = np.linalg.cholesky(corner)
        factor[start:stop, start:stop] = corner
        np.matmul(panel[stop - start :], np.linalg.inv(corner).T, out=factor[stop:, start:stop])
    return factor


def quantize_with_feedback(weight: np.ndarray, scheme: Scheme, *parts: Feedback) -> Packed:
    """Quantise rows of a matrix to 4 bits, with the scales of `quantize_least_squares`.

    weight   [rows, in] float32
    parts    each column is in one of them
    raises   as `quantize`
    """
    searched = quantize_least_squares(weight, scheme)
    codes = searched.codes
    for feedback in parts:
        rounding = _Rounding(weight, searched, scheme, feedback)
        rounding.settle(0, len(feedback.order))
        first = feedback.order.min()
        places = np.argsort(feedback.order)
        codes[:, first : first + len(places)] = np.take(transposed(rounding.rounded), places, axis=1)
    return Packed(codes, searched.scale, searched.zero_point, scheme)


class _Rounding:
    """Rows of a matrix while n columns of them are rounded, [n, rows]: a row of it is a column of the matrix.

    errors    the weights, in the order of the feedback; of a column that is rounded, what it lost
    targets   where each is to be rounded: the weight, and what it takes of the errors so far
    rounded   the codes, in the order of the feedback
    """

    def __init__(self, weight: np.ndarray, searched: Packed, scheme: Scheme, feedback: Feedback) -> None:
        assert searched.scale is not None  # noqa: S101 - a 4-bit scheme has scales
        inputs = weight.shape[1]
        self.feedback = feedback
        self.groups = feedback.order // (inputs // scheme.groups(inputs))
        self.scale = searched.scale.T.astype(np.float32)
        self.per_scale = 1 / self.scale
        self.zero = None if searched.zero_point is None else searched.zero_point.T.astype(np.float32)
        self.range = scheme.code_range
        self.errors = transposed(np.take(weight, feedback.order, axis=1))
        self.targets = self.errors.copy()
        self.owed = np.empty((len(feedback.order) // 2 + 1, len(weight)), np.float32)
        self.rounded = np.empty(self.errors.shape, searched.codes.dtype)

    def settle(self, start: int, stop: int) -> None:
        """Round these columns, from the last to the first; all after them are."""
        if stop - start <= _COLUMNS:
            self._round(start, stop)
            return
        middle = (start + stop) // 2
        self.settle(middle, stop)
        owed = self.owed[: middle - start]
        np.matmul(self.feedback.weights[middle:stop, start:middle].T, self.errors[middle:stop], out=owed)
        self.targets[start:middle] += owed
        self.settle(start, middle)

    def _round(self, start: int, stop: int) -> None:
        among = np.ascontiguousarray(self.feedback.weights[start:stop, start:stop].T)
        owed = self.owed[0]
        for place in range(stop - 1, start - 1, -1):
            steps, group = self.targets[place], self.groups[place]
            np.matmul(among[place - start, place + 1 - start :], self.errors[place + 1 : stop], out=owed)
            steps += owed
            steps *= self.per_scale[group]
            if self.zero is not None:
                steps += self.zero[group]
            np.rint(steps, out=steps)
            np.clip(steps, *self.range, out=steps)
            self.rounded[place] = steps
            if self.zero is not None:
                steps -= self.zero[group]
            steps *= self.scale[group]
            self.errors[place] -= steps


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A copy, [a, b] -> [b, a]; numpy's own takes six times as long where rows are kilobytes apart."""
    copy = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _TRANSPOSED_ROWS):
        rows = slice(start, start + _TRANSPOSED_ROWS)
        copy[:, rows] = matrix[rows].T
    return copy
