"""A folder appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from aipc.errors import StorageError
from aipc.windows_files import LONGEST_PATH, move, too_long

STAGING_PREFIX = ".partial-"

# What a disk is left with beyond the folder itself: file system metadata, and room to breathe.
_SPARE_BYTES = 64 * 2**20


@contextmanager
def staged_folder(out: Path, nbytes: int) -> Iterator[Path]:
    """A new folder beside `out` that becomes it when the block ends well, and vanishes when not.

    nbytes   about what will be written
    raises   StorageError if `out` is taken, cannot be made or exceeds the free space
    """
    refuse_taken(out)
    staging = out.parent / f"{STAGING_PREFIX}{out.name}-{uuid4().hex[:8]}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out.parent, nbytes)
        staging.mkdir()
    except OSError as exc:
        raise _unwritable(out, exc) from exc
    try:
        yield staging
        _publish(staging, out)
    except OSError as exc:
        raise _unwritable(out, exc) from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_taken(out: Path) -> None:
    """Refuse an output folder that holds anything.

    raises   StorageError
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise StorageError(
            f"{out} exists already, and nothing is overwritten", hint="remove it, or choose another folder"
        )


def _publish(staging: Path, out: Path) -> None:
    if out.is_dir():
        out.rmdir()
    move(staging, out)


def _check_space(parent: Path, nbytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < nbytes + _SPARE_BYTES:
        raise StorageError(
            f"the converted model takes {nbytes / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free",
            hint="free some space, or choose a folder on another disk",
        )


def _unwritable(out: Path, exc: OSError) -> StorageError:
    failed = Path(exc.filename or out)
    if too_long(failed):
        return StorageError(
            f"{out} cannot be written: {failed.name} would have a path of {len(str(failed.absolute()))} "
            f"characters, and Windows takes {LONGEST_PATH}",
            hint="choose a folder with a shorter path, or switch LongPathsEnabled on in the registry",
        )
    return StorageError(
        f"{out} cannot be written: {exc.strerror or exc}", hint="choose a folder that you may write to"
    )
