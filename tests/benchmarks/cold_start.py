"""How long a server takes from its start to its first verdict."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np

from audit.bench.markdown import markdown
from audit.v1 import audit_pb2
from service.client import BasinClient
from tests.benchmarks.common import BENCHMARK_SEED, truth

RUNS = 5
PARTS = ("imports and ports", "load", "first audit", "second audit")
#: Whose import is looked at on its own, in a process each.
MODULES = ("torch", "diffusers", "transformers", "service.server")


def run() -> str:
    """The table, as Markdown."""
    runs = np.array([_start() for _ in range(RUNS)])
    imports = {module: [_import(module) for _ in range(RUNS)] for module in MODULES}
    shown = [[f"{np.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})" for values in runs.T]]
    own = [[f"{np.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})" for values in imports.values()]]
    return f"""# Cold start

`python -m tests.benchmarks cold_start`: `basin serve` with the demo checkpoint and reference set, from its start to its
log's "listening" and "ready", then two audits of the same prompt with 2 seeds and 2 steps; files in the page cache;
{RUNS} runs, median (range).

{markdown(PARTS, shown)}

Importing a module alone, in a process of its own:

{markdown(MODULES, own)}
"""


def _start() -> list[float]:
    command = [sys.executable, "-m", "service.cli", "serve", "--listen", "127.0.0.1:0", "--metrics", "off"]
    start = time.perf_counter()
    server = subprocess.Popen([*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        marks, address = [start], ""
        for line in server.stderr:
            event = json.loads(line) if line.startswith("{") else {"event": ""}
            if event["event"] in ("listening", "ready"):
                marks.append(time.perf_counter())
                address = event.get("address", address)
            if event["event"] == "ready":
                break
        request = audit_pb2.AuditRequest(prompt=truth()[0].prompt, checkpoint="demo", reference="demo")
        request.budget.MergeFrom(audit_pb2.BudgetOptions(seeds=2, first_seed=BENCHMARK_SEED, curvature="off"))
        request.sampler.steps = 2
        with BasinClient(address) as client:
            for _ in range(2):
                client.audit(request)
                marks.append(time.perf_counter())
    finally:
        server.terminate()
        server.communicate()
    return np.diff(marks).tolist()


def _import(module: str) -> float:
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
