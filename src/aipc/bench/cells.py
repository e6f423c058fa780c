"""What is measured: each runtime on each device that it reaches, with weights of each format asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aipc import plan, prepare, selectors
from aipc.conversion.recipe import Recipe
from aipc.errors import AipcError, DeviceError, MissingExtraError
from aipc.inventory import Candidate
from aipc.manifest import MANIFEST_FILE, Manifest
from aipc.measurements.record import CellRecord, Failure, Load, Request
from aipc.phi3 import Phi3Config, Role
from aipc.types import Progress


@dataclass(slots=True)
class Cell:
    """A runtime on a device, and what was found of it so far.

    device          as it was asked for, or the runtime's own word
    runtime         the word for --runtime; "" where no runtime reaches the device
    candidate       None where there is no such device
    weight_format   None for what the model's folder holds
    ready           the folder, once it is there
    """

    device: str
    runtime: str
    candidate: Candidate | None
    weight_format: str | None
    ready: prepare.ReadyModel | None = None
    bytes_per_token: int | None = None
    failures: list[Failure] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return any(failure.prompt_tokens is None for failure in self.failures)

    def refuses(self, prompt_tokens: int) -> bool:
        """Whether it cannot answer a prompt of this length."""
        return any(failure.prompt_tokens in {None, prompt_tokens} for failure in self.failures)

    def fail(self, error: AipcError, prompt_tokens: int | None = None) -> None:
        """Keep why there are no more figures."""
        self.failures.append(Failure(error.message, error.hint, prompt_tokens))

    def prepare(self, source: str | Path, progress: Callable[[Progress], None] | None) -> None:
        """Download and convert what it needs.

        raises   as prepare.ready_model
        """
        if self.candidate is not None:
            self.ready = prepare.ready_model(
                source,
                self.candidate.runtime,
                self.candidate.device,
                progress,
                weight_format=self.weight_format,
            )
            self.bytes_per_token = bytes_per_token(self.ready.folder)

    def is_compiled(self) -> bool:
        """Whether its device needs no compilation, or finds one that was kept."""
        if self.candidate is None or self.ready is None or self.candidate.device.kind == "CPU":
            return True
        kept = self.ready.compiled_dir(self.candidate.device, self.candidate.runtime)
        return kept is None or any(kept.iterdir())

    def record(self) -> CellRecord:
        """What was found."""
        device = self.candidate.device if self.candidate else None
        return CellRecord(
            device=self.device,
            kind=device.kind if device else None,
            device_name=device.name if device else "",
            driver=device.driver if device else None,
            runtime=self.runtime,
            weight_format=self.weight_format or (self.ready.precision if self.ready else ""),
            bytes_per_token=self.bytes_per_token,
            failures=tuple(self.failures),
            loads=tuple(self.loads),
            requests=tuple(self.requests),
        )


def cells_for(
    source: str | Path,
    devices: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    weight_formats: Sequence[str] = (),
) -> list[Cell]:
    """Every cell that the words ask for. A device that is not here is a cell that says so.

    devices          () for every one that a runtime reaches
    runtimes         () for every one that is installed and takes the model's folder
    weight_formats   () for what the folder holds, int4 for a checkpoint
    raises           UsageError for a word that does not exist; ModelNotFoundError; MissingExtraError if
                     no runtime is installed
    """
    formats = prepare.formats_of(source)
    asked = itertools.product(devices or (selectors.AUTO,), runtimes or (None,), weight_formats or (None,))
    cells: dict[tuple[str, str, str | None], Cell] = {}
    for device, runtime, weight_format in asked:
        try:
            found = plan.make_plan(device, runtime, formats=formats).candidates
            new = [Cell(each.device.word, each.runtime.name, each, weight_format) for each in found]
        except (DeviceError, MissingExtraError) as exc:
            if not devices and not runtimes:
                raise
            # What is not here is not here once for each format of the weights.
            new = [Cell(device, runtime or "", None, None)]
            new[0].fail(exc)
        for cell in new:
            # "GPU" and "GPU.0" may be the same.
            cells.setdefault((cell.device, cell.runtime, cell.weight_format), cell)
    return list(cells.values())


def bytes_per_token(folder: Path) -> int | None:
    """What a decode step reads of the weights; None for a folder that does not say how it was made.

    Of the embedding it reads one row, unless that is the last matrix as well.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        words = Manifest.read(folder).recipe
        config = Phi3Config.read(folder)
        recipe = Recipe(
            words["weight_format"],
            words["sym"],
            words["group_size"],
            words["ratio"],
            int8_weights=frozenset(words["int8_weights"]),
        )
    except (AipcError, KeyError, TypeError):
        return None
    tied = config.tied_embeddings
    return recipe.nbytes(spec for spec in config.weights() if tied or spec.role is not Role.EMBEDDING)
