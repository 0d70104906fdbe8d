"""The server's settings: flags over environment variables over a YAML file over defaults.

Environment variables carry the prefix BASIN_, with two underscores between levels: BASIN_LISTEN, BASIN_LIMITS__SEEDS,
BASIN_CHECKPOINTS__MINE=/models/mine. Kubernetes hands out variables of that prefix for a service named basin
(BASIN_PORT, BASIN_SERVICE_HOST, ...), so no setting bears such a name and unknown variables are no error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from audit import demo
from service.config_parts import (
    Address,
    AddressOrOff,
    AuthPart,
    BatchPart,
    BudgetDefaults,
    CheckpointEntry,
    Limits,
    Name,
    QuotaPart,
    ReferenceStorePart,
    TextOrOff,
    TlsPart,
)
from service.prompt_sets import SHIPPED
from service.store.retention import Retention

#: Id of the checkpoint, and name of the reference set, that ship with Basin.
DEMO = "demo"


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line, meant for whoever wrote it."""


class Settings(BaseSettings):
    """Everything that a server can be told.

    Attributes:
        listen: HOST:PORT of gRPC; port 0 takes a free one.
        health: HOST:PORT of a second port that answers health checks alone, in plain text and without tokens; "" or
            "off" for none.
        metrics: HOST:PORT of /metrics; "" or "off" for none.
        checkpoints: sources or entries by id.
        references: reference set folders by name.
        reference_store: reference sets that callers make.
        prompts: files of prompt sets by name; the shipped sets are always there.
        demo: whether the shipped checkpoint and reference set are there as `demo`; None: when no checkpoint is named.
        model_control: "explicit" lets callers load and unload checkpoints; "start" has those alone that are preloaded.
        checkpoint_memory_bytes: that loaded checkpoints may take together; 0 for no bound.
        queue_evaluations: most denoiser evaluations that callers' audits, waiting and at work, may still plan.
        concurrent_audits: audits worked on at once.
        batch_rows: most rows in a forward pass.
        batch_wait_seconds: longest wait of a denoiser call for others to join it.
        threads: CPU threads inside one forward pass; 0 leaves it to torch.
        batches: what batches may take.
        budget: defaults of audits.
        limits: bounds on requests.
        retention: how long the store of batches keeps prompts, pictures and results.
        tls: encryption of the gRPC port.
        auth: who may call.
        quotas: how much each client may ask for.
        reflection: whether the server tells its services to whoever asks.
        admin: whether calls that load, unload and delete are answered.
        audit_log: where it is written who asked what, and what the answer was: "stdout", a file, or "" or "off".
        audit_log_prompts: whether prompts stand there, and not only their digests.
        traces: where OpenTelemetry's traces go: URL of an OTLP collector over gRPC; "" or "off" for none.
        trace_ratio: share of the traces begun here that are kept.
        grace_seconds: how long calls in flight may go on after SIGTERM.
        log_level: least level that is logged.
        log_format: "auto" writes for people on a terminal and JSON otherwise.
    """

    model_config = SettingsConfigDict(
        env_prefix="BASIN_", env_nested_delimiter="__", env_ignore_empty=True, extra="forbid", frozen=True
    )

    listen: Address = "127.0.0.1:50051"
    health: AddressOrOff = ""
    metrics: AddressOrOff = "127.0.0.1:9464"
    checkpoints: dict[Name, CheckpointEntry] = {}
    references: dict[Name, Path] = {}
    reference_store: ReferenceStorePart = ReferenceStorePart()
    prompts: dict[Name, Path] = {}
    demo: bool | None = None
    model_control: Literal["explicit", "start"] = "explicit"
    checkpoint_memory_bytes: int = Field(0, ge=0)
    queue_evaluations: int = Field(200_000, ge=1)
    concurrent_audits: int = Field(16, ge=1, le=256)
    batch_rows: int = Field(128, ge=1, le=4096)
    batch_wait_seconds: float = Field(0.005, ge=0, le=1)
    threads: int = Field(0, ge=0, le=1024)
    batches: BatchPart = BatchPart()
    budget: BudgetDefaults = BudgetDefaults()
    limits: Limits = Limits()
    retention: Retention = Retention()
    tls: TlsPart = TlsPart()
    auth: AuthPart = AuthPart()
    quotas: QuotaPart = QuotaPart()
    reflection: bool = True
    admin: bool = True
    audit_log: TextOrOff = ""
    audit_log_prompts: bool = False
    traces: TextOrOff = ""
    trace_ratio: float = Field(1.0, ge=0, le=1)
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
        idle = [id_ for id_, entry in self.all_checkpoints.items() if not entry.preload]
        if idle and self.model_control == "start":
            raise ValueError(f"nothing would ever load the checkpoint {min(idle)!r}: model_control is start")
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
        shipped = {DEMO: CheckpointEntry(source=str(demo.CHECKPOINT))} if self.with_demo else {}
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
