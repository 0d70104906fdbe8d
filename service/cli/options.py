"""Flags that several commands share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.errors import InvalidInput
from audit.v1 import audit_pb2
from service.pictures import Pictures

if TYPE_CHECKING:
    from service.client import BasinClient

DEFAULT_SERVER = "localhost:50051"
SAMPLER = "Sampler"
BUDGET = "Budget"
RAY = "Ray"
#: What a source of a checkpoint may be; see `audit.model.checkpoint_source`.
SOURCE = "a folder, OWNER/NAME@REVISION, or FILE.safetensors,config=FOLDER"


Offload = Annotated[
    bool, typer.Option("--offload", help="Keep text encoders and autoencoder on the device only while they are used.")
]


def check_where(
    context: typer.Context, *, local: bool, timeout: float | None, device: str, dtype: str, offload: bool
) -> None:
    """Refuse flags of a server with --local, and flags of --local without it.

    Raises:
        InvalidInput: there are some.
    """
    source = context.get_parameter_source("server")
    if local and ((source is not None and source.name == "COMMANDLINE") or timeout is not None):
        raise InvalidInput("--local audits without a server", reason="FLAGS_CONFLICT", field="local")
    if not local and (device or dtype or offload):
        raise InvalidInput("--device, --dtype and --offload need --local", reason="FLAGS_CONFLICT", field="device")


def client(server: str, *, timeout: float | None = None) -> BasinClient:
    """A client of a server, with the token and the certificates that the environment names.

    Args:
        server: HOST:PORT or https://HOST:PORT.
        timeout: seconds that one call may take.

    Raises:
        InvalidInput: something of them cannot be used.
    """
    from service.channel import Identity
    from service.client import BasinClient

    def file(variable: str) -> Path | None:
        return Path(os.environ[variable]) if os.environ.get(variable) else None

    identity = Identity(
        token=os.environ.get("BASIN_TOKEN", ""),
        ca=file("BASIN_TLS_CA"),
        certificate=file("BASIN_TLS_CERTIFICATE"),
        key=file("BASIN_TLS_KEY"),
    )
    return BasinClient(server, timeout=timeout, identity=identity)


def finite(option: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of every option that takes a float: to click, NaN is in every range.

    Raises:
        InvalidInput: it is infinite, or no number.
    """
    if value is not None and not math.isfinite(value):
        name = option.name or ""
        raise InvalidInput(f"{option.opts[0]} must be finite, not {value}", reason="VALUE_INVALID", field=name)
    return value


Scheduler = Annotated[
    str,
    typer.Option(
        rich_help_panel=SAMPLER,
        help="ddim, ddpm, euler, euler-ancestral, dpm++2m, unipc, pndm or lcm; flow-euler where it flows.",
    ),
]
Steps = Annotated[int | None, typer.Option(rich_help_panel=SAMPLER, help="Denoiser steps per image.")]
Guidance = Annotated[
    float | None,
    typer.Option(rich_help_panel=SAMPLER, callback=finite, help="Weight of classifier-free guidance; 1 is none."),
]
TrueGuidance = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=SAMPLER,
        callback=finite,
        help="Weight of classifier-free guidance where --guidance is embedded.",
    ),
]
NegativePrompt = Annotated[
    str, typer.Option(rich_help_panel=SAMPLER, help="Conditions the other branch of the guidance.")
]
Size = Annotated[str, typer.Option(rich_help_panel=SAMPLER, metavar="N|HxW", help="Of the images, in pixels.")]
Eta = Annotated[float | None, typer.Option(rich_help_panel=SAMPLER, callback=finite, help="Stochasticity of DDIM.")]
Seed = Annotated[int | None, typer.Option(rich_help_panel=BUDGET, help="The first of the consecutive noise seeds.")]
Seeds = Annotated[int | None, typer.Option(rich_help_panel=BUDGET, help="Noise seeds drawn per prompt at most.")]
MinimumSeeds = Annotated[
    int | None, typer.Option(rich_help_panel=BUDGET, help="Noise seeds drawn per prompt at least.")
]
DefinitionSamples = Annotated[
    int | None, typer.Option(rich_help_panel=BUDGET, help="Fractions are those expected among so many samples.")
]
FailOn = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help="Exit with 3 if it holds, such as 'failed > 0'; repeat it."),
]
FalseDiscoveries = Annotated[
    float,
    typer.Option(
        metavar="RATE", min=0.0, max=1.0, callback=finite, help="Expected share of errors among the prompts found."
    ),
]
Store = Annotated[str, typer.Option(metavar="URL", help="Database of results, when it takes a password or was moved.")]
Curvature = Annotated[str, typer.Option(rich_help_panel=BUDGET, help="lanczos, dense or off.")]

Runner = Annotated[
    str, typer.Option(rich_help_panel=RAY, metavar="local|ray", help="Who audits: this process, or a Ray cluster.")
]
RayAddress = Annotated[
    str, typer.Option(rich_help_panel=RAY, metavar="HOST:PORT", help="The cluster's head; auto for this machine's.")
]
RayWorkers = Annotated[
    int, typer.Option(rich_help_panel=RAY, min=0, help="Processes with a checkpoint each; 0 for all there is room for.")
]
RayCpus = Annotated[float, typer.Option(rich_help_panel=RAY, min=0.1, callback=finite, help="CPUs of each worker.")]
RayGpus = Annotated[
    float, typer.Option(rich_help_panel=RAY, min=0, callback=finite, help="GPUs of each worker, such as 0.5.")
]

PicturesKept = Annotated[Pictures, typer.Option(help="Which results keep their images.")]


class Depth(StrEnum):
    """What `--depth` may be."""

    SCREEN = "screen"
    FULL = "full"


class Format(StrEnum):
    """What `--format` may be."""

    TABLE = "table"
    JSON = "json"


def requested(flags: Mapping[str, Any], **subject: Any) -> audit_pb2.AuditRequest:
    """The sampler and the budget that the flags above ask for, in a request about a subject.

    Args:
        flags: values by the names of a command's parameters; None means not given. Not all commands have a budget.
        subject: other fields of the request.

    Raises:
        InvalidInput: a value does not fit its field.
    """
    sides = parse_size(flags["size"])
    request = audit_pb2.AuditRequest()
    sampler = {
        name: flags[name] for name in ("scheduler", "steps", "guidance", "true_guidance", "negative_prompt", "eta")
    }
    sampler |= {"height": sides and sides[0], "width": sides and sides[1]}
    budget = {name: flags.get(name) for name in ("seeds", "minimum_seeds", "definition_samples", "curvature")}
    for message, values in (
        (request, subject), (request.sampler, sampler), (request.budget, budget | {"first_seed": flags.get("seed")}),
    ):  # fmt: skip
        for name, value in values.items():
            if value is not None:
                try:
                    setattr(message, name, value)
                except (ValueError, UnicodeError) as error:
                    problem = "is not text" if isinstance(value, str) else f"is out of range: {value}"
                    raise InvalidInput(f"{name} {problem}", reason="VALUE_INVALID", field=name) from error
    return request


def parse_size(size: str) -> tuple[int, int] | None:
    """Height and width of "N" or "HxW"; None of "".

    Raises:
        InvalidInput: it is neither.
    """
    if not size:
        return None
    sides = size.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise InvalidInput(f"size must be N or HxW, not {size!r}", reason="SIZE_INVALID", field="size")
    return int(sides[0]), int(sides[-1])
