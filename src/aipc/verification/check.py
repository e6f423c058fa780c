"""From a folder and its original to a verdict: the device is asked, then the original, then the files."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any, cast

import numpy as np

from aipc import hub, inventory, model, verdicts
from aipc.decoder import Decoder
from aipc.errors import CheckpointError, MissingExtraError, StorageError, UsageError, shown
from aipc.manifest import MANIFEST_FILE, Manifest
from aipc.phi3 import Phi3Config, read_json_object
from aipc.prepare import ReadyModel
from aipc.runtimes.base import ONNXRUNTIME
from aipc.text import Text
from aipc.types import Progress, Sampling
from aipc.verdicts import Verdict
from aipc.verification.losses import Loss, Scored, loss_over
from aipc.verification.original import computed_scores, open_checkpoint, original_scores
from aipc.verification.passages import Passage, make_passages, read_text
from aipc.verification.stored import FolderWeights, MatrixError, compare_matrices
from aipc.verification.verdict import OTHER_TOKEN, judge, level, other_matrices

# What must be the same in both configurations, and what genai_config.json calls it.
_SHAPE = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a folder lost against its original on a device.

    runtime         the package and its version
    driver          of the device, or None where it cannot be read
    losses          for each length, ascending
    matrices        of the folder against the original's, those that were found by their names
    device_losses   of the device against the folder's own weights, computed in float32; only where that
                    tells a loss of the weights from one of the device
    reasons         for the verdict, a sentence each
    notes           what could not be looked at
    """

    folder: Path
    against: Path
    device: str
    device_name: str
    driver: str | None
    runtime: str
    precision: str
    losses: tuple[Loss, ...]
    matrices: tuple[MatrixError, ...]
    device_losses: tuple[Loss, ...]
    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types; a number that is none is null."""
        record = asdict(self) | {"folder": str(self.folder), "against": str(self.against)}
        return record | {
            "losses": list(map(_loss_as_json, self.losses)),
            "device_losses": list(map(_loss_as_json, self.device_losses)),
        }


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    device: str = "auto",
    runtime: str | None = None,
    *,
    text: str | Path | None = None,
    lengths: Sequence[int] | None = None,
    properties: Mapping[str, object] | None = None,
    progress: Report | None = None,
) -> Verification:
    """Compare a converted folder, on the device that will answer, with the checkpoint it was made from.

    folder      a converted folder, or a model by the name with which it is run
    against     a checkpoint folder, alias or hub id; None for what the folder's aipc.json names
    device      as for `load`
    text        a UTF-8 file; None for the text that comes with aipc
    lengths     of the passages in tokens; None for 128, 512, 2048 and all that context and text hold
    properties  as for `load`
    raises      as `load`; UsageError for a text that is too short; CheckpointError if the checkpoint is
                not the folder's original
    """
    report = progress or (lambda now: None)
    words = read_text(None if text is None else Path(text))
    with model.load(folder, device, runtime, properties=properties, progress=progress) as loaded:
        asked = _ask(loaded, against, words, lengths, report)
    original, passages = asked.original, asked.passages
    scored = _folder_scores(asked, properties, report)
    expected = original_scores(original.folder, passages, revision=original.revision, progress=report)
    _require_same_vocabulary(asked.ready.folder, scored[0], expected[0])
    losses = _losses(passages, expected, scored)
    good = level(losses, asked.precision) == "good"
    matrices, device_losses, notes = _look_at_weights(asked, None if good else scored, report)
    verdict, reasons = judge(losses, asked.precision, _other_tokens(asked, scored), matrices, device_losses)
    found = Verification(
        folder=asked.ready.folder,
        against=original.folder,
        device=asked.candidate.device.word,
        device_name=asked.candidate.device.name,
        driver=asked.candidate.device.driver,
        runtime=inventory.runtime_version(asked.candidate.runtime),
        precision=asked.precision,
        losses=tuple(losses),
        matrices=tuple(matrices),
        device_losses=tuple(device_losses),
        verdict=verdict,
        reasons=tuple(reasons),
        notes=tuple(notes),
    )
    # What was found is worth more than its place in the cache.
    with suppress(StorageError, OSError):
        verdicts.keep(found.as_json(), found.folder, asked.candidate.device, found.runtime)
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is compared with what.

    first_tokens   the runtime's answer to each prompt, as in `aipc run`
    """

    ready: ReadyModel
    candidate: inventory.Candidate
    precision: str
    original: hub.Source
    passages: list[Passage]
    first_tokens: list[int]


def _ask(
    loaded: model.Model, against: str | Path | None, words: str, lengths: Sequence[int] | None, report: Report
) -> _Asked:
    """Find the original, refuse what is none, and let the runtime answer each prompt."""
    assert loaded.candidate is not None  # noqa: S101 - what load() promises
    assert loaded.folder is not None  # noqa: S101
    original = _find_original(loaded.folder, against, report)
    _require_same_shape(loaded.folder, original.folder)
    ids = _same_ids(loaded.text, Text.load(original.folder), words)
    passages = make_passages(ids, loaded.context_length, lengths)
    first_tokens: list[int] = []
    done, total = 0, sum(len(passage.prompt) for passage in passages)
    for passage in passages:
        report(Progress(f"{loaded.device} reads {len(passage.prompt)} tokens", done, total, "tokens"))
        done += len(passage.prompt)
        answer = loaded.session.generate(passage.prompt, Sampling(max_new_tokens=len(passage.following)))
        with closing(cast("Generator[int]", answer)):
            first_tokens.append(next(answer))
    ready = ReadyModel(loaded.name, loaded.folder)
    return _Asked(ready, loaded.candidate, loaded.precision, original, passages, first_tokens)


def _find_original(folder: Path, against: str | Path | None, report: Report) -> hub.Source:
    if against is None:
        if not (folder / MANIFEST_FILE).is_file():
            raise UsageError(
                f"{folder} does not say what it was made from",
                hint="name the checkpoint: --against CHECKPOINT",
            )
        against = Manifest.read(folder).source.name
    found = hub.find(against, progress=report)
    if found.kind == "converted":
        raise UsageError(
            f"{found.folder} is converted itself; a folder is compared with the checkpoint it was made from",
            hint="--against CHECKPOINT: a folder with safetensors, an alias or a hub id",
        )
    return found


def _require_same_shape(folder: Path, original: Path) -> None:
    """Refuse a checkpoint of another model, before it is computed for minutes.

    raises   CheckpointError
    """
    wanted = Phi3Config.read(original)
    if (folder / "config.json").is_file():
        config = Phi3Config.read(folder)
        here = {
            field.name: getattr(config, field.name) for field in fields(Phi3Config) if field.name != "eos_ids"
        }
    else:
        entry = read_json_object(folder / ONNXRUNTIME.model_file).get("model")
        decoder = entry.get("decoder") if isinstance(entry, dict) else None
        here = {name: decoder.get(word) for name, word in _SHAPE.items()} if isinstance(decoder, dict) else {}
    for name, value in here.items():
        if value != getattr(wanted, name):
            raise CheckpointError(
                f"{original} is not what {folder} was made from: {name} is {shown(value)} in the folder and "
                f"{shown(getattr(wanted, name))} in the checkpoint",
                hint="give the folder's own original: --against CHECKPOINT",
            )


def _same_ids(ours: Text, theirs: Text, words: str) -> list[int]:
    """The token ids of a text, if both tokenizers say the same.

    raises   CheckpointError
    """
    ids = ours.encode(words)
    if ids != theirs.encode(words):
        raise CheckpointError(
            "the tokenizers of folder and checkpoint differ: they cut the same text into other tokens",
            hint="give the folder's own original, or copy the checkpoint's tokenizer files into the folder",
        )
    return ids


def _require_same_vocabulary(folder: Path, scores: np.ndarray, expected: np.ndarray) -> None:
    if scores.shape != expected.shape:
        raise CheckpointError(
            f"{folder} scores {scores.shape[-1]} tokens, the checkpoint {expected.shape[-1]}",
            hint="give the folder's own original: --against CHECKPOINT",
        )


def _folder_scores(
    asked: _Asked, properties: Mapping[str, object] | None, report: Report
) -> list[np.ndarray]:
    """The scores before each following token of each passage, by the device."""
    runtime, device = asked.candidate.runtime, asked.candidate.device
    report(Progress(f"{device.word} loads the model to be asked for its scores", 0, 0))
    scorer = inventory.runtime_module(runtime).open_scorer(
        asked.ready.folder,
        device.word,
        properties=properties,
        compiled_dir=asked.ready.compiled_dir(device, runtime),
        rope_border=asked.ready.rope_border,
    )
    scores = []
    done, total = count(1), sum(len(passage.following) for passage in asked.passages)

    def scored(passage: Passage) -> None:
        report(Progress(f"{device.word} scores {passage.tokens} tokens", next(done), total, "tokens"))

    try:
        for passage in asked.passages:
            scores.append(scorer.scores(passage.prompt, passage.following, partial(scored, passage)))
    finally:
        scorer.close()
    return scores


def _other_tokens(asked: _Asked, scored: Sequence[np.ndarray]) -> list[int]:
    """At which lengths the runtime's own answer is not what the model scores likeliest."""
    return [
        passage.tokens
        for passage, scores, token in zip(asked.passages, scored, asked.first_tokens, strict=True)
        if not scores[0].max() - scores[0, token] < OTHER_TOKEN
    ]


def _losses(
    passages: Sequence[Passage], expected: Sequence[np.ndarray], scored: Sequence[np.ndarray]
) -> list[Loss]:
    """The loss at each length."""
    parts = [
        Scored(passage.tokens, passage.following, original, scores)
        for passage, original, scores in zip(passages, expected, scored, strict=True)
    ]
    return [loss_over(list(group)) for _, group in groupby(parts, key=lambda part: part.tokens)]


def _look_at_weights(
    asked: _Asked, scored: Sequence[np.ndarray] | None, report: Report
) -> tuple[list[MatrixError], list[Loss], list[str]]:
    """The error of each matrix, the loss of the device, and what could not be looked at.

    scored   by the device, where it is to be found out whether device or weights lose too much
    """
    config, checkpoint = open_checkpoint(asked.original.folder)
    try:
        weights = FolderWeights(asked.ready.folder, asked.candidate.runtime, config, checkpoint)
    except MissingExtraError as exc:
        return [], [], [f"the weights were not compared: {exc.message}; {exc.hint}"]
    matrices = compare_matrices(weights, checkpoint, report)
    if weights.missing:
        note = f"{weights.missing} matrices were not compared: they are not found by their names"
        return matrices, [], [note]
    if scored is None or other_matrices(matrices):
        return matrices, [], []
    own = computed_scores(Decoder(config, weights), asked.passages, "the folder's weights", report)
    return matrices, _losses(asked.passages, own, scored), []


def _loss_as_json(loss: Loss) -> dict[str, float | None]:
    record = asdict(loss) | {"perplexity_ratio": loss.perplexity_ratio}
    return {name: value if np.isfinite(value) else None for name, value in record.items()}
