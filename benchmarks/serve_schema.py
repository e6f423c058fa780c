"""Asks a server everything that its OpenAPI document allows, and much that it does not.

    python benchmarks/serve_schema.py [--cases 5000] [--seed 0]

schemathesis makes requests from the document and checks each answer against it: no 5xx, no hang, no status,
content type or body that the document does not have. Most requests name the demo model, a place for it and a
small limit of tokens, so that they reach it. Ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from peers import default_envs, peer_command
from serving_process import serving

HANG_S = 60
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# schemathesis finds these among what it generates; the server is asked for its demo model in most.
HOOKS = """
import schemathesis

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
PLACES = ({"device": None, "runtime": None}, {"device": "CPU", "runtime": "openvino"})

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and len(str(body)) % 8:
        body = {**body, "model": "demo", **PLACES[len(str(body)) % 2]}
        if context.operation.path.startswith("/v1/"):
            body |= {name: min(body[name], 8) for name in LIMITS if isinstance(body.get(name), int)}
            body.setdefault("max_output_tokens" if "responses" in context.operation.path else "max_tokens", 8)
        else:
            options = body["options"] if isinstance(body.get("options"), dict) else {}
            body["options"] = {**options, "num_predict": 8}
    return body
"""


def run(url: str, cases: int, seed: int, folder: Path) -> int:
    """schemathesis' exit code."""
    document = httpx.get(f"{url}/openapi.json").json()
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    # What takes no input is asked only once.
    varied = sum("requestBody" in one or "parameters" in one for one in operations)
    hooks = folder / "hooks.py"
    hooks.write_text(HOOKS, encoding="utf-8")
    command = [
        str(peer_command("schemathesis", "schemathesis", default_envs())),
        "run",
        f"{url}/openapi.json",
        f"--checks={CHECKS}",
        "--phases=coverage,fuzzing",
        f"--max-examples={cases // varied + 1}",
        f"--seed={seed}",
        f"--request-timeout={HANG_S}",
        "--continue-on-failure",
        "--suppress-health-check=all",
        "--generation-database=none",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(hooks), "PYTHONPATH": str(folder)}
    return subprocess.run(command, check=False, env=environment, cwd=folder).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a server what its OpenAPI document allows, and more.")
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving("demo", "--queue", "1000") as server:
        started = time.monotonic()
        code = run(server.url, args.cases, args.seed, Path(folder))
        print(f"{time.monotonic() - started:.0f} s")
        alive = httpx.get(f"{server.url}/health").status_code == 200
        metrics = httpx.get(f"{server.url}/metrics").text
    counts = [line for line in metrics.splitlines() if line.startswith("aipc_requests_total")]
    total = int(sum(float(line.split()[-1]) for line in counts))
    print("\n".join(counts))
    print(f"{total} requests were answered; the server answers afterwards: {alive}")
    return 1 if code or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
