"""Intel's NPU compiler on one folder, and what it said: compiled, or which node and which pass refused it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aipc.compiled import NPU_ONLY, Build, pipeline_properties
from aipc.preflight import MODEL_FILE
from aipc.runtimes.openvino_factors import folder_with_factors
from windows import Finished, Wine, compile_c, packages, require_debian_packages, windows_path

HERE = Path(__file__).parent
WHEELS = HERE / "windows-wheels.txt"

State = Literal["compiled", "refused", "crashed", "out of time"]

# A pass that fails on subgraphs which then compile without it, on every platform from 4000 on.
_OPTIONAL_PASSES = {"Debatcher"}
_FAILED_PASS = re.compile(r"Failed Pass (\w+) on Operation loc\((.*)\)")
_NODE = re.compile(r"""name = "([^"]*)", type = "([^"]*)"|[Nn]ode '([^']*)' \(type '([^']*)'\)""")
_COMPILER_SAYS = "Compiler returned msg:"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one folder and one platform.

    compile_s    of compiling and exporting; only where it compiled, like the two sizes
    words        of the compiler, where it refused
    node         "NAME (TYPE)", where it names one
    pass_name    of the compiler's own pass, where it names one
    """

    folder: str
    platform: str
    state: State
    compile_s: float | None = None
    peak_bytes: int | None = None
    blob_bytes: int | None = None
    words: str = ""
    node: str = ""
    pass_name: str = ""


class Compiler:
    """The compiler of OpenVINO's Windows package, under Wine; made ready in `cache`.

    raises   NotHereError
    """

    def __init__(self, cache: Path) -> None:
        require_debian_packages()
        self._cache = cache
        self._program = packages(cache, WHEELS, [HERE / "compile.c"], _build) / "compile.exe"
        self._wine = Wine(cache)

    def compile(self, folder: Path, build: Build, *, limit_s: float) -> Verdict:
        """Compile a folder as the NPU pipeline would, with no other device to fall back to."""
        properties = {
            "NPU_COMPILER_TYPE": "PLUGIN",
            "NPU_PLATFORM": build.platform,
            **NPU_ONLY,
            **pipeline_properties(build.prompt_tokens, build.answer_tokens),
        }
        name = folder.name + (f", {build.factors} factors" if build.factors else "")
        # A blob may be as large as the weights: too large for a /tmp in memory.
        with (
            tempfile.TemporaryDirectory(prefix=".partial-", dir=self._cache) as scratch,
            _told(folder, build) as model,
        ):
            blob = Path(scratch) / "model.blob"
            arguments = [windows_path(model / MODEL_FILE), windows_path(blob)]
            arguments += [f"{key}={value}" for key, value in properties.items()]
            done = self._wine.run(self._program, arguments, limit_s)
            return verdict(done, name, build.platform, blob.stat().st_size if blob.is_file() else 0)


def _told(folder: Path, build: Build) -> AbstractContextManager[Path]:
    """The folder that is compiled: this, or one with a single set of LongRoPE's factors."""
    return (
        nullcontext(folder)
        if build.factors is None
        else folder_with_factors(folder, long=build.factors == "long")
    )


def _build(folder: Path) -> None:
    compile_c(
        [
            *["-std=c11", "-O2", "-Wall", "-Wextra", f"-I{folder / 'include'}", HERE / "compile.c"],
            *[folder / "openvino_c.dll", "-lpsapi", "-o", folder / "compile.exe"],
        ]
    )


def verdict(done: Finished, folder: str, platform: str, blob_bytes: int) -> Verdict:
    """What a run of compile.exe says; compiled is only what left a blob and said so."""
    if done.code is None:
        return Verdict(folder, platform, "out of time")
    answer = _answer(done.stdout)
    if done.code == 0 and blob_bytes and "compile_s" in answer:
        return Verdict(
            folder, platform, "compiled", answer["compile_s"], int(answer["peak_bytes"]), blob_bytes
        )
    if "words" not in answer:
        where = f"while it should {answer['failed']}" if "failed" in answer else f"with code {done.code}"
        return Verdict(folder, platform, "crashed", words=f"{where}: {answer.get('crash', 'no word')}")
    words = _gist(answer["words"])
    pass_name, place = _failed_pass(done.stderr)
    return Verdict(
        folder,
        platform,
        "refused",
        words=words if answer["failed"] == "compile" else f"could not {answer['failed']} it: {words}",
        node=_node(place) or _node(words) or _node(_last_error(done.stderr)),
        pass_name=pass_name,
    )


def _answer(stdout: str) -> Mapping[str, Any]:
    """The line of JSON among what else was printed, or nothing."""
    for line in reversed(stdout.splitlines()):
        if line.startswith("{"):
            try:
                answer: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            return answer
    return {}


def _gist(words: str) -> str:
    """The compiler's own words, without the places in OpenVINO's source that they passed through."""
    _, _, said = words.rpartition(_COMPILER_SAYS)
    lines = [line.strip() for line in said.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))


def _failed_pass(log: str) -> tuple[str, str]:
    """The last pass that failed and was needed, and the place it failed at."""
    failed = [match for match in _FAILED_PASS.findall(log) if match[0] not in _OPTIONAL_PASSES]
    return failed[-1] if failed else ("", "")


def _last_error(log: str) -> str:
    errors = [
        line
        for line in log.splitlines()
        if "[ERROR]" in line and not any(name in line for name in _OPTIONAL_PASSES)
    ]
    return errors[-1] if errors else ""


def _node(text: str) -> str:
    match = _NODE.search(text)
    if match is None or "module" in match.groups():
        return ""
    name, kind = match[1] or match[3], match[2] or match[4]
    return f"{name} ({kind})"
