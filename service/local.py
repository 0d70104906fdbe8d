"""Audits in this process, behind the same call as a server's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from audit import demo
from audit.auditor import Auditor
from audit.budget import Budget
from audit.errors import InvalidInput, Stopped
from audit.model.checkpoint import Checkpoint
from audit.model.checkpoint_source import CheckpointSource
from audit.model.loading import load_checkpoint
from audit.reference.images import read_upload
from audit.reference.reference_set import ReferenceSet
from audit.v1 import audit_pb2, report_pb2
from audit.verdict.calibration import Calibration
from audit.verdict.rule import DEFINITION_SAMPLES
from audit.work import Progress
from service import wire

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: The name of the checkpoint and of the reference set that ship with Basin.
DEMO = "demo"


class LocalAudits:
    """Audits of one checkpoint, loaded here. The fields `checkpoint` and `reference` of requests are not read.

    Args:
        checkpoint: see `find_source`.
        reference: a reference set's folder, "demo", or "" for none.
        device: a torch device.
        dtype: a key of `DTYPES`.
        offload: whether text encoders and autoencoder wait on the CPU until they are used.

    Raises:
        NotFound: there is no such folder.
        BrokenCheckpoint: the checkpoint cannot be loaded.
        BrokenReference: the reference set cannot be loaded.
        InvalidInput: no such device or precision.
    """

    def __init__(
        self,
        checkpoint: str,
        reference: str = "",
        *,
        device: str = "cpu",
        dtype: str = "float32",
        offload: bool = False,
    ) -> None:
        loaded, calibration = open_checkpoint(checkpoint, device, dtype, offload)
        self._auditor = Auditor(loaded, open_reference(reference) if reference else None, calibration)
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop what is running before its next denoiser call."""
        self._closed.set()

    def audit(
        self,
        request: audit_pb2.AuditRequest,
        on_progress: Callable[[audit_pb2.Progress], None] | None = None,
    ) -> report_pb2.Report:
        """Audit one prompt; see `audit.auditor.Auditor.audit`."""

        def tell(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(
                    audit_pb2.Progress(
                        stage=progress.stage,
                        evaluations=progress.evaluations,
                        planned_evaluations=progress.planned,
                    )
                )

        report = self._auditor.audit(
            request.prompt,
            sampler=self._auditor.resolve_sampler(**wire.sampler_overrides(request.sampler)),
            budget=wire.budget(request.budget, Budget()),
            include_images=request.include_images,
            explain=request.explain,
            on_progress=tell,
            check=self._check,
        )
        return wire.report_to_proto(report)

    def screen(self, request: audit_pb2.ScreenRequest) -> audit_pb2.ScreenResponse:
        """Screen prompts; see `audit.auditor.Auditor.screen`."""
        auditor, start = self._auditor, time.perf_counter()
        sampler = auditor.resolve_sampler(**wire.sampler_overrides(request.sampler))
        samples = request.definition_samples if request.HasField("definition_samples") else DEFINITION_SAMPLES
        found = auditor.screen(request.prompts, sampler=sampler, definition_samples=samples, check=self._check)
        seconds = time.perf_counter() - start
        return wire.screening_to_proto(request.prompts, found, auditor, sampler, seconds=seconds)

    def inspect(self, request: audit_pb2.InspectImageRequest) -> audit_pb2.InspectImageResponse:
        """Inspect an image; see `audit.auditor.Auditor.inspect`."""
        found = self._auditor.inspect(
            read_upload(request.image),
            request.prompt,
            sampler=self._auditor.resolve_sampler(**wire.sampler_overrides(request.sampler)),
            check=self._check,
        )
        return wire.inspection_to_proto(found, request.image)

    def _check(self) -> None:
        if self._closed.is_set():
            raise Stopped("the audit was stopped", reason="AUDIT_STOPPED")


def open_checkpoint(
    checkpoint: str, device: str, dtype: str, offload: bool = False
) -> tuple[Checkpoint, Calibration | None]:
    """A checkpoint and its own calibration, if it has one.

    Args:
        checkpoint: see `find_source`.
        device: a torch device.
        dtype: a key of `DTYPES`.
        offload: whether text encoders and autoencoder wait on the CPU until they are used.

    Raises:
        NotFound: there is no such folder.
        BrokenCheckpoint: the checkpoint cannot be loaded.
        InvalidInput: no such device or precision, or the calibration is none.
    """
    if dtype not in DTYPES:
        raise InvalidInput(
            f"unknown precision {dtype!r}; known: {', '.join(DTYPES)}", reason="DTYPE_UNKNOWN", field="dtype"
        )
    _check_device(device)
    source = find_source(checkpoint)
    loaded = load_checkpoint(source, name=name_of(checkpoint), device=device, dtype=DTYPES[dtype], offload=offload)
    return loaded, load_calibration(source)


def find_source(checkpoint: str) -> CheckpointSource:
    """Where a checkpoint is.

    Args:
        checkpoint: a line that `CheckpointSource.parse` understands, whose base may be "demo" for the checkpoint that
            ships with Basin.

    Raises:
        InvalidInput: it is none.
    """
    source = CheckpointSource.parse(checkpoint)
    return replace(source, base=str(demo.CHECKPOINT)) if source.base == DEMO else source


def load_calibration(source: CheckpointSource) -> Calibration | None:
    """A checkpoint's own calibration, if it has one.

    Raises:
        InvalidInput: it is none, or the one that was named is not there.
    """
    file = source.calibration_file
    return Calibration.load(file) if file is not None and (source.calibration or file.exists()) else None


def name_of(checkpoint: str) -> str:
    """What people call a checkpoint, or a reference set: "demo", or the name of its folder."""
    return CheckpointSource.parse(checkpoint).name


def open_reference(reference: str) -> ReferenceSet:
    """A reference set by its folder, or "demo" for the one that ships with Basin."""
    return ReferenceSet.load(demo.REFERENCE if reference == DEMO else Path(reference))


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InvalidInput(f"no device {device!r} here", reason="DEVICE_UNKNOWN", field="device") from error
