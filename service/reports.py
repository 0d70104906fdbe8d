"""What clients do with reports. Kept apart from `service.wire` so that they need not wait for torch to load."""

from __future__ import annotations

import json

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from audit.v1 import audit_pb2, report_pb2


def report_to_json(report: report_pb2.Report) -> str:
    """A report in the proto's JSON mapping, on one line, with the field names of the .proto files.

    Plain fields are always there, also when they are empty; 64-bit integers and infinities are strings, as the
    mapping has it.
    """
    return message_to_json(report)


def message_to_json(message: Message) -> str:
    """Any message, likewise."""
    content = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(content, ensure_ascii=False)


def compared(report: report_pb2.Report) -> bool:
    """Whether samples were compared with the pixels of a reference set, which takes one that keeps its images."""
    return any(sample.HasField("nearest_reference") for sample in report.samples)


def without_images(report: report_pb2.Report) -> report_pb2.Report:
    """A copy of a report that leaves its pictures out."""
    copy = report_pb2.Report()
    copy.CopyFrom(report)
    for sample in copy.samples:
        sample.ClearField("image")
        if sample.HasField("nearest_reference"):
            sample.nearest_reference.ClearField("image")
    for mode in copy.stability.modes:
        if mode.HasField("nearest_reference"):
            mode.nearest_reference.ClearField("image")
    return copy


def without_texts(report: report_pb2.Report) -> report_pb2.Report:
    """A copy of a report that leaves the prompt out, and what reference images are called.

    The caption of an image that is recalled is most often the prompt itself, and names of files tell as much.
    """
    copy = report_pb2.Report()
    copy.CopyFrom(report)
    copy.ClearField("prompt")
    if copy.HasField("explanation"):
        copy.explanation.ClearField("words")
    for sample in copy.samples:
        for name in ("nearest_reference", "nearest_clip"):
            if sample.HasField(name):
                _unname(getattr(sample, name))
    for mode in copy.stability.modes:
        if mode.HasField("nearest_reference"):
            _unname(mode.nearest_reference)
    return copy


def _unname(neighbor: report_pb2.Neighbor | report_pb2.ClipNeighbor) -> None:
    for text in ("caption", "key", "url"):
        neighbor.ClearField(text)


def confidence(report: report_pb2.Report | audit_pb2.InspectImageResponse) -> str:
    """The confidence in words for people: in percent, never quite certain, and a guess called a guess."""
    percent = ">99%" if report.confidence >= 0.995 else f"{report.confidence:.0%}"
    return f"{percent} sure" if report.decided else f"{percent} sure (a guess)"
