"""The way of a weight: read, quantise, write, forget; block by block, in a few threads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aipc import __version__
from aipc.conversion.calibration import Calibration, random_calibration, read_calibration
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.folder import refuse_taken, staged_folder
from aipc.conversion.formats import Format, Writer, formats_named
from aipc.conversion.gptq import CalibratedWeights
from aipc.conversion.quantize import Packed, quantize
from aipc.conversion.recipe import Recipe, is_ranked, make_recipe, sensitivity
from aipc.conversion.scale_search import quantize_least_squares
from aipc.conversion.threads import in_threads
from aipc.decoder import Decoder, forward
from aipc.errors import SchemeError, UsageError
from aipc.manifest import Manifest, SourceRecord, fingerprint, hash_files
from aipc.phi3 import Phi3Config, WeightSpec, read_json_object
from aipc.text import Text
from aipc.types import Progress

# About what a core's cache holds; also what bounds the memory of a conversion.
BLOCK_ELEMENTS = 2**20

# Of row blocks that need nothing else; gptq's 4-bit matrices are quantised where their inputs are known.
QUANTIZERS = {"rtn": quantize, "mse": quantize_least_squares, "gptq-random": quantize, "gptq": quantize}

_TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a weight that are handled at once."""

    spec: WeightSpec
    rows: slice

    @property
    def elements(self) -> int:
        """How many numbers the block holds."""
        rows: int = self.rows.stop - self.rows.start
        return rows * (self.spec.elements // self.spec.shape[0])


def convert_checkpoint(
    checkpoint_folder: Path,
    out: Path,
    *,
    name: str,
    revision: str | None = None,
    to: Sequence[str] = ("openvino",),
    target: str = "cpu",
    weight_format: str = "int4",
    group_size: int | None = None,
    sym: bool = True,
    ratio: float = 1.0,
    quant_method: str = "rtn",
    dataset: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Recipe:
    """Write the checkpoint in `checkpoint_folder` as a folder at `out`, or as one in it for each format.

    name, revision   of the source, for the record
    to               the formats, such as ("openvino", "onnx"); one is written as `out` itself, several
                     as whole folders of their names in `out`, from one reading and one quantisation
    target           whose kernels an ONNX folder is for: "cpu", "cuda" or "dml"
    dataset          a text file for "gptq"; None for the text that comes with aipc
    progress         called after every block, from this thread
    returns          the recipe, whose notes say what was decided
    raises           UsageError, CheckpointError, UnsupportedModelError, SchemeError, StorageError,
                     MissingExtraError; nothing is left of `out` then
    """
    refuse_taken(out)
    formats = formats_named(to, target)
    if dataset is not None and quant_method != "gptq":
        raise UsageError(
            f"a text is for gptq; {quant_method} reads none", hint="--quant-method gptq, or no --dataset"
        )
    config = Phi3Config.read(checkpoint_folder)
    checkpoint = Checkpoint.open(checkpoint_folder)
    checkpoint.require(config.weights())
    mixed = weight_format == "int4" and 0.0 < ratio < 1.0
    scores = _sensitivities(checkpoint, config) if mixed else None
    recipe = make_recipe(
        config,
        weight_format=weight_format,
        group_size=group_size,
        sym=sym,
        ratio=ratio,
        quant_method=quant_method,
        scores=scores,
    )
    calibration = calibration_for(recipe, checkpoint_folder, config, dataset)
    with staged_folder(out, sum(kind.nbytes(config, recipe) for kind in formats)) as staging:
        folders = [staging / kind.word if len(formats) > 1 else staging for kind in formats]
        _write_texts(checkpoint_folder, config, formats, folders)
        with ExitStack() as stack:
            opened = (
                kind.open_writer(folder, config, recipe)
                for kind, folder in zip(formats, folders, strict=True)
            )
            writers = [stack.enter_context(closing(writer)) for writer in opened]
            write_weights(checkpoint, config, recipe, writers, progress, calibration=calibration)
        source = SourceRecord(name, revision, fingerprint(checkpoint_folder, revision=revision))
        for kind, folder, files in zip(formats, folders, in_threads(hash_files, folders), strict=True):
            words = recipe.describe() | kind.details | (calibration.describe() if calibration else {})
            Manifest(source, words, kind.runtime, files, __version__).write(folder)
    return recipe


def calibration_for(
    recipe: Recipe, checkpoint_folder: Path, config: Phi3Config, dataset: Path | None
) -> Calibration | None:
    """The tokens that the recipe's method goes by; for "gptq" alone a text is read, by `read_calibration`."""
    if recipe.quant_method == "gptq":
        return read_calibration(checkpoint_folder, config, dataset)
    return random_calibration(config) if recipe.quant_method == "gptq-random" else None


def write_weights(
    checkpoint: Checkpoint,
    config: Phi3Config,
    recipe: Recipe,
    writers: Sequence[Writer],
    progress: Callable[[Progress], None] | None = None,
    *,
    calibration: Calibration | None = None,
) -> None:
    """Bring every weight of the checkpoint, quantised once, into every writer.

    calibration   for "gptq" and "gptq-random"; what is quantised with it is a piece of work of its own for
                  `progress`, as it takes ten or a hundred times as long a byte
    """
    quantizer = QUANTIZERS[recipe.quant_method]

    def add(spec: WeightSpec, row: int, packed: Packed) -> None:
        for writer in writers:
            writer.add(spec, row, packed)

    def carry(block: Block) -> Block:
        weight = checkpoint.read(block.spec.name, block.rows)
        try:
            packed = quantizer(weight, recipe.scheme_for(block.spec))
        except SchemeError as exc:
            raise SchemeError(f"{block.spec.name}: {exc.message}", exc.hint) from exc
        add(block.spec, block.rows.start, packed)
        return block

    calibrated = [spec for spec in config.weights() if calibration and recipe.is_4_bit(spec)]
    alone = [spec for spec in config.weights() if spec not in calibrated]
    count = _Count(checkpoint, alone, progress)
    for block in in_threads(carry, _blocks(alone)):
        count.take(block)
    if calibration:
        count = _Count(checkpoint, calibrated, progress)
        weights = CalibratedWeights(
            checkpoint,
            config,
            recipe,
            add,
            lambda spec, rows: count.take(Block(spec, rows)),
            columns=calibration.columns,
        )
        with np.errstate(over="ignore", invalid="ignore"):  # CalibratedWeights sees what becomes of it
            for _ in forward(Decoder(config, weights), calibration.sequences):
                pass


class _Count:
    """How much of some weights is done."""

    def __init__(
        self, checkpoint: Checkpoint, specs: Sequence[WeightSpec], progress: Callable[[Progress], None] | None
    ) -> None:
        self._nbytes = {spec.name: checkpoint.tensors[spec.name].nbytes for spec in specs}
        self._progress = progress
        self._done = 0

    def take(self, block: Block) -> None:
        """Report rows that were added; from the thread that asked for the conversion."""
        self._done += self._nbytes[block.spec.name] * block.elements // block.spec.elements
        if self._progress is not None:
            self._progress(Progress(block.spec.name, self._done, sum(self._nbytes.values())))


def _blocks(specs: Iterable[WeightSpec]) -> Iterator[Block]:
    """Row blocks with an even number of rows, so that each starts at a whole byte of 4-bit codes."""
    for spec in specs:
        rows = spec.shape[0]
        columns = spec.elements // rows
        step = max(2, BLOCK_ELEMENTS // columns // 2 * 2)
        for start in range(0, rows, step):
            yield Block(spec, slice(start, min(start + step, rows)))


def _sensitivities(checkpoint: Checkpoint, config: Phi3Config) -> dict[str, float]:
    """How much each matrix would lose, by name: an extra reading of the checkpoint."""
    specs = [spec for spec in config.weights() if is_ranked(spec)]

    def score(spec: WeightSpec) -> float:
        return sensitivity(checkpoint.read(spec.name, block.rows) for block in _blocks([spec]))

    return dict(zip((spec.name for spec in specs), in_threads(score, specs), strict=True))


def _write_texts(
    source: Path, config: Phi3Config, formats: Sequence[Format], folders: Sequence[Path]
) -> None:
    for kind, folder in zip(formats, folders, strict=True):
        folder.mkdir(exist_ok=True)
        _copy_texts(source, folder)
        _write_generation_config(source, folder)
        kind.write_texts(source, folder, config)


def _copy_texts(source: Path, target: Path) -> None:
    for name in _TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_generation_config(source: Path, target: Path) -> None:
    """The source's generation_config.json, with every id that ends an answer: runtimes look nowhere else."""
    path = source / "generation_config.json"
    config = read_json_object(path) if path.is_file() else {}
    config["eos_token_id"] = sorted(Text.load(source).stop_ids)
    text = json.dumps(config, indent=2) + "\n"
    (target / path.name).write_text(text, encoding="utf-8", newline="\n")
