"""Makes the environments of the tools that aipc is compared with, each apart from the project's own.

    python benchmarks/peers.py [--envs FOLDER] optimum | genai | llama | schemathesis | langchain

prints the path of a Python that has the peer, at its pinned versions. The first call installs it;
later calls find it. optimum and genai take about 6 GB each with the default PyTorch wheel of Linux;
llama is compiled here, for this very processor, and needs a C++ compiler and a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import platformdirs

# optimum-intel 2.2.0 itself asks for transformers < 5.6; 5.5.4 is the newest of those. torch and
# torchvision must be of one build: "===" keeps pip from taking a "+cpu" torch that lies nearby.
# genai is onnxruntime-genai with what its model builder imports and does not ask for.
REQUIREMENTS = {
    "optimum": (
        "optimum-intel==2.2.0",
        "transformers==5.5.4",
        "torch===2.13.0",
        "torchvision===0.28.0",
        "nncf==3.4.0",
        "openvino==2026.4.1",
        "openvino-tokenizers==2026.4.1.0",
    ),
    "genai": (
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.31.1",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "transformers==5.5.4",
        "torch==2.13.0",
    ),
    "schemathesis": ("schemathesis==4.32.5",),
    "langchain": ("langchain-openai==1.7.3",),
    "llama": (
        "llama-cpp-python==0.3.36",
        "gguf==0.19.0",
        "numpy==2.4.6",
    ),
}
# llama.cpp for this machine's own instructions, without the part for images.
_BUILD_ENV = {
    "llama": {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
}
_STAMP = "aipc-peer.json"


def default_envs() -> Path:
    """Where the environments live unless asked otherwise: the user's cache, outside the repository."""
    return Path(platformdirs.user_cache_dir("aipc")) / "benchmark-peers"


def peer_python(name: str, envs: Path) -> Path:
    """The Python of the peer `name`, installed under `envs` if it is not there yet.

    raises   subprocess.CalledProcessError if pip cannot install it
    """
    folder = envs / name
    python = _executable(folder, "python")
    stamp = folder / _STAMP
    wanted = {"requirements": list(REQUIREMENTS[name]), "python": sys.version.split()[0]}
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == wanted:
        return python
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *REQUIREMENTS[name]]
    subprocess.run(pip, check=True, stdout=sys.stderr, env={**os.environ, **_BUILD_ENV.get(name, {})})
    # Written last: an environment without it was interrupted, and is made again.
    stamp.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    return python


def peer_command(name: str, program: str, envs: Path) -> Path:
    """The console program `program` in the environment of the peer `name`."""
    return _executable(peer_python(name, envs).parent.parent, program)


def _executable(folder: Path, program: str) -> Path:
    return folder / "Scripts" / f"{program}.exe" if os.name == "nt" else folder / "bin" / program


def main() -> None:
    parser = argparse.ArgumentParser(description="Install a peer of aipc and print its Python.")
    parser.add_argument("peer", choices=sorted(REQUIREMENTS))
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the environments")
    args = parser.parse_args()
    print(peer_python(args.peer, args.envs.resolve()))


if __name__ == "__main__":
    main()
