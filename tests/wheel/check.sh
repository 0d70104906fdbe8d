#!/usr/bin/env bash
# Runs the installed wheel of one environment, away from the checkout.
# Usage: tests/wheel/check.sh BIN_DIR
set -euo pipefail

bin=$(cd "$1" && pwd)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cd "$empty"
unset PYTHONPATH PYTHONHOME

"$bin/pip" check

"$bin/python" - <<'PY'
import sys
from pathlib import Path

import audit
import service

for package in (audit, service):
    folder = Path(package.__file__).parent
    assert folder.is_relative_to(sys.prefix), f"{folder} is not in {sys.prefix}"
    assert (folder / "py.typed").exists(), f"{folder} lacks py.typed"
assert (Path(audit.__file__).parent / "phase" / "page.html.j2").exists(), "the page's template is missing"
for name in (
    "pages/page.html.j2", "pages/report.html.j2", "pages/comparison.html.j2", "pages/table.js", "ordinary_prompts.txt",
    "store/migrations/env.py",
):
    assert (Path(service.__file__).parent / name).exists(), f"{name} is missing"
PY

prompt=$("$bin/python" -c 'from audit.demo import prompts; print(prompts()[0])')
"$bin/basin" audit --local --checkpoint demo --reference demo --format json "$prompt" >report.jsonl
"$bin/python" - "$prompt" <<'PY'
import json
import sys
from pathlib import Path

(line,) = Path("report.jsonl").read_text().splitlines()
report = json.loads(line)
assert report["prompt"] == sys.argv[1], report["prompt"]
assert report["verdict"] in {"memorized", "spurious", "generalized"}, report["verdict"]
print(f"wheel: {report['prompt']!r} is {report['verdict']}")
PY
