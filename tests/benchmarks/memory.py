"""Resident memory of the server over 200 audits."""

from __future__ import annotations

import psutil

from audit.bench.markdown import markdown
from audit.v1 import audit_pb2
from tests.benchmarks.common import served, truth

AUDITS = 200


def run() -> str:
    """The table, as Markdown."""
    prompts = [row.prompt for row in truth()]
    with served() as (client, server):
        process = psutil.Process(server)
        resident = []
        for index in range(AUDITS):
            prompt = prompts[index % len(prompts)]
            client.audit(audit_pb2.AuditRequest(prompt=prompt, checkpoint="demo", reference="demo"))
            resident.append(process.memory_info().rss / 2**20)
    marks = [1, 10, 50, 100, 150, 200]
    rows = [[f"{resident[mark - 1]:,.0f} MB" for mark in marks]]
    return f"""# Memory of the server

`python -m tests.benchmarks memory`: resident memory of `basin serve` with the demo checkpoint and reference set after
so many audits at the default budget, over gRPC, over all {len(prompts)} prompts in turn. Largest
{max(resident):,.0f} MB; change over the last 100 audits {resident[-1] - resident[99]:+,.0f} MB.

{markdown([str(mark) for mark in marks], rows)}
"""
