from audit.v1 import report_pb2 as _report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditRequest(_message.Message):
    __slots__ = ("prompt", "checkpoint", "reference", "sampler", "budget", "include_images", "request_id", "explain")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    checkpoint: str
    reference: str
    sampler: SamplerOptions
    budget: BudgetOptions
    include_images: bool
    request_id: str
    explain: bool
    def __init__(self, prompt: _Optional[str] = ..., checkpoint: _Optional[str] = ..., reference: _Optional[str] = ..., sampler: _Optional[_Union[SamplerOptions, _Mapping]] = ..., budget: _Optional[_Union[BudgetOptions, _Mapping]] = ..., include_images: _Optional[bool] = ..., request_id: _Optional[str] = ..., explain: _Optional[bool] = ...) -> None: ...

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

class ScreenRequest(_message.Message):
    __slots__ = ("prompts", "checkpoint", "sampler", "definition_samples")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: str
    sampler: SamplerOptions
    definition_samples: int
    def __init__(self, prompts: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[str] = ..., sampler: _Optional[_Union[SamplerOptions, _Mapping]] = ..., definition_samples: _Optional[int] = ...) -> None: ...

class ScreenResponse(_message.Message):
    __slots__ = ("results", "calibration", "threshold", "false_positive_rate", "cost")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ScreenResult]
    calibration: _report_pb2.CalibrationInfo
    threshold: float
    false_positive_rate: float
    cost: _report_pb2.Cost
    def __init__(self, results: _Optional[_Iterable[_Union[ScreenResult, _Mapping]]] = ..., calibration: _Optional[_Union[_report_pb2.CalibrationInfo, _Mapping]] = ..., threshold: _Optional[float] = ..., false_positive_rate: _Optional[float] = ..., cost: _Optional[_Union[_report_pb2.Cost, _Mapping]] = ...) -> None: ...

class ScreenResult(_message.Message):
    __slots__ = ("prompt", "flagged", "recurring_probability", "probabilities", "measurements", "fractions")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    RECURRING_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    FRACTIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    flagged: bool
    recurring_probability: float
    probabilities: _report_pb2.ClassValues
    measurements: _containers.RepeatedCompositeFieldContainer[_report_pb2.Measurement]
    fractions: _report_pb2.ClassValues
    def __init__(self, prompt: _Optional[str] = ..., flagged: _Optional[bool] = ..., recurring_probability: _Optional[float] = ..., probabilities: _Optional[_Union[_report_pb2.ClassValues, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[_report_pb2.Measurement, _Mapping]]] = ..., fractions: _Optional[_Union[_report_pb2.ClassValues, _Mapping]] = ...) -> None: ...

class InspectImageRequest(_message.Message):
    __slots__ = ("image", "prompt", "checkpoint", "reference", "sampler")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    prompt: str
    checkpoint: str
    reference: str
    sampler: SamplerOptions
    def __init__(self, image: _Optional[bytes] = ..., prompt: _Optional[str] = ..., checkpoint: _Optional[str] = ..., reference: _Optional[str] = ..., sampler: _Optional[_Union[SamplerOptions, _Mapping]] = ...) -> None: ...

class InspectImageResponse(_message.Message):
    __slots__ = ("verdict", "confidence", "decided", "probabilities", "reasons", "reconstruction_distance", "nearest_reference", "nearest_clip", "measurements", "basin", "sample_distances", "prompt", "image_digest", "subject", "cost", "provenance")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    NEAREST_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NEAREST_CLIP_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    BASIN_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_DISTANCES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    verdict: _report_pb2.Verdict
    confidence: float
    decided: bool
    probabilities: _report_pb2.ClassValues
    reasons: _containers.RepeatedScalarFieldContainer[str]
    reconstruction_distance: float
    nearest_reference: _report_pb2.Neighbor
    nearest_clip: _report_pb2.ClipNeighbor
    measurements: _containers.RepeatedCompositeFieldContainer[_report_pb2.Measurement]
    basin: BasinEvidence
    sample_distances: _containers.RepeatedScalarFieldContainer[float]
    prompt: str
    image_digest: str
    subject: _report_pb2.Subject
    cost: _report_pb2.Cost
    provenance: _report_pb2.Provenance
    def __init__(self, verdict: _Optional[_Union[_report_pb2.Verdict, str]] = ..., confidence: _Optional[float] = ..., decided: _Optional[bool] = ..., probabilities: _Optional[_Union[_report_pb2.ClassValues, _Mapping]] = ..., reasons: _Optional[_Iterable[str]] = ..., reconstruction_distance: _Optional[float] = ..., nearest_reference: _Optional[_Union[_report_pb2.Neighbor, _Mapping]] = ..., nearest_clip: _Optional[_Union[_report_pb2.ClipNeighbor, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[_report_pb2.Measurement, _Mapping]]] = ..., basin: _Optional[_Union[BasinEvidence, _Mapping]] = ..., sample_distances: _Optional[_Iterable[float]] = ..., prompt: _Optional[str] = ..., image_digest: _Optional[str] = ..., subject: _Optional[_Union[_report_pb2.Subject, _Mapping]] = ..., cost: _Optional[_Union[_report_pb2.Cost, _Mapping]] = ..., provenance: _Optional[_Union[_report_pb2.Provenance, _Mapping]] = ...) -> None: ...

class BasinEvidence(_message.Message):
    __slots__ = ("found", "critical_time", "noise_time", "log_volume", "levels")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    CRITICAL_TIME_FIELD_NUMBER: _ClassVar[int]
    NOISE_TIME_FIELD_NUMBER: _ClassVar[int]
    LOG_VOLUME_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    found: bool
    critical_time: int
    noise_time: int
    log_volume: float
    levels: _containers.RepeatedCompositeFieldContainer[BasinLevel]
    def __init__(self, found: _Optional[bool] = ..., critical_time: _Optional[int] = ..., noise_time: _Optional[int] = ..., log_volume: _Optional[float] = ..., levels: _Optional[_Iterable[_Union[BasinLevel, _Mapping]]] = ...) -> None: ...

class BasinLevel(_message.Message):
    __slots__ = ("timestep", "recovery")
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    timestep: int
    recovery: float
    def __init__(self, timestep: _Optional[int] = ..., recovery: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("scheduler", "steps", "guidance", "negative_prompt", "height", "width", "eta", "true_guidance")
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    TRUE_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    scheduler: str
    steps: int
    guidance: float
    negative_prompt: str
    height: int
    width: int
    eta: float
    true_guidance: float
    def __init__(self, scheduler: _Optional[str] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., negative_prompt: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., eta: _Optional[float] = ..., true_guidance: _Optional[float] = ...) -> None: ...

class BudgetOptions(_message.Message):
    __slots__ = ("seeds", "first_seed", "definition_samples", "curvature", "minimum_seeds")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEED_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_SEEDS_FIELD_NUMBER: _ClassVar[int]
    seeds: int
    first_seed: int
    definition_samples: int
    curvature: str
    minimum_seeds: int
    def __init__(self, seeds: _Optional[int] = ..., first_seed: _Optional[int] = ..., definition_samples: _Optional[int] = ..., curvature: _Optional[str] = ..., minimum_seeds: _Optional[int] = ...) -> None: ...
