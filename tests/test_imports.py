"""Who may import whom, and what is loaded before it is needed. The tables are the architecture."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

import aipc
import stand_in

PACKAGE = Path(aipc.__file__).parent

# A room is a module or package of aipc. Two files of runtimes are rooms of their own: base, which only
# describes runtimes, and orphans, which starts processes.
# Every room may import these, and itself:
FREE = {"errors", "types", "windows_files"}
ARROWS = {
    "__main__": {"cli"},
    "cli": {
        "aipc",
        "bench",
        "cache",
        "choice",
        "compiled",
        "doctor",
        "inventory",
        "measurements",
        "model",
        "monitor",
        "npu_compile",
        "serve",
        "verification",
    },
    "serve": {
        "aipc",
        "cache",
        "choice",
        "hub",
        "inventory",
        "model",
        "monitor",
        "plan",
        "prepare",
        "runtimes.base",
        "selectors",
        "text",
        "verdicts",
    },
    "bench": {
        "aipc",
        "conversion",
        "hardware",
        "inventory",
        "manifest",
        "measurements",
        "model",
        "monitor",
        "phi3",
        "plan",
        "prepare",
        "selectors",
    },
    "measurements": {"cache", "hardware", "hub", "phi3"},
    "aipc": {"inventory", "model", "prepare", "verification"},
    "npu_compile": {"compiled", "inventory", "preflight", "prepare", "runtimes.base"},
    "model": {
        "choice",
        "inventory",
        "longrope",
        "monitor",
        "plan",
        "prepare",
        "text",
        "verdicts",
        "runtimes.base",
    },
    "choice": {"inventory", "measurements", "model_size", "plan", "prepare", "selectors"},
    "model_size": {"cache", "conversion", "hub", "phi3", "runtimes.base"},
    "plan": {"inventory", "runtimes.base", "selectors"},
    "inventory": {"hardware", "runtimes", "runtimes.base", "selectors"},
    "selectors": {"runtimes.base"},
    "hardware": set(),
    "doctor": {
        "aipc",
        "cache",
        "conversion",
        "hardware",
        "hub",
        "inventory",
        "model_size",
        "phi3",
        "runtimes",
        "runtimes.base",
    },
    "transformers": {"aipc", "model"},
    "monitor": {"hardware", "runtimes.orphans"},
    "prepare": {
        "cache",
        "conversion",
        "hub",
        "longrope",
        "manifest",
        "memory",
        "phi3",
        "preflight",
        "runtimes.base",
    },
    "verdicts": {"cache", "phi3", "runtimes.base"},
    "verification": {
        *("cache", "conversion", "decoder", "hub", "inventory", "manifest", "model", "phi3", "preflight"),
        *("prepare", "text", "verdicts", "runtimes.base"),
    },
    "cache": {"hub", "manifest"},
    "hub": {"demo", "hub_download", "phi3", "runtimes.base"},
    "hub_download": {"aipc", "hub", "phi3", "runtimes.base"},
    "conversion": {"decoder", "manifest", "phi3", "text"},
    "decoder": {"longrope", "phi3"},
    "runtimes": {
        "compiled",
        "decoder",
        "hardware",
        "longrope",
        "memory",
        "phi3",
        "preflight",
        "runtimes.base",
        "runtimes.orphans",
    },
    "text": {"phi3"},
    "manifest": {"phi3"},
    "preflight": {"phi3"},
    "compiled": {"longrope", "manifest", "phi3", "preflight"},
    "phi3": {"longrope"},
    "longrope": set(),
    "memory": set(),
    "runtimes.base": set(),
    "runtimes.orphans": set(),
    "demo": set(),
    "errors": set(),
    "types": set(),
    "windows_files": set(),
}

# Which files may import a package of others; what is not listed here is not imported at all.
OWNERS = {
    "openvino": ["*openvino*"],
    "openvino_genai": ["*openvino*"],
    "openvino_tokenizers": ["*openvino*"],
    "onnx": ["conversion/onnx_*.py", "verification/onnx_*.py"],
    "onnxruntime": ["*onnxruntime*"],
    "onnxruntime_genai": ["*onnxruntime*"],
    "llguidance": ["runtimes/onnxruntime_grammar.py"],
    "numpy": [
        *("conversion/*", "runtimes/*", "verification/*", "bench/machine.py"),
        *("decoder.py", "phi3.py", "hardware/instructions.py"),
    ],
    "tokenizers": ["text/*", "conversion/*tokenizer*.py"],
    "jinja2": ["text/*"],
    "huggingface_hub": ["hub.py", "hub_download.py"],
    "platformdirs": ["cache.py"],
    "psutil": [
        "bench/machine.py",
        "hardware/*",
        "doctor/model.py",
        "monitor/host.py",
        "runtimes/openvino_factors.py",
        "serve/pool.py",
    ],
    "pynvml": ["monitor/nvidia.py"],
    "resvg_py": ["bench/chart.py"],
    "rich": ["cli/console.py"],
    "torch": ["transformers/*"],
    "transformers": ["transformers/*"],
    "fastapi": ["serve/*"],
    "starlette": ["serve/*"],
    "pydantic": ["serve/*"],
    "uvicorn": ["serve/server.py"],
    "prometheus_client": ["serve/metrics.py"],
}

HEAVY = {
    "numpy",
    "openvino",
    "openvino_genai",
    "openvino_tokenizers",
    "onnx",
    "onnxruntime",
    "onnxruntime_genai",
    "llguidance",
    "jinja2",
    "tokenizers",
    "huggingface_hub",
    "resvg_py",
    "rich",
    "platformdirs",
    "torch",
    "transformers",
    "psutil",
    "fastapi",
    "pydantic",
    "uvicorn",
}


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(source: str, package: str) -> Iterator[str]:
    """The dotted names that a module imports anywhere, also by calls with a literal name.

    package   what its relative imports start from
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"require", "import_module"} and isinstance(node.args[0].value, str):
                yield node.args[0].value


def room_of(name: str) -> str:
    """The room of a dotted name in aipc; a plain name of the package itself, such as __version__, is free."""
    parts = name.split(".")[1:]
    if ".".join(parts[:2]) in {"runtimes.base", "runtimes.orphans"}:
        return ".".join(parts[:2])
    if not parts:
        return "aipc"
    return parts[0] if any(part.exists() for part in _places(parts[0])) else "errors"


def _places(room: str) -> tuple[Path, Path]:
    return PACKAGE / f"{room}.py", PACKAGE / room / "__init__.py"


def dotted(path: str) -> str:
    """The name of the module in a file of the package."""
    return f"aipc.{path.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")


def wrong_imports(path: str, source: str) -> list[str]:
    """What a file of the package imports and may not."""
    module = dotted(path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    room = room_of(module)
    wrong = []
    for name in imports(source, package):
        top = name.partition(".")[0]
        if top == "aipc":
            allowed = room_of(name) in {room, *FREE, *ARROWS[room]}
        else:
            allowed = top in sys.stdlib_module_names or any(
                fnmatch(path, owner) for owner in OWNERS.get(top, [])
            )
        if not allowed:
            wrong.append(name)
    return wrong


def test_every_room_has_its_arrows_drawn() -> None:
    rooms = {room_of(dotted(path)) for path in modules()}
    assert rooms <= set(ARROWS)


@pytest.mark.parametrize("path", modules())
def test_the_arrows_hold(path: str) -> None:
    assert wrong_imports(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("conversion/convert.py", "from aipc.runtimes import openvino"),
        ("runtimes/openvino.py", "def f():\n    from aipc.conversion.folder import staged_folder"),
        ("runtimes/openvino.py", "from ..conversion import folder"),
        ("runtimes/reference.py", "from openvino import opset13"),
        ("runtimes/reference.py", "require('openvino_genai', 'openvino')"),
        ("runtimes/openvino.py", "import onnxruntime"),
        ("model.py", "import onnxruntime_genai as og"),
        ("model.py", "from aipc import cli"),
        ("cli/run.py", "from rich.console import Console"),
        ("model.py", "import torch"),
        ("text/tokenizer.py", "from transformers import AutoTokenizer"),
        ("conversion/quantize.py", "importlib.import_module('nncf.quantization')"),
        ("types.py", "from aipc.phi3 import Role"),
        ("model.py", "import aipc"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert len(wrong_imports(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("runtimes/openvino.py", "import openvino_genai as genai\nimport os.path"),
        ("hub.py", "from aipc.runtimes.base import RUNTIMES\nfrom aipc import __version__"),
        ("text/__init__.py", "from .stop import StopFilter\nfrom ..errors import UsageError"),
    ],
)
def test_a_right_import_is_let_through(path: str, source: str) -> None:
    assert wrong_imports(path, source) == []


def loaded_by(code: str) -> set[str]:
    """The modules that `code` adds to what the interpreter starts with."""
    show = "sys.stderr.write(' '.join(set(sys.modules) - bare))"
    script = f"import sys; bare = set(sys.modules); {code}; {show}"
    command = [sys.executable, "-c", script]
    environment = stand_in.environment()
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=environment)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import aipc",
        "import aipc.__main__",
        "from aipc.cli import main; main(['--help'])",
        "from aipc.cli import main; main(['run', '--help'])",
        "from aipc.cli import main; main(['convert', '--help'])",
        "from aipc.cli import main; main(['models', '--help'])",
        "from aipc.cli import main; main(['compile', '--help'])",
        "from aipc.cli import main; main(['plan', '--help'])",
        "from aipc.cli import main; main(['bench', '--help'])",
        "from aipc.cli import main; main(['devices', '--help'])",
        "from aipc.cli import main; main(['top', '--help'])",
        "from aipc.cli import main; main(['doctor', '--help'])",
        "from aipc.cli import main; main(['serve', '--help'])",
        "from aipc.cli import main; main(['verify', '--help'])",
        "from aipc.cli import main; main(['rnu'])",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code: str) -> None:
    assert loaded_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_the_help_costs_no_import(word: str) -> None:
    loaded = loaded_by(f"from aipc.cli import main; main(['{word}'])")
    assert loaded == {"__future__", "aipc", "aipc.cli"}
