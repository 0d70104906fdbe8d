"""What a client sends in streams: many things in few messages, and images in streams that a server takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from audit.v1 import info_pb2, reference_pb2

#: Bytes after which a message is sent, far below gRPC's bound.
SENT_AT_ONCE = 2**18
#: Bytes of images after which a stream ends: they are in memory, and are what is sent again when it breaks.
STREAM_BYTES = 2**28
#: Reasons of images that were left out, as many as a server gives.
MOST_LEFT_OUT = 100

_Message = TypeVar("_Message", bound=Message)


def in_messages(parts: Iterable[_Message]) -> Iterator[list[_Message]]:
    """Parts in groups that are worth a message each."""
    group, size = list[_Message](), 0
    for part in parts:
        group.append(part)
        size += part.ByteSize()
        if size > SENT_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def in_streams(
    images: Iterable[reference_pb2.NewImage], limits: info_pb2.Limits, total: reference_pb2.AddImagesResponse
) -> Iterator[list[reference_pb2.NewImage]]:
    """Images in groups that a server takes as a stream each.

    Args:
        images: any number.
        limits: of the server.
        total: hears of those that are larger than the server reads. They are not sent.
    """
    group, size = list[reference_pb2.NewImage](), 0
    for image in images:
        if len(image.image) > limits.image_bytes:
            why = f"the image has {len(image.image)} bytes, at most {limits.image_bytes} are read"
            left_out = [reference_pb2.LeftOutImage(key=image.key, reason=why)]
            add_up(total, reference_pb2.AddImagesResponse(unreadable=1, left_out=left_out))
            continue
        own = image.ByteSize()
        if group and (len(group) == limits.stream_images or size + own > min(limits.stream_bytes, STREAM_BYTES)):
            yield group
            group, size = [], 0
        group.append(image)
        size += own
    if group:
        yield group


def add_up(total: reference_pb2.AddImagesResponse, answer: reference_pb2.AddImagesResponse) -> None:
    """Add what one stream came to."""
    for field in ("added", "duplicates", "repeated_images", "unreadable"):
        setattr(total, field, getattr(total, field) + getattr(answer, field))
    total.left_out.extend(answer.left_out[: MOST_LEFT_OUT - len(total.left_out)])
    if answer.HasField("reference"):
        total.reference.CopyFrom(answer.reference)
