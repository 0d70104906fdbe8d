"""An audit's wall time against its denoiser evaluations alone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from audit import demo
from audit.auditor import Auditor
from audit.bench.markdown import markdown
from audit.budget import Budget
from tests.benchmarks.common import bare_seconds, calls_of, checkpoint, reference, truth

AUDITS = 12


def run() -> str:
    """The table, as Markdown."""
    auditor, budget = Auditor(checkpoint(), reference(), demo.calibration()), Budget()
    prompts = [row.prompt for row in truth()[:: max(1, len(truth()) // AUDITS)]][:AUDITS]
    for prompt in prompts:  # the first visit reconstructs reference images, later ones remember them
        auditor.audit(prompt, budget=budget)
    ratios, shares = [], []
    for prompt in prompts:
        calls, _ = calls_of(partial(auditor.audit, prompt, budget=budget))
        # Bare forward passes right before each audit, so that both see the same neighbours on the machine.
        bare = bare_seconds(calls)
        cost = auditor.audit(prompt, budget=budget).cost
        extra = cost.stage_seconds["decoding"] + cost.stage_seconds["searching"]
        ratios.append((cost.compute_seconds - extra) / bare)
        shares.append(extra / cost.compute_seconds)
    low, high = np.quantile(ratios, [0.1, 0.9])
    rows = [[f"{np.median(ratios):.3f}", f"{low:.3f} to {high:.3f}", f"{np.median(shares):.0%}"]]
    error = np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    return f"""# Overhead of an audit

`python -m tests.benchmarks overhead`: {len(prompts)} audits at the default budget, one after another; wall time
without decoding and search over the time that the bare UNet takes for the same calls, measured right before. Standard
error of the mean {error:.3f}.

{markdown(["median ratio", "10% to 90%", "decoding and search, share of the audit"], rows)}
"""
