"""A forward over a checkpoint that is read block by block is the reference's, for each kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aipc import decoder as arithmetic
from aipc.conversion import streamed
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.streamed import StreamedWeights
from aipc.decoder import Decoder, forward
from aipc.phi3 import Phi3Config, Role
from aipc.runtimes.reference import ReferenceSession
from checkpoints import LONGROPE, write_checkpoint
from golden import CASES, load_golden


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of tests would fit in a single block."""
    monkeypatch.setattr(streamed, "_BLOCK_ELEMENTS", 1000)
    monkeypatch.setattr(arithmetic, "_SCORES_AT_ONCE", 256)


class Recorder(StreamedWeights):
    """Keeps what goes into each matrix."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.inputs: dict[str, tuple[int, ...]] = {}

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        assert name not in self.inputs
        self.inputs[name] = x.shape
        return super().product(name, x)


@pytest.mark.parametrize("case", CASES)
def test_the_streamed_forward_is_the_references(case: str, tmp_path: Path) -> None:
    answer = load_golden(case)
    answer.write_checkpoint(tmp_path)
    config = Phi3Config.read(tmp_path)
    sequences = [list(answer.prompt + answer.tokens), [7], list(answer.tokens[:9])]
    weights = Recorder(Checkpoint.open(tmp_path))
    decoder = Decoder(config, weights)
    *_, (last, hidden) = forward(decoder, sequences)
    assert last == config.layers - 1
    logits = np.split(
        decoder.head(decoder.last_norm(hidden)), np.cumsum([len(ids) for ids in sequences])[:-1]
    )

    reference = ReferenceSession(config, answer.weights())
    for ids, got in zip(sequences, logits, strict=True):
        expected = reference.logits(ids)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # Transformers' own logits, over the blocks of this file.
    recorded = answer.logits
    np.testing.assert_allclose(
        logits[0][list(answer.positions)], recorded, rtol=1e-4, atol=1e-4 * np.abs(recorded).max()
    )

    # Each matrix is used once, and sees all tokens of all sequences.
    tokens = sum(map(len, sequences))
    not_multiplied = {Role.NORM} if config.tied_embeddings else {Role.NORM, Role.EMBEDDING}
    matrices = [spec for spec in config.weights() if spec.role not in not_multiplied]
    assert weights.inputs == {spec.name: (tokens, spec.shape[1]) for spec in matrices}


def test_each_sequence_has_its_own_factors_of_longrope(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, LONGROPE, dtype="F16")
    config = Phi3Config.read(tmp_path)
    assert config.rope_border is not None
    sequences = [[7 + n % 200 for n in range(config.rope_border + more)] for more in (0, 1, 20)]
    decoder = Decoder(config, StreamedWeights(Checkpoint.open(tmp_path)))
    *_, (_, hidden) = forward(decoder, sequences)
    ends = np.cumsum([len(ids) for ids in sequences])
    logits = np.split(decoder.head(decoder.last_norm(hidden)), ends[:-1])
    reference = ReferenceSession(config, weights)
    for ids, got in zip(sequences, logits, strict=True):
        expected = reference.logits(ids)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert not np.allclose(logits[0][-1], logits[1][-2], rtol=1e-3)
