"""What audits were made of and with: gathered from their reports, told in sentences, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict

from audit.v1 import report_pb2
from service.pages.text import count, moment
from service.results import OpenedRun


class Facts:
    """Of the audits of one checkpoint, gathered one by one."""

    def __init__(self) -> None:
        self._audits: dict[str, tuple[int, float]] = {}
        self._times: list[datetime] = []
        self._found: dict[str, dict[str, dict[str, Any]]] = {"subjects": {}, "budgets": {}, "software": {}}

    def add(self, key: str, reports: Iterable[report_pb2.Report | None]) -> None:
        """Take in the first and the second audit of a prompt.

        Args:
            key: of the first one; prompts that stand there twice were audited once.
            reports: None where there is none.
        """
        for part, report in zip(("first", "second"), reports, strict=True):
            if report is not None:
                self._audits[f"{part} {key}"] = (report.cost.evaluations, report.cost.compute_seconds)
                self._times.append(report.provenance.finish_time.ToDatetime(UTC))
                for kind, fact in (
                    ("subjects", _subject(report)),
                    ("budgets", {"audits": part, **_budget(report)}),
                    ("software", _software(report)),
                ):
                    self._found[kind].setdefault(json.dumps(fact, sort_keys=True), fact)

    def summary(self) -> dict[str, Any]:
        """All of them, for machines."""
        return {
            "cost": {
                "audits": len(self._audits),
                "evaluations": sum(evaluations for evaluations, _ in self._audits.values()),
                "compute_seconds": round(sum(seconds for _, seconds in self._audits.values()), 3),
            },
            "audited_from": min(self._times).isoformat() if self._times else None,
            "audited_to": max(self._times).isoformat() if self._times else None,
            **{kind: list(found.values()) for kind, found in self._found.items()},
        }


def describe_batch(run: OpenedRun) -> dict[str, Any]:
    """How the batch of a run stands, for machines."""
    batch = run.batch
    return {
        "id": batch.id,
        "state": batch.state,
        "note": batch.note,
        "created": batch.created.isoformat(),
        "finished": batch.finished.isoformat() if batch.finished else None,
        "prompts": batch.prompts,
        "false_discovery_rate": run.rate,
    }


def provenance(found: dict[str, Any]) -> dict[str, list[str]]:
    """What was audited with what, by label, a sentence per way in which it was done.

    Args:
        found: with what `Facts.summary` says.
    """
    told: dict[str, list[str]] = {}
    for one in _settings(found):
        if one.text not in told.setdefault(one.label, []):
            told[one.label].append(one.text)
    cost = found["cost"]
    told["cost"] = [
        f"{count(cost['audits'], 'audit')}, {count(cost['evaluations'], 'denoiser evaluation')}, "
        f"{cost['compute_seconds']:,.0f} s"
    ]
    if found["audited_from"]:
        begin, end = (moment(datetime.fromisoformat(found[name])) for name in ("audited_from", "audited_to"))
        told["audited"] = [f"{begin} to {end}"]
    return told


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, str]]:
    """What two sides were audited with differently, so that answers may differ for that reason.

    A checkpoint has thresholds of its own, so that two calibrations are no difference when each was made for its side.
    Nor are other noise seeds, or audits that only one side has.

    Args:
        before: with what `Facts.summary` says.
        after: with what it says of the other side.

    Returns:
        What differs, and a sentence about either side.
    """
    sides: list[dict[str, dict[object, str]]] = []
    for found in (before, after):
        sides.append({})
        for setting in _settings(found):
            if setting.compared:
                sides[-1].setdefault(setting.compared, {}).setdefault(setting.identity, setting.text)
    one, other = sides
    return [
        {"what": name, "before": "; ".join(one[name].values()), "after": "; ".join(other[name].values())}
        for name in one
        if name in other and one[name].keys() != other[name].keys()
    ]


@dataclass(frozen=True)
class _Setting:
    """Something that audits were made with.

    Attributes:
        label: of the list that it stands in.
        text: that tells it.
        compared: under which name it is compared with another side's; "" for not at all.
        identity: equal where it is the same.
    """

    label: str
    text: str
    compared: str = ""
    identity: object = None


def _settings(found: dict[str, Any]) -> Iterator[_Setting]:
    """Of all audits, many times over."""
    for subject in found["subjects"]:
        yield _Setting("pipeline", subject["family"])
        reference, embedder = subject["reference_digest"], subject["embedder_digest"]
        extent = "complete" if subject["reference_complete"] else "partial"
        size = count(subject["reference_size"], "image")
        text = f"{subject['reference']}: {extent}, {size}, {reference}" if reference else "none"
        yield _Setting("reference set", text, "reference set", (reference, extent))
        yield _Setting("CLIP model", embedder or "none", "CLIP model", embedder)
        sampler, calibration = subject["sampler"], subject["calibration"]
        negative = f", negative prompt {sampler['negative_prompt']!r}" if sampler["negative_prompt"] else ""
        guidance = f"guidance {sampler['guidance']:g}"
        if sampler.get("embedded"):
            guidance += f" embedded, true guidance {sampler['true_guidance']:g}"
        text = (
            f"{sampler['scheduler']}, {count(sampler['steps'], 'step')}, {guidance}, "
            f"η {sampler['eta']:g}, {sampler['width']}×{sampler['height']} pixels{negative}"
        )
        yield _Setting("sampler", text, "sampler", json.dumps(sampler, sort_keys=True))
        thresholds = f"δm {calibration['delta_m']:.3g}, δs {calibration['delta_s']:.3g}"
        digest = calibration["digest"] or "none: built-in defaults"
        fits = "made for this checkpoint and sampler" if calibration["fits"] else "made for others"
        identity = fits if calibration["fits"] else (digest, thresholds)
        yield _Setting("calibration", f"{digest}, {fits}, {thresholds}", "calibration", identity)
        samples = subject["definition_samples"]
        yield _Setting("fractions", f"expected among {count(samples, 'sample')}", "fractions", samples)
    for budget in found["budgets"]:
        levels = ", ".join(f"{level:.2g}" for level in budget["noise_levels"])
        where = f" at {count(budget['curvature_samples'], 'sample')}, σ {levels}" if levels else ""
        name = f"{budget['audits']} audits"
        least = f"{budget['minimum_seeds']} to " if budget["minimum_seeds"] < budget["seeds"] else ""
        seeds = f"{least}{count(budget['seeds'], 'seed')} from {budget['first_seed']}"
        spent = (budget["minimum_seeds"], budget["seeds"], budget["curvature"], where)
        yield _Setting("budget", f"{name}: {seeds}, curvature {budget['curvature']}{where}", f"budget of {name}", spent)
    for software in found["software"]:
        text = ", ".join(f"{name} {version}" for name, version in software.items() if name != "device")
        yield _Setting("software", text, "software", text)
        yield _Setting("device", software["device"], "device", software["device"])


def _subject(report: report_pb2.Report) -> dict[str, Any]:
    found = MessageToDict(report.subject, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    # A result of an earlier batch may have been made under another name.
    own = {name: value for name, value in found.items() if not name.startswith("checkpoint")}
    return own | {"reference_size": report.subject.reference_size}


def _budget(report: report_pb2.Report) -> dict[str, Any]:
    levels, asked = report.curvature, report.subject.budget
    return {
        "seeds": asked.seeds,
        "minimum_seeds": min(asked.minimum_seeds, asked.seeds),
        "first_seed": asked.first_seed,
        "curvature": asked.curvature,
        "curvature_samples": levels[0].samples if levels else 0,
        "noise_levels": [round(level.sigma, 4) for level in levels],
    }


def _software(report: report_pb2.Report) -> dict[str, Any]:
    made = report.provenance
    return {"basin": made.basin_version, **dict(sorted(made.libraries.items())), "device": made.device}
