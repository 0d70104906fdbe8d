import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    memorized: _ClassVar[Verdict]
    spurious: _ClassVar[Verdict]
    generalized: _ClassVar[Verdict]
VERDICT_UNSPECIFIED: Verdict
memorized: Verdict
spurious: Verdict
generalized: Verdict

class Report(_message.Message):
    __slots__ = ("prompt", "verdict", "confidence", "decided", "probabilities", "fractions", "recurring_probability", "copies", "reasons", "stability", "curvature", "samples", "subject", "cost", "provenance", "measurements", "explanation", "gaps")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    FRACTIONS_FIELD_NUMBER: _ClassVar[int]
    RECURRING_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    verdict: Verdict
    confidence: float
    decided: bool
    probabilities: ClassValues
    fractions: ClassIntervals
    recurring_probability: float
    copies: CopyEvidence
    reasons: _containers.RepeatedScalarFieldContainer[str]
    stability: StabilityEvidence
    curvature: _containers.RepeatedCompositeFieldContainer[CurvatureEvidence]
    samples: _containers.RepeatedCompositeFieldContainer[SampleEvidence]
    subject: Subject
    cost: Cost
    provenance: Provenance
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    explanation: Explanation
    gaps: _containers.RepeatedCompositeFieldContainer[EvidenceGap]
    def __init__(self, prompt: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., confidence: _Optional[float] = ..., decided: _Optional[bool] = ..., probabilities: _Optional[_Union[ClassValues, _Mapping]] = ..., fractions: _Optional[_Union[ClassIntervals, _Mapping]] = ..., recurring_probability: _Optional[float] = ..., copies: _Optional[_Union[CopyEvidence, _Mapping]] = ..., reasons: _Optional[_Iterable[str]] = ..., stability: _Optional[_Union[StabilityEvidence, _Mapping]] = ..., curvature: _Optional[_Iterable[_Union[CurvatureEvidence, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[SampleEvidence, _Mapping]]] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., gaps: _Optional[_Iterable[_Union[EvidenceGap, _Mapping]]] = ...) -> None: ...

class EvidenceGap(_message.Message):
    __slots__ = ("evidence", "reason")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    evidence: str
    reason: str
    def __init__(self, evidence: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("words", "map", "words_method", "map_method", "samples")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    WORDS_METHOD_FIELD_NUMBER: _ClassVar[int]
    MAP_METHOD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    words: _containers.RepeatedCompositeFieldContainer[WordWeight]
    map: RecallMap
    words_method: str
    map_method: str
    samples: int
    def __init__(self, words: _Optional[_Iterable[_Union[WordWeight, _Mapping]]] = ..., map: _Optional[_Union[RecallMap, _Mapping]] = ..., words_method: _Optional[str] = ..., map_method: _Optional[str] = ..., samples: _Optional[int] = ...) -> None: ...

class WordWeight(_message.Message):
    __slots__ = ("word", "weight")
    WORD_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    word: str
    weight: float
    def __init__(self, word: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class RecallMap(_message.Message):
    __slots__ = ("height", "width", "values", "threshold")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    threshold: float
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., threshold: _Optional[float] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "value", "ordinary_lower", "ordinary_upper")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORDINARY_LOWER_FIELD_NUMBER: _ClassVar[int]
    ORDINARY_UPPER_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    ordinary_lower: float
    ordinary_upper: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., ordinary_lower: _Optional[float] = ..., ordinary_upper: _Optional[float] = ...) -> None: ...

class ClassValues(_message.Message):
    __slots__ = ("memorized", "spurious", "generalized")
    MEMORIZED_FIELD_NUMBER: _ClassVar[int]
    SPURIOUS_FIELD_NUMBER: _ClassVar[int]
    GENERALIZED_FIELD_NUMBER: _ClassVar[int]
    memorized: float
    spurious: float
    generalized: float
    def __init__(self, memorized: _Optional[float] = ..., spurious: _Optional[float] = ..., generalized: _Optional[float] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("estimate", "lower", "upper")
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    estimate: float
    lower: float
    upper: float
    def __init__(self, estimate: _Optional[float] = ..., lower: _Optional[float] = ..., upper: _Optional[float] = ...) -> None: ...

class ClassIntervals(_message.Message):
    __slots__ = ("memorized", "spurious", "generalized", "level")
    MEMORIZED_FIELD_NUMBER: _ClassVar[int]
    SPURIOUS_FIELD_NUMBER: _ClassVar[int]
    GENERALIZED_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    memorized: Interval
    spurious: Interval
    generalized: Interval
    level: float
    def __init__(self, memorized: _Optional[_Union[Interval, _Mapping]] = ..., spurious: _Optional[_Union[Interval, _Mapping]] = ..., generalized: _Optional[_Union[Interval, _Mapping]] = ..., level: _Optional[float] = ...) -> None: ...

class CopyEvidence(_message.Message):
    __slots__ = ("found", "distinct_references", "rate_upper_bound")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    RATE_UPPER_BOUND_FIELD_NUMBER: _ClassVar[int]
    found: int
    distinct_references: int
    rate_upper_bound: float
    def __init__(self, found: _Optional[int] = ..., distinct_references: _Optional[int] = ..., rate_upper_bound: _Optional[float] = ...) -> None: ...

class StabilityEvidence(_message.Message):
    __slots__ = ("modes", "meeting_rate", "recurring_share", "median_nearest_sample_distance", "final_step")
    MODES_FIELD_NUMBER: _ClassVar[int]
    MEETING_RATE_FIELD_NUMBER: _ClassVar[int]
    RECURRING_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_NEAREST_SAMPLE_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    modes: _containers.RepeatedCompositeFieldContainer[Mode]
    meeting_rate: float
    recurring_share: float
    median_nearest_sample_distance: float
    final_step: float
    def __init__(self, modes: _Optional[_Iterable[_Union[Mode, _Mapping]]] = ..., meeting_rate: _Optional[float] = ..., recurring_share: _Optional[float] = ..., median_nearest_sample_distance: _Optional[float] = ..., final_step: _Optional[float] = ...) -> None: ...

class Mode(_message.Message):
    __slots__ = ("seeds", "share", "verdict", "nearest_reference")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NEAREST_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    share: float
    verdict: Verdict
    nearest_reference: Neighbor
    def __init__(self, seeds: _Optional[_Iterable[int]] = ..., share: _Optional[float] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., nearest_reference: _Optional[_Union[Neighbor, _Mapping]] = ...) -> None: ...

class Neighbor(_message.Message):
    __slots__ = ("index", "caption", "distance", "original_distance", "image", "key", "url", "copies")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    index: int
    caption: str
    distance: float
    original_distance: float
    image: Image
    key: str
    url: str
    copies: int
    def __init__(self, index: _Optional[int] = ..., caption: _Optional[str] = ..., distance: _Optional[float] = ..., original_distance: _Optional[float] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., key: _Optional[str] = ..., url: _Optional[str] = ..., copies: _Optional[int] = ...) -> None: ...

class ClipNeighbor(_message.Message):
    __slots__ = ("index", "caption", "similarity", "key", "url")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    index: int
    caption: str
    similarity: float
    key: str
    url: str
    def __init__(self, index: _Optional[int] = ..., caption: _Optional[str] = ..., similarity: _Optional[float] = ..., key: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class SampleEvidence(_message.Message):
    __slots__ = ("seed", "verdict", "mode", "nearest_reference", "nearest_clip", "nearest_sample_seed", "nearest_sample_distance", "image")
    SEED_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    NEAREST_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NEAREST_CLIP_FIELD_NUMBER: _ClassVar[int]
    NEAREST_SAMPLE_SEED_FIELD_NUMBER: _ClassVar[int]
    NEAREST_SAMPLE_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    seed: int
    verdict: Verdict
    mode: int
    nearest_reference: Neighbor
    nearest_clip: ClipNeighbor
    nearest_sample_seed: int
    nearest_sample_distance: float
    image: Image
    def __init__(self, seed: _Optional[int] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., mode: _Optional[int] = ..., nearest_reference: _Optional[_Union[Neighbor, _Mapping]] = ..., nearest_clip: _Optional[_Union[ClipNeighbor, _Mapping]] = ..., nearest_sample_seed: _Optional[int] = ..., nearest_sample_distance: _Optional[float] = ..., image: _Optional[_Union[Image, _Mapping]] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("png", "height", "width")
    PNG_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    height: int
    width: int
    def __init__(self, png: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class CurvatureEvidence(_message.Message):
    __slots__ = ("timestep", "sigma", "prompt", "unconditional", "samples", "method")
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    SIGMA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    UNCONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    timestep: int
    sigma: float
    prompt: Spectrum
    unconditional: Spectrum
    samples: int
    method: str
    def __init__(self, timestep: _Optional[int] = ..., sigma: _Optional[float] = ..., prompt: _Optional[_Union[Spectrum, _Mapping]] = ..., unconditional: _Optional[_Union[Spectrum, _Mapping]] = ..., samples: _Optional[int] = ..., method: _Optional[str] = ...) -> None: ...

class Spectrum(_message.Message):
    __slots__ = ("trace", "trace_error", "flat_share", "log_volume", "top", "bottom", "asymmetry")
    TRACE_FIELD_NUMBER: _ClassVar[int]
    TRACE_ERROR_FIELD_NUMBER: _ClassVar[int]
    FLAT_SHARE_FIELD_NUMBER: _ClassVar[int]
    LOG_VOLUME_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    BOTTOM_FIELD_NUMBER: _ClassVar[int]
    ASYMMETRY_FIELD_NUMBER: _ClassVar[int]
    trace: float
    trace_error: float
    flat_share: float
    log_volume: float
    top: _containers.RepeatedScalarFieldContainer[float]
    bottom: _containers.RepeatedScalarFieldContainer[float]
    asymmetry: float
    def __init__(self, trace: _Optional[float] = ..., trace_error: _Optional[float] = ..., flat_share: _Optional[float] = ..., log_volume: _Optional[float] = ..., top: _Optional[_Iterable[float]] = ..., bottom: _Optional[_Iterable[float]] = ..., asymmetry: _Optional[float] = ...) -> None: ...

class Subject(_message.Message):
    __slots__ = ("checkpoint", "checkpoint_digest", "family", "reference", "reference_digest", "reference_size", "reference_complete", "sampler", "definition_samples", "calibration", "embedder_digest", "budget", "checkpoint_source")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SIZE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SOURCE_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    checkpoint_digest: str
    family: str
    reference: str
    reference_digest: str
    reference_size: int
    reference_complete: bool
    sampler: Sampler
    definition_samples: int
    calibration: CalibrationInfo
    embedder_digest: str
    budget: Budget
    checkpoint_source: str
    def __init__(self, checkpoint: _Optional[str] = ..., checkpoint_digest: _Optional[str] = ..., family: _Optional[str] = ..., reference: _Optional[str] = ..., reference_digest: _Optional[str] = ..., reference_size: _Optional[int] = ..., reference_complete: _Optional[bool] = ..., sampler: _Optional[_Union[Sampler, _Mapping]] = ..., definition_samples: _Optional[int] = ..., calibration: _Optional[_Union[CalibrationInfo, _Mapping]] = ..., embedder_digest: _Optional[str] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., checkpoint_source: _Optional[str] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("seeds", "minimum_seeds", "first_seed", "curvature")
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_SEEDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEED_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_FIELD_NUMBER: _ClassVar[int]
    seeds: int
    minimum_seeds: int
    first_seed: int
    curvature: str
    def __init__(self, seeds: _Optional[int] = ..., minimum_seeds: _Optional[int] = ..., first_seed: _Optional[int] = ..., curvature: _Optional[str] = ...) -> None: ...

class Sampler(_message.Message):
    __slots__ = ("scheduler", "steps", "guidance", "negative_prompt", "height", "width", "eta", "true_guidance", "embedded")
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    TRUE_GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    scheduler: str
    steps: int
    guidance: float
    negative_prompt: str
    height: int
    width: int
    eta: float
    true_guidance: float
    embedded: bool
    def __init__(self, scheduler: _Optional[str] = ..., steps: _Optional[int] = ..., guidance: _Optional[float] = ..., negative_prompt: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., eta: _Optional[float] = ..., true_guidance: _Optional[float] = ..., embedded: _Optional[bool] = ...) -> None: ...

class CalibrationInfo(_message.Message):
    __slots__ = ("digest", "delta_m", "delta_s", "fits", "prompts", "make_time", "estimators_digest")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DELTA_M_FIELD_NUMBER: _ClassVar[int]
    DELTA_S_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAKE_TIME_FIELD_NUMBER: _ClassVar[int]
    ESTIMATORS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    delta_m: float
    delta_s: float
    fits: bool
    prompts: int
    make_time: _timestamp_pb2.Timestamp
    estimators_digest: str
    def __init__(self, digest: _Optional[str] = ..., delta_m: _Optional[float] = ..., delta_s: _Optional[float] = ..., fits: _Optional[bool] = ..., prompts: _Optional[int] = ..., make_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., estimators_digest: _Optional[str] = ...) -> None: ...

class Cost(_message.Message):
    __slots__ = ("evaluations", "sampling_evaluations", "curvature_evaluations", "queue_seconds", "compute_seconds", "stage_seconds", "screening_evaluations", "explaining_evaluations")
    class StageSecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    CURVATURE_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STAGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCREENING_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINING_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    evaluations: int
    sampling_evaluations: int
    curvature_evaluations: int
    queue_seconds: float
    compute_seconds: float
    stage_seconds: _containers.ScalarMap[str, float]
    screening_evaluations: int
    explaining_evaluations: int
    def __init__(self, evaluations: _Optional[int] = ..., sampling_evaluations: _Optional[int] = ..., curvature_evaluations: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., stage_seconds: _Optional[_Mapping[str, float]] = ..., screening_evaluations: _Optional[int] = ..., explaining_evaluations: _Optional[int] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("basin_version", "libraries", "finish_time", "device")
    class LibrariesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BASIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    basin_version: str
    libraries: _containers.ScalarMap[str, str]
    finish_time: _timestamp_pb2.Timestamp
    device: str
    def __init__(self, basin_version: _Optional[str] = ..., libraries: _Optional[_Mapping[str, str]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., device: _Optional[str] = ...) -> None: ...
