from audit.v1 import report_pb2 as _report_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditRequest(_message.Message):
    __slots__ = ("prompt", "checkpoint", "reference", "sampler", "budget", "include_images", "request_id")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    checkpoint: str
    reference: str
    sampler: SamplerOptions
    budget: BudgetOptions
    include_images: bool
    request_id: str
    def __init__(self, prompt: _Optional[str] = ..., checkpoint: _Optional[str] = ..., reference: _Optional[str] = ..., sampler: _Optional[_Union[SamplerOptions, _Mapping]] = ..., budget: _Optional[_Union[BudgetOptions, _Mapping]] = ..., include_images: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class AuditResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: _report_pb2.Report
    def __init__(self, report: _Optional[_Union[_report_pb2.Report, _Mapping]] = ...) -> None: ...

class StreamAuditRequest(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: AuditRequest
    def __init__(self, audit: _Optional[_Union[AuditRequest, _Mapping]] = ...) -> None: ...

class StreamAuditResponse(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    report: _report_pb2.Report
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., report: _Optional[_Union[_report_pb2.Report, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "evaluations", "planned_evaluations", "queue_position")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    PLANNED_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    stage: str
    evaluations: int
    planned_evaluations: int
    queue_position: int
    def __init__(self, stage: _Optional[str] = ..., evaluations: _Optional[int] = ..., planned_evaluations: _Optional[int] = ..., queue_position: _Optional[int] = ...) -> None: ...

class SamplerOptions(_message.Message):
    __slots__ = ("scheduler", "steps", "guidance", "negative_prompt", "height", "width", "eta")
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    scheduler: str
    steps: int
    guidance: float
    negative_prompt: str
    height: int
    width: int
    eta: float
    def __init__(self, scheduler: _Optional[str] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., negative_prompt: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., eta: _Optional[float] = ...) -> None: ...

class BudgetOptions(_message.Message):
    __slots__ = ("seeds", "first_seed", "definition_samples", "curvature")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEED_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    seeds: int
    first_seed: int
    definition_samples: int
    curvature: str
    def __init__(self, seeds: _Optional[int] = ..., first_seed: _Optional[int] = ..., definition_samples: _Optional[int] = ..., curvature: _Optional[str] = ...) -> None: ...
