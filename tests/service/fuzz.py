"""Messages of any type, made by hypothesis from their descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

#: Deepest nesting of messages.
DEPTH = 4
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def messages(descriptor: Descriptor, words: Sequence[str], depth: int = DEPTH) -> st.SearchStrategy[Message]:
    """Any message of a type.

    Args:
        descriptor: of the type.
        words: texts that mean something to the server.
        depth: of messages inside messages.
    """
    make = message_factory.GetMessageClass(descriptor)
    fields = [field for field in descriptor.fields if depth or field.message_type is None]
    if not fields:
        return st.builds(make)
    values = {field.name: _values(field, words, depth) for field in fields}

    def build(chosen: dict[str, Any]) -> Message:
        found = make()
        for name, value in chosen.items():
            _put(found, descriptor.fields_by_name[name], value)
        return found

    return st.fixed_dictionaries({}, optional=values).map(build)


@st.composite
def perturbed(draw: st.DrawFn, good: Message, words: Sequence[str]) -> Message:
    """A message that is almost as good as this one: one or two of its fields, at any depth, are something else."""
    found = type(good)()
    found.CopyFrom(good)
    for _ in range(draw(st.integers(0, 2))):
        part: Message = found
        while part.DESCRIPTOR.fields:
            field = draw(st.sampled_from(list(part.DESCRIPTOR.fields)))
            deeper = field.message_type is not None and not field.is_repeated and part.HasField(field.name)
            if not (deeper and draw(st.booleans())):
                part.ClearField(field.name)
                _put(part, field, draw(_values(field, words, DEPTH - 1)))
                break
            part = getattr(part, field.name)
    return found


def service(name: str) -> Any:
    """The descriptor of a service, by its full name."""
    return descriptor_pool.Default().FindServiceByName(name)


def _values(field: FieldDescriptor, words: Sequence[str], depth: int) -> st.SearchStrategy[Any]:
    one = _value(field, words, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _value(field: FieldDescriptor, words: Sequence[str], depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, words, depth - 1)
    kind = field.cpp_type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        small = st.integers(max(low, -2), 12)
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(low, high)
        return small | small | st.integers(low, high)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.floats(0, 2) | st.floats(width=32)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    return st.sampled_from(list(words)) | st.sampled_from(list(words)) | text | text.map(lambda part: 40 * part)


def _put(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        target = getattr(message, field.name)
        for entry in value:
            if isinstance(entry.value, Message):
                target[entry.key].CopyFrom(entry.value)
            else:
                target[entry.key] = entry.value
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)
