"""Where converted models live: one folder each in the platform's cache directory; AIPC_CACHE_DIR moves it.

models/phi-3-mini/openvino-int4_sym_g128-1a2b3c4d/    a converted model, described by its aipc.json
models/phi-3-mini/.partial-*                          a conversion under way, or what a crash left
compiled/5e6f.../NPU-9a8b7c6d/                        what a device's compiler made of one model
originals/0f1e2d3c4b5a6978.npz                        how a checkpoint scores a text, for `aipc verify`
verdicts/5e6f.../CPU-1b2c3d4e.json                    what `aipc verify` found of one model on one device
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aipc.errors import CheckpointError, ModelNotFoundError, StorageError
from aipc.hub import ALIASES, Source, repository_of
from aipc.manifest import FORMAT, MANIFEST_FILE, FileRecord, Manifest, file_names, fingerprint, hash_files
from aipc.windows_files import is_device_name, move

PARTIAL_PREFIX = ".partial-"

# A conversion writes all the time: what has not changed for an hour was left by one that died.
_STALE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A converted model in the cache.

    name             MODEL/FOLDER, by which it is verified and removed
    bytes            of all its files
    compiled_bytes   of what devices have compiled from it
    created          when it was converted
    manifest         None where aipc.json is damaged
    """

    name: str
    folder: Path
    bytes: int
    compiled_bytes: int
    created: datetime
    manifest: Manifest | None


def cache_dir() -> Path:
    """The cache directory, which is created when something is written to it."""
    moved = os.environ.get("AIPC_CACHE_DIR")
    if moved:
        return Path(moved).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("aipc", appauthor=False)


def ensure_writable(folder: Path) -> Path:
    """Create a folder of the cache.

    raises   StorageError if it cannot be created or written to
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as exc:
        raise StorageError(
            f"the cache directory {folder} cannot be written: {exc.strerror or exc}",
            hint="set AIPC_CACHE_DIR to a folder that you may write to",
        ) from exc


def converted_folder(source: Source, recipe: Mapping[str, object], runtime: str = "openvino") -> Path:
    """Where the conversion of `source` by `recipe` belongs: the same words give the same folder.

    recipe   of the request, with weight_format, group_size, sym and ratio under these names
    raises   CheckpointError if a local checkpoint cannot be read
    """
    identity = source.revision or fingerprint(source.folder)
    return cache_dir() / "models" / _model_word(source.name) / _folder_word(identity, recipe, runtime)


def lookup(
    name: str, recipe: Mapping[str, object], runtime: str = "openvino", revision: str | None = None
) -> Path | None:
    """The newest conversion of a hub model, even where its checkpoint has been deleted since."""
    models = cache_dir() / "models" / _model_word(name)
    found = []
    for folder in _folders(models):
        manifest = _manifest(folder)
        commit = manifest.source.revision if manifest else None
        if manifest is None or commit is None or revision not in {None, commit}:
            continue
        if folder.name == _folder_word(commit, recipe, runtime):
            found.append((manifest.created, folder))
    return max(found)[1] if found else None


def compiled_dir(folder: Path, *, device: str, driver: str, runtime_version: str, shapes: str = "") -> Path:
    """Where the runtime keeps what it compiled from a converted folder; another driver, another place.

    device    the word for it, such as "NPU" or "GPU.0"
    shapes    whatever else the compiled model depends on, such as "prompt 1024, answer 128"
    """
    key = _hash8([device, driver, runtime_version, shapes])
    return _compiled_of(folder, _manifest(folder)) / f"{file_word(device)}-{key}"


def originals_dir() -> Path:
    """Where the scores of checkpoints are kept."""
    return cache_dir() / "originals"


def verdict_path(folder: Path, *, device: str, driver: str, runtime_version: str) -> Path:
    """Where the verdict on a converted folder is kept; the words are those of `compiled_dir`."""
    model = _compiled_of(folder, _manifest(folder)).name
    key = _hash8([device, driver, runtime_version])
    return cache_dir() / "verdicts" / model / f"{file_word(device)}-{key}.json"


def entries() -> list[Entry]:
    """Every converted model in the cache, by name; conversions under way are not among them."""
    models = cache_dir() / "models"
    return [_entry(folder) for model in _folders(models) for folder in _folders(model)]


def select(name: str) -> list[Entry]:
    """The entries that a name means: one by its full name, or all of a model.

    raises   ModelNotFoundError
    """
    all_entries = entries()
    wanted = name.replace("\\", "/").strip("/")
    words = {wanted, _model_word(wanted)} if wanted else set()
    found = [entry for entry in all_entries if entry.name == wanted or entry.folder.parent.name in words]
    if not found:
        names = ", ".join(entry.name for entry in all_entries)
        raise ModelNotFoundError(
            f"there is no converted model {name!r} in {cache_dir()}",
            hint=f"possible are {names}" if names else "no model has been converted yet",
        )
    return found


def remove(name: str) -> list[Entry]:
    """Delete the entries that `name` means, with what was compiled from them, and what crashes left.

    raises   ModelNotFoundError; StorageError if a file is in use or must not be deleted
    """
    found = select(name)
    for entry in found:
        compiled = _compiled_of(entry.folder, entry.manifest)
        _delete(entry.folder)
        if compiled.is_dir():
            _delete(compiled)
    remove_stale()
    return found


def compiled_elsewhere() -> list[Path]:
    """What was compiled from models that are not in the cache: converted to another place, or gone."""
    listed = {_compiled_of(entry.folder, entry.manifest) for entry in entries()}
    return [folder for folder in _folders(cache_dir() / "compiled") if folder not in listed]


def remove_compiled_elsewhere() -> int:
    """Delete it, and say how many bytes that freed.

    raises   StorageError if a file is in use
    """
    folders = compiled_elsewhere()
    freed = sum(bytes_below(folder) for folder in folders)
    for folder in folders:
        _delete(folder)
    return freed


def remove_stale() -> None:
    """Delete what conversions that died have left behind; those under way are left alone."""
    for partial in (cache_dir() / "models").glob(f"*/{PARTIAL_PREFIX}*"):
        changed = max((path.stat().st_mtime for path in (partial, *partial.rglob("*"))), default=0.0)
        if time.time() - changed > _STALE_S:
            _delete(partial)
    for model in _folders(cache_dir() / "models"):
        if not any(model.iterdir()):
            model.rmdir()


def verify(folder: Path, *, contents: bool = True) -> list[str]:
    """What is wrong with a converted folder, one sentence a file; nothing if it is as it was written.

    contents  False looks at names and sizes only, and reads no weights
    raises    CheckpointError if aipc.json itself is missing or damaged, or a file cannot be read
    """
    expected = Manifest.read(folder).files
    here = set(file_names(folder))
    # A file of the wrong size is wrong without being read.
    unread = {name: FileRecord(-1, "") for name in here if _size_differs(folder, name, expected)}
    assumed = {} if contents else expected
    found = hash_files(folder, known={**assumed, **unread})
    problems = [f"{name} is missing" for name in expected if name not in here]
    for name, record in found.items():
        if name not in expected:
            problems.append(f"{name} does not belong there")
        elif name in unread:
            size = (folder / name).stat().st_size
            problems.append(f"{name} has {size:,} bytes instead of {expected[name].bytes:,}")
        elif record != expected[name]:
            problems.append(f"{name} is damaged: its sha256 has changed")
    return sorted(problems)


def _size_differs(folder: Path, name: str, expected: Mapping[str, FileRecord]) -> bool:
    return name not in expected or (folder / name).stat().st_size != expected[name].bytes


def _entry(folder: Path) -> Entry:
    manifest = _manifest(folder)
    changed = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    return Entry(
        name=f"{folder.parent.name}/{folder.name}",
        folder=folder,
        bytes=bytes_below(folder),
        compiled_bytes=bytes_below(_compiled_of(folder, manifest)),
        created=manifest.created if manifest else changed,
        manifest=manifest,
    )


def _manifest(folder: Path) -> Manifest | None:
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        return Manifest.read(folder)
    except CheckpointError:
        return None


def _folders(parent: Path) -> Iterator[Path]:
    """The folders in `parent`, sorted: no links, nothing hidden, none under way."""
    try:
        found = sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise StorageError(f"{parent} cannot be read: {exc.strerror or exc}") from exc
    yield from (path for path in found if path.is_dir() and not path.is_symlink() and path.name[0] != ".")


def precision_word(recipe: Mapping[str, object]) -> str:
    """The recipe for people: "fp16", "int8_asym", "int4_sym_g128", "int4_sym_g128_r0.6"."""
    precision = str(recipe.get("weight_format", "unknown"))
    if precision in {"int8", "int4"}:
        precision += "_sym" if recipe.get("sym", True) else "_asym"
    if precision.startswith("int4"):
        group, ratio = recipe.get("group_size"), recipe.get("ratio", 1.0)
        precision += f"_g{group}" if isinstance(group, int) and group > 0 else ""
        precision += f"_r{ratio}" if ratio != 1.0 else ""
    return file_word(precision)


def bytes_below(folder: Path) -> int:
    """Of all files in a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _delete(folder: Path) -> None:
    """Take a folder of the cache away whole, or leave it whole where a file in it is in use.

    raises   StorageError
    """
    root = cache_dir().resolve()
    if folder.is_symlink() or not folder.resolve().is_relative_to(root) or folder.resolve() == root:
        raise StorageError(f"{folder} lies outside of the cache {root}, and is not removed")
    doomed = folder.with_name(f"{PARTIAL_PREFIX}removed-{os.getpid()}-{folder.name.lstrip('.')}")
    try:
        # Windows renames no folder in which a file is open: so nothing is half removed.
        move(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as exc:
        raise StorageError(
            f"{folder} cannot be removed: {exc.strerror or exc}",
            hint="close the program that uses the model, and check that you may write to the cache",
        ) from exc


def _compiled_of(folder: Path, manifest: Manifest | None) -> Path:
    """All that was compiled from one model, on whatever device."""
    digest = manifest.digest if manifest else fingerprint(folder)
    return cache_dir() / "compiled" / digest[:16]


def _folder_word(identity: str, recipe: Mapping[str, object], runtime: str) -> str:
    key = _hash8([FORMAT, identity, dict(recipe), runtime])
    return f"{file_word(runtime)}-{precision_word(recipe)}-{key}"


def _model_word(name: str) -> str:
    """A folder's name for a model, the same for an alias and for the hub id behind it."""
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or path.is_dir():
        return file_word(path.expanduser().resolve().name)
    aliases = {repository.lower(): alias for alias, repository in ALIASES.items()}
    try:
        repository = repository_of(name)
    except ModelNotFoundError:
        return file_word(path.name)
    return aliases.get(repository.lower(), file_word(repository.replace("/", "--")))


def file_word(text: str) -> str:
    """A text as part of a file's name, on every system."""
    word = re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:64].rstrip(".") or "model"
    return f"model-{word}" if is_device_name(word) else word


def _hash8(values: list[object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
