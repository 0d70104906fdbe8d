"""The server's settings: flags over environment variables over a YAML file over defaults.

Environment variables carry the prefix BASIN_, with two underscores between levels: BASIN_LISTEN, BASIN_LIMITS__SEEDS,
BASIN_CHECKPOINTS__MINE=/models/mine. Kubernetes hands out variables of that prefix for a service named basin
(BASIN_PORT, BASIN_SERVICE_HOST, ...), so no setting bears such a name and unknown variables are no error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from platformdirs import user_data_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from audit import demo
from audit.auditor import Budget
from audit.evidence.curvature import CurvatureSettings, Method
from audit.limits import MAX_DEFINITION_SAMPLES, MAX_IMAGE_SIDE, MAX_PROMPT_CHARACTERS, MAX_SEEDS
from audit.model.sampling import MAX_STEPS
from service.names import check_name
from service.prompt_sets import SHIPPED
from service.store.retention import Retention

#: Id of the checkpoint, and name of the reference set, that ship with Basin.
DEMO = "demo"


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line, meant for whoever wrote it."""


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


def _address_or_off(value: object) -> object:
    if value in ("off", "", False):  # a bare `off` is False in YAML
        return ""
    return _address(str(value))


Name = Annotated[str, AfterValidator(check_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointEntry(_Part):
    """A checkpoint that the server may load. A plain string is its folder.

    Attributes:
        folder: of the diffusers pipeline.
        device: a torch device.
        dtype: precision of the weights.
        calibration: its calibration file; calibration.json in the folder when None.
        preload: whether it is loaded when the server starts.
    """

    folder: Path
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    calibration: Path | None = None
    preload: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_folder(cls, value: object) -> object:
        return {"folder": value} if isinstance(value, str | Path) else value


class BudgetDefaults(_Part):
    """What an audit spends when its request does not say.

    Attributes:
        seeds: samples drawn.
        definition_samples: N.
        curvature: how curvature is measured.
    """

    seeds: int = Field(16, ge=2, le=MAX_SEEDS)
    definition_samples: int = Field(512, ge=2, le=MAX_DEFINITION_SAMPLES)
    curvature: Method = "lanczos"

    def budget(self) -> Budget:
        """As the auditor has it."""
        return Budget(
            seeds=self.seeds,
            definition_samples=self.definition_samples,
            curvature=CurvatureSettings(method=self.curvature),
        )


class Limits(_Part):
    """Bounds on requests.

    Attributes:
        prompt_characters: most characters in a prompt.
        seeds: most seeds in an audit.
        steps: most denoiser steps per image.
        image_side: longest side of a sample, in pixels.
        image_bytes: most bytes in an uploaded image.
        evaluations: most denoiser evaluations that an audit may plan.
        pixels: most pixels over all samples of an audit.
    """

    prompt_characters: int = Field(MAX_PROMPT_CHARACTERS, ge=1, le=MAX_PROMPT_CHARACTERS)
    seeds: int = Field(MAX_SEEDS, ge=2, le=MAX_SEEDS)
    steps: int = Field(MAX_STEPS, ge=1, le=MAX_STEPS)
    image_side: int = Field(1024, ge=1, le=MAX_IMAGE_SIDE)
    image_bytes: int = Field(8 * 2**20, ge=1, le=64 * 2**20)
    evaluations: int = Field(200_000, ge=1)
    pixels: int = Field(2**26, ge=1)


class RayPart(_Part):
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


class BatchPart(_Part):
    """Batches.

    Attributes:
        store: URL of the database that keeps them: an SQLite file, or PostgreSQL. "" for a file in the user's data
            folder.
        lanes: audits of batches worked on at once, beside those of callers.
        prompts: most prompts in a batch, over all of its checkpoints.
        runner: who works on them: this process, or a Ray cluster.
        ray: that cluster.
        lease_seconds: after which another server on the same store takes the work of one that is gone.
    """

    store: str = ""
    lanes: int = Field(8, ge=1, le=256)
    prompts: int = Field(1_000_000, ge=1)
    runner: Literal["local", "ray"] = "local"
    ray: RayPart = RayPart()
    lease_seconds: float = Field(60.0, ge=1, le=3600)

    @property
    def store_url(self) -> str:
        """Of the store, in any case."""
        return self.store or f"sqlite:///{user_data_path('basin')}/basin.db"


class Settings(BaseSettings):
    """Everything that a server can be told.

    Attributes:
        listen: HOST:PORT of gRPC; port 0 takes a free one.
        metrics: HOST:PORT of /metrics; "" or "off" for none.
        checkpoints: folders or entries by id.
        references: reference set folders by name.
        prompts: files of prompt sets by name; the shipped sets are always there.
        demo: whether the shipped checkpoint and reference set are there as `demo`; None: when no checkpoint is named.
        queue: most audits waiting.
        concurrent_audits: audits worked on at once.
        batch_rows: most rows in a forward pass.
        batch_wait_seconds: longest wait of a denoiser call for others to join it.
        threads: CPU threads inside one forward pass; 0 leaves it to torch.
        batches: what batches may take.
        budget: defaults of audits.
        limits: bounds on requests.
        retention: how long the store of batches keeps prompts, pictures and results.
        grace_seconds: how long audits in flight may go on after SIGTERM.
        log_level: least level that is logged.
        log_format: "auto" writes for people on a terminal and JSON otherwise.
    """

    model_config = SettingsConfigDict(
        env_prefix="BASIN_", env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    metrics: Annotated[str, BeforeValidator(_address_or_off)] = "127.0.0.1:9464"
    checkpoints: dict[Name, CheckpointEntry] = {}
    references: dict[Name, Path] = {}
    prompts: dict[Name, Path] = {}
    demo: bool | None = None
    queue: int = Field(64, ge=0, le=10_000)
    concurrent_audits: int = Field(16, ge=1, le=256)
    batch_rows: int = Field(128, ge=1, le=4096)
    batch_wait_seconds: float = Field(0.005, ge=0, le=1)
    threads: int = Field(0, ge=0, le=1024)
    batches: BatchPart = BatchPart()
    budget: BudgetDefaults = BudgetDefaults()
    limits: Limits = Limits()
    retention: Retention = Retention()
    grace_seconds: float = Field(30.0, ge=0, le=3600)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.with_demo and (DEMO in self.checkpoints or DEMO in self.references):
            raise ValueError(f"the name {DEMO!r} belongs to the shipped checkpoint: choose another, or set demo: false")
        if taken := SHIPPED.keys() & self.prompts.keys():
            raise ValueError(f"the name {min(taken)!r} belongs to a shipped prompt set: choose another")
        if not self.all_checkpoints:
            raise ValueError("there is no checkpoint to serve: name one, or leave demo on")
        if self.budget.seeds > self.limits.seeds:
            raise ValueError(f"budget.seeds is {self.budget.seeds}, limits.seeds only {self.limits.seeds}")
        return self

    @property
    def with_demo(self) -> bool:
        """Whether the shipped checkpoint and reference set are served."""
        return not self.checkpoints if self.demo is None else self.demo

    @property
    def all_checkpoints(self) -> dict[str, CheckpointEntry]:
        """Those named and the demo's, by id."""
        shipped = {DEMO: CheckpointEntry(folder=demo.CHECKPOINT)} if self.with_demo else {}
        return {**shipped, **self.checkpoints}

    @property
    def all_references(self) -> dict[str, Path]:
        """Those named and the demo's, by name."""
        shipped = {DEMO: demo.REFERENCE} if self.with_demo else {}
        return {**shipped, **self.references}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, file: the first that says something about a setting counts."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from all their sources.

    Args:
        config: a YAML file; the one that BASIN_CONFIG names when None.
        flags: settings by name, which win over every other source; None means not given.

    Raises:
        ConfigError: a source cannot be read, or a setting is unknown, missing or out of range.
    """
    if config is None and os.environ.get("BASIN_CONFIG"):
        config = Path(os.environ["BASIN_CONFIG"])
    if config is not None:
        _check_file(config)

    class FromFile(Settings):
        model_config = SettingsConfigDict(yaml_file=config)

    try:
        return FromFile(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(dict(found)) for found in error.errors())) from error
    except SettingsError as error:  # a variable that should hold JSON
        raise ConfigError(f"the configuration cannot be read: {str(error).splitlines()[0]}") from error


def _check_file(config: Path) -> None:
    """Raises ConfigError for a file that holds no settings at all."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {config}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {config} cannot be read") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        raise ConfigError(f"{config} is not valid YAML{where}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{config} must hold settings by name")


def _explain(error: dict[str, Any]) -> str:
    """One of pydantic's findings in one line."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"there is no setting {where}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
