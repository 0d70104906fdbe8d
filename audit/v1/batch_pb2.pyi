import datetime

from audit.v1 import audit_pb2 as _audit_pb2
from audit.v1 import report_pb2 as _report_pb2
from google.longrunning import operations_pb2 as _operations_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BatchPictures(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_PICTURES_UNSPECIFIED: _ClassVar[BatchPictures]
    BATCH_PICTURES_FLAGGED: _ClassVar[BatchPictures]
    BATCH_PICTURES_ALL: _ClassVar[BatchPictures]
    BATCH_PICTURES_NONE: _ClassVar[BatchPictures]

class BatchState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_STATE_UNSPECIFIED: _ClassVar[BatchState]
    BATCH_STATE_RUNNING: _ClassVar[BatchState]
    BATCH_STATE_PAUSED: _ClassVar[BatchState]
    BATCH_STATE_DONE: _ClassVar[BatchState]
    BATCH_STATE_CANCELLED: _ClassVar[BatchState]
    BATCH_STATE_FAILED: _ClassVar[BatchState]

class BatchOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_OUTCOME_UNSPECIFIED: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_MEMORIZED: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_SPURIOUS: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_GENERALIZED: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_UNDECIDED: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_FAILED: _ClassVar[BatchOutcome]
    BATCH_OUTCOME_RECURRING: _ClassVar[BatchOutcome]
BATCH_PICTURES_UNSPECIFIED: BatchPictures
BATCH_PICTURES_FLAGGED: BatchPictures
BATCH_PICTURES_ALL: BatchPictures
BATCH_PICTURES_NONE: BatchPictures
BATCH_STATE_UNSPECIFIED: BatchState
BATCH_STATE_RUNNING: BatchState
BATCH_STATE_PAUSED: BatchState
BATCH_STATE_DONE: BatchState
BATCH_STATE_CANCELLED: BatchState
BATCH_STATE_FAILED: BatchState
BATCH_OUTCOME_UNSPECIFIED: BatchOutcome
BATCH_OUTCOME_MEMORIZED: BatchOutcome
BATCH_OUTCOME_SPURIOUS: BatchOutcome
BATCH_OUTCOME_GENERALIZED: BatchOutcome
BATCH_OUTCOME_UNDECIDED: BatchOutcome
BATCH_OUTCOME_FAILED: BatchOutcome
BATCH_OUTCOME_RECURRING: BatchOutcome

class BatchSpec(_message.Message):
    __slots__ = ("checkpoints", "reference", "sampler", "budget", "pictures", "false_discovery_rate")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    FALSE_DISCOVERY_RATE_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    reference: str
    sampler: _audit_pb2.SamplerOptions
    budget: _audit_pb2.BudgetOptions
    pictures: BatchPictures
    false_discovery_rate: float
    def __init__(self, checkpoints: _Optional[_Iterable[str]] = ..., reference: _Optional[str] = ..., sampler: _Optional[_Union[_audit_pb2.SamplerOptions, _Mapping]] = ..., budget: _Optional[_Union[_audit_pb2.BudgetOptions, _Mapping]] = ..., pictures: _Optional[_Union[BatchPictures, str]] = ..., false_discovery_rate: _Optional[float] = ...) -> None: ...

class BatchPrompt(_message.Message):
    __slots__ = ("prompt", "extra")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    extra: _struct_pb2.Struct
    def __init__(self, prompt: _Optional[str] = ..., extra: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BatchPrompts(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[BatchPrompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[BatchPrompt, _Mapping]]] = ...) -> None: ...

class CreateBatchRequest(_message.Message):
    __slots__ = ("spec", "prompts", "prompt_set", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: BatchSpec
    prompts: BatchPrompts
    prompt_set: str
    request_id: str
    def __init__(self, spec: _Optional[_Union[BatchSpec, _Mapping]] = ..., prompts: _Optional[_Union[BatchPrompts, _Mapping]] = ..., prompt_set: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class UploadBatchRequest(_message.Message):
    __slots__ = ("header", "prompts")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    header: UploadBatchHeader
    prompts: BatchPrompts
    def __init__(self, header: _Optional[_Union[UploadBatchHeader, _Mapping]] = ..., prompts: _Optional[_Union[BatchPrompts, _Mapping]] = ...) -> None: ...

class UploadBatchHeader(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: BatchSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[BatchSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetBatchRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: str
    def __init__(self, batch: _Optional[str] = ...) -> None: ...

class GetBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class ListBatchesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state", "checkpoint")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: BatchState
    checkpoint: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[BatchState, str]] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class ListBatchesResponse(_message.Message):
    __slots__ = ("batches", "next_page_token")
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    batches: _containers.RepeatedCompositeFieldContainer[Batch]
    next_page_token: str
    def __init__(self, batches: _Optional[_Iterable[_Union[Batch, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelBatchRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: str
    def __init__(self, batch: _Optional[str] = ...) -> None: ...

class CancelBatchResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: Batch
    def __init__(self, batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class DeleteBatchRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: str
    def __init__(self, batch: _Optional[str] = ...) -> None: ...

class DeleteBatchResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamBatchResultsRequest(_message.Message):
    __slots__ = ("batch", "cursor", "follow", "include_reports")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_REPORTS_FIELD_NUMBER: _ClassVar[int]
    batch: str
    cursor: str
    follow: bool
    include_reports: bool
    def __init__(self, batch: _Optional[str] = ..., cursor: _Optional[str] = ..., follow: _Optional[bool] = ..., include_reports: _Optional[bool] = ...) -> None: ...

class StreamBatchResultsResponse(_message.Message):
    __slots__ = ("result", "cursor")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    result: BatchResult
    cursor: str
    def __init__(self, result: _Optional[_Union[BatchResult, _Mapping]] = ..., cursor: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("id", "spec", "progress", "create_time", "finish_time", "outcomes", "settings")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    FINISH_TIME_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: BatchSpec
    progress: BatchProgress
    create_time: _timestamp_pb2.Timestamp
    finish_time: _timestamp_pb2.Timestamp
    outcomes: _containers.RepeatedCompositeFieldContainer[BatchOutcomes]
    settings: _struct_pb2.Struct
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[BatchSpec, _Mapping]] = ..., progress: _Optional[_Union[BatchProgress, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finish_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., outcomes: _Optional[_Iterable[_Union[BatchOutcomes, _Mapping]]] = ..., settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BatchProgress(_message.Message):
    __slots__ = ("batch", "state", "note", "prompts", "open", "done", "failed", "verdicts", "rate", "time_left")
    class VerdictsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    BATCH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_FIELD_NUMBER: _ClassVar[int]
    batch: str
    state: BatchState
    note: str
    prompts: int
    open: int
    done: int
    failed: int
    verdicts: _containers.ScalarMap[str, int]
    rate: float
    time_left: _duration_pb2.Duration
    def __init__(self, batch: _Optional[str] = ..., state: _Optional[_Union[BatchState, str]] = ..., note: _Optional[str] = ..., prompts: _Optional[int] = ..., open: _Optional[int] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., verdicts: _Optional[_Mapping[str, int]] = ..., rate: _Optional[float] = ..., time_left: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class BatchOutcomes(_message.Message):
    __slots__ = ("checkpoint", "prompts")
    class PromptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    prompts: _containers.ScalarMap[str, int]
    def __init__(self, checkpoint: _Optional[str] = ..., prompts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class BatchResult(_message.Message):
    __slots__ = ("checkpoint", "position", "prompt", "outcome", "first", "second", "error", "open", "key", "confirmation")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    position: int
    prompt: BatchPrompt
    outcome: BatchOutcome
    first: BatchAnswer
    second: BatchAnswer
    error: str
    open: bool
    key: str
    confirmation: str
    def __init__(self, checkpoint: _Optional[str] = ..., position: _Optional[int] = ..., prompt: _Optional[_Union[BatchPrompt, _Mapping]] = ..., outcome: _Optional[_Union[BatchOutcome, str]] = ..., first: _Optional[_Union[BatchAnswer, _Mapping]] = ..., second: _Optional[_Union[BatchAnswer, _Mapping]] = ..., error: _Optional[str] = ..., open: _Optional[bool] = ..., key: _Optional[str] = ..., confirmation: _Optional[str] = ...) -> None: ...

class BatchAnswer(_message.Message):
    __slots__ = ("verdict", "probabilities", "report")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    verdict: _report_pb2.Verdict
    probabilities: _report_pb2.ClassValues
    report: _report_pb2.Report
    def __init__(self, verdict: _Optional[_Union[_report_pb2.Verdict, str]] = ..., probabilities: _Optional[_Union[_report_pb2.ClassValues, _Mapping]] = ..., report: _Optional[_Union[_report_pb2.Report, _Mapping]] = ...) -> None: ...
