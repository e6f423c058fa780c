"""A folder for OpenVINO in which one of LongRoPE's two sets of factors stands in the place of both.

The graph itself chooses by the positions it sees. But the pipelines compute a prompt in pieces, and paged
attention many sequences in one step, so what a step sees is not the length of a text. Nor can a pipeline be
told. So there is one pipeline for each set; both read the same weights.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aipc.errors import CheckpointError, StorageError
from aipc.runtimes.base import OPENVINO

# The constants as our converter names them. Their places in the weights' file are what is exchanged.
_SET = re.compile(
    r'(<layer [^>]*\bname="rope/(short|long)" type="Const"[^>]*>\s*<data [^>]*\boffset=")(\d+)(" size="\d+")'
)
_PREFIX = "aipc-factors-"
# A pipeline is loaded in less: younger ones may be a process's that is not seen from here, as in a container.
_STALE_S = 3600.0
_MAX_XML_BYTES = 256 * 2**20


def has_factors(folder: Path) -> bool:
    """Whether the model's two sets of factors can be told apart: where aipc converted it.

    raises   CheckpointError
    """
    return set(_places(_description(folder))) == {"short", "long"}


@contextmanager
def folder_with_factors(folder: Path, *, long: bool) -> Iterator[Path]:
    """A folder to load the model from, computed with one set whatever its length; gone at the end.

    On Windows its weights are still mapped then: what stays is removed when a later process makes one.

    raises   CheckpointError, StorageError
    """
    description = description_with_factors(folder, long=long)
    _remove_left()
    prefix = f"{_PREFIX}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        variant = Path(name)
        try:
            for path in folder.iterdir():
                if path.is_file() and path.name != OPENVINO.model_file:
                    _link(path.resolve(), variant / path.name)
            (variant / OPENVINO.model_file).write_text(description, encoding="utf-8")
        except OSError as exc:
            raise StorageError(
                f"a second description of {folder} cannot be written to {variant}: {exc.strerror or exc}",
                hint="make room there, or point TMPDIR or TEMP to another disk",
            ) from exc
        yield variant


def _remove_left() -> None:
    """Remove the folders of processes that are long gone."""
    import psutil

    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        if re.fullmatch("[0-9]{1,9}", number) and not psutil.pid_exists(int(number)):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _STALE_S:
                    shutil.rmtree(left, ignore_errors=True)


def description_with_factors(folder: Path, *, long: bool) -> str:
    """The text of openvino_model.xml with one set of factors in the place of both.

    raises   CheckpointError, also where the folder's two sets cannot be told apart
    """
    xml = _description(folder)
    places = _places(xml)
    if set(places) != {"short", "long"}:
        raise CheckpointError(
            f"{folder} was made by others, and its two sets of LongRoPE's factors cannot be told apart",
            hint="convert the checkpoint with aipc convert",
        )
    return _SET.sub(rf"\g<1>{places['long' if long else 'short']}\g<4>", xml)


def _description(folder: Path) -> str:
    path = folder / OPENVINO.model_file
    try:
        if path.stat().st_size > _MAX_XML_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_XML_BYTES >> 20} MB")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"{path} cannot be read: {exc}", hint="convert or download the model again"
        ) from exc


def _places(xml: str) -> dict[str, str]:
    """The offset of each set."""
    return {found[2]: found[3] for found in _SET.finditer(xml)}


def _link(source: Path, target: Path) -> None:
    """The file under a second name: on Windows not everyone may link, and not across disks."""
    for link in (target.symlink_to, target.hardlink_to):
        with suppress(OSError):
            link(source)
        # Wine says that it has made a symbolic link, and makes none.
        if target.is_file():
            return
    shutil.copyfile(source, target)
