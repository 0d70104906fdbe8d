"""Parts of the server's settings: see `service.config`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from audit.budget import Budget
from audit.errors import InvalidInput
from audit.evidence.curvature import CurvatureSettings, Method
from audit.limits import MAX_DEFINITION_SAMPLES, MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS, MAX_SEEDS
from audit.model.checkpoint_source import CheckpointSource
from audit.model.sampling import MAX_STEPS
from service.names import check_name


def split_address(value: str) -> tuple[str, int]:
    """("127.0.0.1", 50051) from "127.0.0.1:50051"; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is no address.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})", value)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT")
    return match[1].strip("[]"), int(match[2])


def _address(value: str) -> str:
    split_address(value)
    return value


def _off_is_empty(value: object) -> object:
    return "" if value in ("off", False) else value  # a bare `off` is False in YAML


def _address_or_off(value: object) -> object:
    value = _off_is_empty(value)
    return value and _address(str(value))


def _source(value: str) -> str:
    try:
        return str(CheckpointSource.parse(value))
    except InvalidInput as error:
        raise ValueError(str(error)) from None


Name = Annotated[str, AfterValidator(check_name)]
Address = Annotated[str, AfterValidator(_address)]
AddressOrOff = Annotated[str, BeforeValidator(_address_or_off)]
#: Anything, or nothing, which is spelled "off" or "".
TextOrOff = Annotated[str, BeforeValidator(_off_is_empty)]


class Part(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointEntry(Part):
    """A checkpoint that the server may load. A plain string is its source.

    Attributes:
        source: a line that `audit.model.checkpoint_source.CheckpointSource.parse` understands, such as a folder.
        device: a torch device.
        dtype: precision of the weights.
        calibration: its calibration file, unless the source names one; calibration.json in a folder when None.
        preload: whether it is loaded when the server starts.
        offload: whether text encoders and autoencoder wait on the CPU until they are used.
    """

    source: Annotated[str, AfterValidator(_source)]
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    calibration: Path | None = None
    preload: bool = True
    offload: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_source(cls, value: object) -> object:
        return {"source": str(value)} if isinstance(value, str | Path) else value


class BudgetDefaults(Part):
    """What an audit spends when its request does not say.

    Attributes:
        seeds: samples drawn at most.
        minimum_seeds: samples drawn at least.
        definition_samples: N.
        curvature: how curvature is measured.
    """

    seeds: int = Field(32, ge=1, le=MAX_SEEDS)
    minimum_seeds: int = Field(4, ge=1, le=MAX_SEEDS)
    definition_samples: int = Field(512, ge=2, le=MAX_DEFINITION_SAMPLES)
    curvature: Method = "lanczos"

    def budget(self) -> Budget:
        """As the auditor has it."""
        return Budget(
            seeds=self.seeds,
            minimum_seeds=self.minimum_seeds,
            definition_samples=self.definition_samples,
            curvature=CurvatureSettings(method=self.curvature),
        )


class Limits(Part):
    """Bounds on requests.

    Attributes:
        prompt_characters: most characters in a prompt.
        seeds: most seeds in an audit.
        steps: most denoiser steps per image.
        image_side: longest side of a sample, in pixels.
        image_bytes: most bytes in an uploaded image.
        evaluations: most denoiser evaluations that an audit may plan.
        pixels: most pixels over all samples of an audit.
        prompts: most prompts in a screening.
    """

    prompt_characters: int = Field(MAX_PROMPT_CHARACTERS, ge=1, le=MAX_PROMPT_CHARACTERS)
    seeds: int = Field(MAX_SEEDS, ge=1, le=MAX_SEEDS)
    steps: int = Field(MAX_STEPS, ge=1, le=MAX_STEPS)
    image_side: int = Field(1024, ge=1, le=MAX_IMAGE_SIDE)
    image_bytes: int = Field(8 * 2**20, ge=1, le=64 * 2**20)
    evaluations: int = Field(200_000, ge=1)
    pixels: int = Field(2**26, ge=1)
    prompts: int = Field(256, ge=1, le=4096)


class RayPart(Part):
    """The Ray cluster that batches run on, where `batches.runner` is ray.

    Attributes:
        address: HOST:PORT of its head, or "auto" for the cluster that this machine is part of.
        workers: processes with a loaded checkpoint each; 0 for as many as the cluster can hold.
        cpus: of each.
        gpus: of each; above 0, the checkpoint is on one, which processes may share.
    """

    address: str = "auto"
    workers: int = Field(0, ge=0, le=1024)
    cpus: float = Field(1.0, gt=0, le=1024)
    gpus: float = Field(0.0, ge=0, le=1024)


class BatchPart(Part):
    """Batches.

    Attributes:
        store: URL of the database that keeps them: an SQLite file, or PostgreSQL. "" for a file in the user's data
            folder.
        lanes: audits of batches worked on at once, beside those of callers.
        prompts: most prompts in a batch, over all of its checkpoints.
        evaluations: most denoiser evaluations that all batches together may still have to make.
        runner: who works on them: this process, or a Ray cluster.
        ray: that cluster.
        lease_seconds: after which another server on the same store takes the work of one that is gone.
    """

    store: str = ""
    lanes: int = Field(8, ge=1, le=256)
    prompts: int = Field(1_000_000, ge=1)
    evaluations: int = Field(10_000_000_000, ge=1)
    runner: Literal["local", "ray"] = "local"
    ray: RayPart = RayPart()
    lease_seconds: float = Field(60.0, ge=1, le=3600)

    @property
    def store_url(self) -> str:
        """Of the store, in any case."""
        return self.store or f"sqlite:///{user_data_path('basin')}/basin.db"


class ReferenceStorePart(Part):
    """Reference sets that callers make.

    Attributes:
        folder: where they are kept; None: callers may make none.
        embedders: that they may have, by name, as `audit.reference.embedder.open_embedder` spells them.
        sets: most of them.
        images: most in each.
        bytes: that all of them may take together.
        stream_images: most images in a stream.
        stream_bytes: most bytes in a stream.
    """

    folder: Path | None = None
    embedders: dict[Name, str] = {}
    sets: int = Field(100, ge=1, le=10_000)
    images: int = Field(1_000_000, ge=1)
    bytes: int = Field(100 * 2**30, ge=1)
    stream_images: int = Field(10_000, ge=1, le=1_000_000)
    stream_bytes: int = Field(2**30, ge=1)


class TlsPart(Part):
    """Encryption of the gRPC port. The files are read again when they change.

    Attributes:
        certificate: PEM file of the server's certificate and those above it.
        key: PEM file of its key.
        client_ca: PEM file; when given, clients must show a certificate that it vouches for.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> TlsPart:
        if (self.certificate is None) is not (self.key is None):
            raise ValueError("give both a certificate and its key, or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs a certificate and its key")
        return self


class JwtPart(Part):
    """Bearer tokens that somebody else signs.

    Attributes:
        jwks: file of the keys that sign them (RFC 7517); read again when it changes.
        issuer: that they must name.
        audience: that they must name.
        scope_claim: which of their claims lists scopes, as a text with blanks or as a list.
    """

    jwks: Path
    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    scope_claim: str = Field("scope", min_length=1)


class AuthPart(Part):
    """Who may call. Without tokens and jwt, everybody who can connect.

    Attributes:
        tokens: YAML file of tokens by the name of their holder; read again when it changes.
        jwt: of tokens that somebody else signs.
    """

    tokens: Path | None = None
    jwt: JwtPart | None = None

    @property
    def on(self) -> bool:
        """Whether calls need a token."""
        return self.tokens is not None or self.jwt is not None


class Quota(Part):
    """A token bucket.

    Attributes:
        evaluations_per_second: denoiser evaluations that flow in.
        burst_evaluations: that it holds.
    """

    evaluations_per_second: float = Field(gt=0, allow_inf_nan=False)
    burst_evaluations: float = Field(gt=0, allow_inf_nan=False)


class QuotaPart(Part):
    """How much each client may ask for.

    Attributes:
        default: of clients that are not named; None for as much as they like.
        clients: by name.
    """

    default: Quota | None = None
    clients: dict[str, Quota] = {}
