"""LangChain's ChatOpenAI, in an environment of its own, against `aipc serve`.

    python benchmarks/serve_langchain.py [--runtime onnxruntime]

It invokes, streams, batches, stops, counts tokens, asks for several answers, for structured output, for tools
and for a model that is not there; prints a line for each and ends with 1 if one did not do what LangChain
promises. Tools are asked of the demo model with Phi-4-mini's chat template: what it must call, it is held to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from aipc import demo
from peers import default_envs, peer_python
from serving_process import serving

CELL = Path(__file__).with_name("langchain_cell.py")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}"
    "{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|tool|>' + m['tools'] + '<|/tool|>' }}{% endif %}{{ '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_caller(folder: Path) -> Path:
    """The demo model, told of tools."""
    shutil.copytree(demo.path(), folder, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": TEMPLATE}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description="What LangChain's ChatOpenAI promises, against aipc serve.")
    parser.add_argument("--runtime", default="onnxruntime")
    args = parser.parse_args()
    python = peer_python("langchain", default_envs())
    with tempfile.TemporaryDirectory() as folder:
        caller = str(write_caller(Path(folder) / "caller"))
        with serving("demo", caller, "--runtime", args.runtime) as server:
            return subprocess.run([python, CELL, f"{server.url}/v1", caller], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
