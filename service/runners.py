"""Who works on a batch: this process, or processes in a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from audit.auditor import Auditor
from audit.batch.local import LocalWorkers
from audit.batch.runner import Workers
from audit.batch.tasks import Subject
from audit.errors import InvalidInput
from audit.verdict.calibration import Calibration
from service.local import DEMO, find_source, open_checkpoint, open_reference
from service.sharing import share
from service.threads import Devices, alone, lone_threads

LOCAL, RAY = "local", "ray"
#: Audits at once in a process: enough to fill batches, few enough to hold their latents in memory.
LANES = 8
MAX_ROWS = 128
MAX_WAIT = 0.005


@dataclass(frozen=True)
class Source:
    """From what an auditor is made, here or elsewhere.

    Attributes:
        checkpoint: see `service.local.find_source`.
        reference: a reference set's folder, "demo", or "" for none.
        subject: what is audited.
        calibration: of the checkpoint; the built-in defaults when None.
        device: a torch device.
        dtype: a key of `service.local.DTYPES`.
        include_images: whether reports keep their pictures.
        offload: whether text encoders and autoencoder wait on the CPU until they are used.
    """

    checkpoint: str
    reference: str
    subject: Subject
    calibration: Calibration | None
    device: str
    dtype: str
    include_images: bool
    offload: bool = False


class Runner(Protocol):
    """Opens workers; they are closed when the context is left."""

    def __call__(
        self, source: Source, auditor: Callable[[], Auditor], on_pause: Callable[[str], None]
    ) -> AbstractContextManager[Workers]:
        """Open the workers of a checkpoint.

        Args:
            source: of the auditor.
            auditor: makes it in this process.
            on_pause: called with the reason while nobody can work, and with "" when somebody can again.
        """
        ...


@dataclass(frozen=True)
class RayOptions:
    """Where in which Ray cluster a batch runs.

    Attributes:
        address: HOST:PORT of the cluster's head, or "auto" for the cluster that this machine is part of.
        workers: processes with a loaded checkpoint each; 0 for as many as the cluster can hold.
        cpus: of each, above 0.
        gpus: of each; above 0, the checkpoint is on one, which processes may share.
    """

    address: str = "auto"
    workers: int = 0
    cpus: float = 1.0
    gpus: float = 0.0


def find_runner(name: str, device: str, options: RayOptions) -> Runner:
    """A runner by its name.

    Args:
        name: "local" or "ray".
        device: that the batch asks for.
        options: of Ray; not looked at by others.

    Raises:
        InvalidInput: there is no such runner, Ray is not installed, or an option is impossible.
        NotFound: the Ray cluster cannot be reached.
    """
    if name == LOCAL:
        return run_here
    if name != RAY:
        raise InvalidInput(f"unknown runner {name!r}; known: {LOCAL}, {RAY}", reason="RUNNER_UNKNOWN", field="runner")
    if device != "cpu":
        raise InvalidInput(
            f"Ray chooses the device: ask for GPUs with --ray-gpus, not for {device!r}",
            reason="DEVICE_NOT_OF_RAY",
            field="device",
        )
    if options.gpus > 1 and not options.gpus.is_integer():
        raise InvalidInput(
            f"a worker has a part of a GPU or whole ones, not {options.gpus:g}",
            reason="RAY_GPUS_INVALID",
            field="ray_gpus",
        )
    try:
        from audit.batch.ray import check_address
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "Ray is not installed: pip install 'basin-audit[ray]'", reason="RAY_NOT_INSTALLED", field="runner"
        ) from error
    check_address(options.address)
    return partial(_run_in_ray, options)


@contextmanager
def run_here(
    source: Source, auditor: Callable[[], Auditor], on_pause: Callable[[str], None] = lambda reason: None
) -> Iterator[LocalWorkers]:
    """A `Runner`: this process.

    Raises:
        InvalidInput: the auditor is not what is to be audited: its results would be kept under keys of another one.
    """
    devices, own = Devices(), auditor()
    if changed := source.subject.changed(own):
        raise InvalidInput(
            f"the {' and the '.join(changed)} of {own.checkpoint.name} is not what the batch began with",
            reason="SUBJECT_CHANGED",
            field="checkpoint",
        )
    with closing(devices), lone_threads(LANES, "audit") as pool:
        shared, batching = share(own.checkpoint, devices, max_rows=MAX_ROWS, max_wait=MAX_WAIT)
        with closing(batching):
            yield LocalWorkers(
                Auditor(shared, own.reference, own.calibration),
                batching,
                source.subject,
                pool=pool,
                lanes=LANES,
                include_images=source.include_images,
            )


@contextmanager
def _run_in_ray(
    options: RayOptions, source: Source, auditor: Callable[[], Auditor], on_pause: Callable[[str], None]
) -> Iterator[Workers]:
    """A `Runner`: processes in a Ray cluster, which this process joins meanwhile."""
    from audit.batch.ray import RayWorkers, connect

    elsewhere = replace(
        source,
        checkpoint=str(find_source(source.checkpoint).absolute()),
        reference=_absolute(source.reference),
        device="cuda" if options.gpus else "cpu",
    )
    with connect(options.address):
        yield RayWorkers(
            partial(run_copy, elsewhere),
            count=options.workers,
            lanes=LANES,
            cpus=options.cpus,
            gpus=options.gpus,
            on_pause=on_pause,
        )


@contextmanager
def run_copy(source: Source) -> Iterator[LocalWorkers]:
    """Workers in a process that loads everything itself.

    Raises:
        NotFound: a folder is not there.
        BrokenCheckpoint: the checkpoint cannot be loaded.
        BrokenReference: the reference set cannot be loaded.
        InvalidInput: there is no such device, or what is loaded is not what is to be audited.
    """
    with alone():
        loaded, _ = open_checkpoint(source.checkpoint, source.device, source.dtype, source.offload)
        reference = open_reference(source.reference) if source.reference else None
        with run_here(source, lambda: Auditor(loaded, reference, source.calibration)) as workers:
            yield workers


def _absolute(folder: str) -> str:
    """A folder as other processes find it, which are at work elsewhere."""
    return folder if folder in ("", DEMO) else str(Path(folder).absolute())
