"""Pages of mapped files: those that were only read are let go, and nothing is lost."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from aipc.runtimes.mapped import let_go_of_files

NBYTES = 64 * mmap.PAGESIZE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux only")


def resident_bytes(path: Path) -> int:
    """Of the file's pages in this process."""
    lines, found = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()), 0
    for line in lines:
        if line.endswith(f" {path}"):
            found += next(int(rest.split()[1]) for rest in lines if rest.startswith("Rss:")) * 1024
    return found


@pytest.mark.parametrize("name", ["weights", "weights with a - and spaces", "weights-é"])
def test_what_was_only_read_is_let_go(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / name, tmp_path.with_name("elsewhere")
    content = bytes(range(256)) * (NBYTES // 256)
    for file in (path, other):
        file.write_bytes(content)
    with path.open("rb") as file, other.open("rb") as elsewhere:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
        kept = mmap.mmap(elsewhere.fileno(), 0, mmap.MAP_PRIVATE)
    assert mapped[:] == kept[:] == content
    assert resident_bytes(path) == resident_bytes(other) == NBYTES
    let_go_of_files(tmp_path)
    assert (resident_bytes(path), resident_bytes(other)) == (0, NBYTES)
    assert mapped[:] == content, "it comes back"


def test_what_was_written_to_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(NBYTES))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[5] = 7
    let_go_of_files(tmp_path)
    assert mapped[5] == 7


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "blob"
    path.write_bytes(bytes(NBYTES))
    folder.mkdir()
    (folder / "weights").symlink_to(path)
    with (folder / "weights").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
    assert mapped[:] == bytes(NBYTES)
    let_go_of_files(folder)
    assert resident_bytes(path) == 0
