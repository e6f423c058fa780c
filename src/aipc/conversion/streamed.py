"""The weights of a checkpoint as `aipc.decoder` takes them: read a block at a time, used once, forgotten.

    decoder = Decoder(config, StreamedWeights(checkpoint))
    for layer, hidden in forward(decoder, sequences): ...

So a forward of any checkpoint takes the memory of its hidden states and a few blocks. Whoever needs the
inputs of each matrix overrides `product`, which is called once for each in the order of the layers; whoever
has other numbers for the matrices overrides `read`.
"""

from __future__ import annotations

import numpy as np

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.threads import in_threads

# Rows of a matrix that are multiplied at once, and the threads that read while the BLAS multiplies:
# 6 blocks of 16 MB are in memory. Larger and smaller blocks were slower.
_BLOCK_ELEMENTS = 2**22
THREADS = 2


class StreamedWeights:
    """`Weights` that are never in memory.

    raises   CheckpointError where a tensor is missing or damaged
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Neighbouring rows of a matrix, [rows, in] float32; called by several threads at once."""
        return self._checkpoint.read(name, rows)

    def vector(self, name: str) -> np.ndarray:
        """The weights of a norm, [size] float32."""
        return self._checkpoint.read(name)

    def rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Some rows of a matrix, [numbers, in] float32."""
        distinct, places = np.unique(numbers, return_inverse=True)
        read = in_threads(lambda row: self.read(name, slice(row, row + 1)), distinct.tolist(), THREADS)
        return np.concatenate(list(read))[places]

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """[..., in] -> [..., out] by a matrix [out, in]."""
        rows, columns = self._checkpoint.tensors[name].shape
        product = np.empty((*x.shape[:-1], rows), np.float32)
        blocks = row_blocks(rows, columns)
        read = in_threads(lambda block: self.read(name, block), blocks, THREADS)
        for block, weight in zip(blocks, read, strict=True):
            product[..., block] = x @ weight.T
        return product


def row_blocks(rows: int, columns: int) -> list[slice]:
    """The rows of a matrix in the blocks in which it is read."""
    step = max(1, _BLOCK_ELEMENTS // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
