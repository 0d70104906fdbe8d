from audit.v1 import report_pb2 as _report_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListReferencesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReferencesResponse(_message.Message):
    __slots__ = ("references", "next_page_token")
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedCompositeFieldContainer[ReferenceInfo]
    next_page_token: str
    def __init__(self, references: _Optional[_Iterable[_Union[ReferenceInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReferenceInfo(_message.Message):
    __slots__ = ("name", "digest", "size", "complete", "clip_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CLIP_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    size: int
    complete: bool
    clip_digest: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., complete: _Optional[bool] = ..., clip_digest: _Optional[str] = ...) -> None: ...

class SearchReferenceRequest(_message.Message):
    __slots__ = ("reference", "image", "limit", "include_images")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    reference: str
    image: bytes
    limit: int
    include_images: bool
    def __init__(self, reference: _Optional[str] = ..., image: _Optional[bytes] = ..., limit: _Optional[int] = ..., include_images: _Optional[bool] = ...) -> None: ...

class SearchReferenceResponse(_message.Message):
    __slots__ = ("pixel", "clip")
    PIXEL_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    pixel: _containers.RepeatedCompositeFieldContainer[_report_pb2.Neighbor]
    clip: _containers.RepeatedCompositeFieldContainer[_report_pb2.ClipNeighbor]
    def __init__(self, pixel: _Optional[_Iterable[_Union[_report_pb2.Neighbor, _Mapping]]] = ..., clip: _Optional[_Iterable[_Union[_report_pb2.ClipNeighbor, _Mapping]]] = ...) -> None: ...
