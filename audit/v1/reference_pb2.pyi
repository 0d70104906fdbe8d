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

class GetReferenceRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class GetReferenceResponse(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: ReferenceInfo
    def __init__(self, reference: _Optional[_Union[ReferenceInfo, _Mapping]] = ...) -> None: ...

class CreateReferenceRequest(_message.Message):
    __slots__ = ("reference", "embedders", "height", "width", "without_images", "thumbnail_side")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDERS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_SIDE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    embedders: _containers.RepeatedScalarFieldContainer[str]
    height: int
    width: int
    without_images: bool
    thumbnail_side: int
    def __init__(self, reference: _Optional[str] = ..., embedders: _Optional[_Iterable[str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., without_images: _Optional[bool] = ..., thumbnail_side: _Optional[int] = ...) -> None: ...

class CreateReferenceResponse(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: ReferenceInfo
    def __init__(self, reference: _Optional[_Union[ReferenceInfo, _Mapping]] = ...) -> None: ...

class AddImagesRequest(_message.Message):
    __slots__ = ("header", "images")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    header: AddImagesHeader
    images: NewImages
    def __init__(self, header: _Optional[_Union[AddImagesHeader, _Mapping]] = ..., images: _Optional[_Union[NewImages, _Mapping]] = ...) -> None: ...

class AddImagesHeader(_message.Message):
    __slots__ = ("reference", "complete")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    complete: bool
    def __init__(self, reference: _Optional[str] = ..., complete: _Optional[bool] = ...) -> None: ...

class NewImages(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[NewImage]
    def __init__(self, images: _Optional[_Iterable[_Union[NewImage, _Mapping]]] = ...) -> None: ...

class NewImage(_message.Message):
    __slots__ = ("image", "key", "caption", "url")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CAPTION_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    key: str
    caption: str
    url: str
    def __init__(self, image: _Optional[bytes] = ..., key: _Optional[str] = ..., caption: _Optional[str] = ..., url: _Optional[str] = ...) -> None: ...

class AddImagesResponse(_message.Message):
    __slots__ = ("reference", "added", "duplicates", "repeated_images", "unreadable", "left_out")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REPEATED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    reference: ReferenceInfo
    added: int
    duplicates: int
    repeated_images: int
    unreadable: int
    left_out: _containers.RepeatedCompositeFieldContainer[LeftOutImage]
    def __init__(self, reference: _Optional[_Union[ReferenceInfo, _Mapping]] = ..., added: _Optional[int] = ..., duplicates: _Optional[int] = ..., repeated_images: _Optional[int] = ..., unreadable: _Optional[int] = ..., left_out: _Optional[_Iterable[_Union[LeftOutImage, _Mapping]]] = ...) -> None: ...

class LeftOutImage(_message.Message):
    __slots__ = ("key", "reason")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    key: str
    reason: str
    def __init__(self, key: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DeleteReferenceRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class DeleteReferenceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReferenceInfo(_message.Message):
    __slots__ = ("name", "digest", "size", "complete", "clip_digest", "created", "height", "width", "embedders", "duplicates", "unreadable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    CLIP_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    EMBEDDERS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    size: int
    complete: bool
    clip_digest: str
    created: bool
    height: int
    width: int
    embedders: _containers.RepeatedScalarFieldContainer[str]
    duplicates: int
    unreadable: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., complete: _Optional[bool] = ..., clip_digest: _Optional[str] = ..., created: _Optional[bool] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., embedders: _Optional[_Iterable[str]] = ..., duplicates: _Optional[int] = ..., unreadable: _Optional[int] = ...) -> None: ...

class SearchReferenceRequest(_message.Message):
    __slots__ = ("reference", "image", "limit", "include_images", "prompt")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    reference: str
    image: bytes
    limit: int
    include_images: bool
    prompt: str
    def __init__(self, reference: _Optional[str] = ..., image: _Optional[bytes] = ..., limit: _Optional[int] = ..., include_images: _Optional[bool] = ..., prompt: _Optional[str] = ...) -> None: ...

class SearchReferenceResponse(_message.Message):
    __slots__ = ("pixel", "clip")
    PIXEL_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    pixel: _containers.RepeatedCompositeFieldContainer[_report_pb2.Neighbor]
    clip: _containers.RepeatedCompositeFieldContainer[_report_pb2.ClipNeighbor]
    def __init__(self, pixel: _Optional[_Iterable[_Union[_report_pb2.Neighbor, _Mapping]]] = ..., clip: _Optional[_Iterable[_Union[_report_pb2.ClipNeighbor, _Mapping]]] = ...) -> None: ...
