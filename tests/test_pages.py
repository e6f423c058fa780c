"""Pages of mapped files that were only read are let go, large areas become huge pages; nothing is lost."""

from __future__ import annotations

import json
import mmap
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aipc.runtimes.pages import let_go_of_files

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


# In a process of its own, as all of its memory is looked at. The two areas may lie side by side as one.
HUGE = """
import json, mmap, sys
from pathlib import Path
from aipc.runtimes import pages

if sys.argv[1:]:
    pages._TRANSPARENT_HUGE_PAGES = Path(sys.argv[1])
content = bytes(range(256)) * (24 * 2**20 // 256)
full, sparse = (mmap.mmap(-1, len(content), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
full[:] = content
sparse[: 2**20] = content[: 2**20]

def in_use(name):
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

before = in_use("Rss:")
made = list(pages.make_huge())
huge, more = in_use("AnonHugePages:"), in_use("Rss:") - before
same = full[:] == content and sparse[: 2**20] == content[: 2**20] and not any(sparse[2**20 :])
print(json.dumps({"made": made, "huge": huge, "more": more, "same": same}))
"""


def pages_made_huge(*arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-c", HUGE, *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def makes_huge_pages() -> bool:
    """Whether the kernel does, by its version, and nobody has switched them off."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    return version >= (6, 1) and enabled.is_file() and "[never]" not in enabled.read_text(encoding="utf-8")


@pytest.mark.skipif(not makes_huge_pages(), reason="of Linux 6.1 and later, where huge pages are not off")
def test_large_areas_in_use_become_huge_pages() -> None:
    found = pages_made_huge()
    assert found["same"]
    assert set(found["made"]) == {2 * 2**20}
    assert found["huge"] >= 20 * 2**20
    assert found["more"] < 4 * 2**20, "what was never touched is no memory still"


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None])
def test_huge_pages_that_are_off_stay_off(tmp_path: Path, enabled: str | None) -> None:
    path = tmp_path / "enabled"
    if enabled is not None:
        path.write_text(enabled, encoding="utf-8")
    found = pages_made_huge(path)
    assert (found["made"], found["same"]) == ([], True)
