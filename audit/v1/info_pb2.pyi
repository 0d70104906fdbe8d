from audit.v1 import checkpoint_pb2 as _checkpoint_pb2
from audit.v1 import reference_pb2 as _reference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("version", "libraries", "limits", "schedulers", "checkpoints", "references", "embedders")
    class LibrariesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDERS_FIELD_NUMBER: _ClassVar[int]
    version: str
    libraries: _containers.ScalarMap[str, str]
    limits: Limits
    schedulers: _containers.RepeatedScalarFieldContainer[str]
    checkpoints: _containers.RepeatedCompositeFieldContainer[_checkpoint_pb2.CheckpointInfo]
    references: _containers.RepeatedCompositeFieldContainer[_reference_pb2.ReferenceInfo]
    embedders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., libraries: _Optional[_Mapping[str, str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., schedulers: _Optional[_Iterable[str]] = ..., checkpoints: _Optional[_Iterable[_Union[_checkpoint_pb2.CheckpointInfo, _Mapping]]] = ..., references: _Optional[_Iterable[_Union[_reference_pb2.ReferenceInfo, _Mapping]]] = ..., embedders: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("prompt_characters", "seeds", "steps", "image_side", "queue_evaluations", "concurrent_audits", "image_bytes", "evaluations", "pixels", "prompts", "stream_images", "stream_bytes")
    PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIDE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_AUDITS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    prompt_characters: int
    seeds: int
    steps: int
    image_side: int
    queue_evaluations: int
    concurrent_audits: int
    image_bytes: int
    evaluations: int
    pixels: int
    prompts: int
    stream_images: int
    stream_bytes: int
    def __init__(self, prompt_characters: _Optional[int] = ..., seeds: _Optional[int] = ..., steps: _Optional[int] = ..., image_side: _Optional[int] = ..., queue_evaluations: _Optional[int] = ..., concurrent_audits: _Optional[int] = ..., image_bytes: _Optional[int] = ..., evaluations: _Optional[int] = ..., pixels: _Optional[int] = ..., prompts: _Optional[int] = ..., stream_images: _Optional[int] = ..., stream_bytes: _Optional[int] = ...) -> None: ...
