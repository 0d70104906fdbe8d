"""Prompts from files: text, JSON lines, CSV, Parquet. Prompts are never altered; other columns are carried along."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from audit.errors import InvalidInput, NotFound
from audit.limits import MAX_PROMPT_CHARACTERS

#: The column that holds the prompt where there are several.
COLUMN = "prompt"
#: Longest line that is read, in characters: a prompt that any checkpoint reads is far shorter.
MOST_LINE = 1_000_000


@dataclass(frozen=True)
class PromptEntry:
    """A prompt as it was given.

    Attributes:
        prompt: unaltered.
        extra: its other columns, as JSON has them: NaN and infinities are null, dates and bytes are text.
    """

    prompt: str
    extra: dict[str, Any] = field(default_factory=dict)


def read_prompts(file: Path) -> Iterator[PromptEntry]:
    """The prompts of a file: JSON lines (.jsonl, .ndjson, .json), .csv, .tsv, .parquet; of any other, one a line.

    Lines that are blank hold no prompt. Read as they are asked for, so that the file may be larger than memory.

    Raises:
        NotFound: the file cannot be read.
        InvalidInput: it is no regular file (of a pipe, nothing would be left for the second reading), is not what its
            suffix says, has no column "prompt", or holds no prompts.
    """
    found = False
    try:
        if file.exists() and not file.is_file():
            raise InvalidInput(
                f"{file} is no regular file: write the prompts into one", reason="PROMPTS_NOT_A_FILE", field="prompts"
            )
        for entry in _READERS.get(file.suffix.lower(), _text)(file):
            if len(entry.prompt) > MAX_PROMPT_CHARACTERS:
                raise _invalid(
                    file, f"a prompt has {len(entry.prompt):,} characters, at most {MAX_PROMPT_CHARACTERS:,} are read"
                )
            if "\0" in entry.prompt:  # PostgreSQL keeps none
                raise _invalid(file, "a prompt holds the character NUL: is the file UTF-16?")
            found = True
            yield entry
    except OSError as error:
        if error.errno is None:  # pyarrow's, of a damaged file
            raise _invalid(file, _first_line(error)) from error
        raise NotFound(f"cannot read {file}: {error.strerror}", reason="PROMPTS_NOT_FOUND", field="prompts") from error
    except UnicodeError as error:
        raise _invalid(file, "no UTF-8 text") from error
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the latter two of dates that Python has not
        raise _invalid(file, _first_line(error)) from error
    if not found:
        raise InvalidInput(f"{file.name} holds no prompts", reason="PROMPTS_EMPTY", field="prompts")


def _invalid(file: Path, what: str, line: int = 0) -> InvalidInput:
    place = f", line {line}" if line else ""
    return InvalidInput(f"{file.name}{place}: {what}", reason="PROMPTS_UNREADABLE", field="prompts")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their line feeds, which alone end them, since prompts may hold any other space."""
    decode = codecs.getincrementaldecoder("utf-8-sig")()
    rest, number = "", 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 16):
            parts = (rest + decode.decode(chunk)).split("\n")
            rest = parts.pop()
            if len(rest) > MOST_LINE:
                raise _invalid(file, f"longer than {MOST_LINE:,} characters", number + len(parts) + 1)
            for line in parts:
                number += 1
                yield number, line
    rest += decode.decode(b"", final=True)
    if rest:
        yield number + 1, rest


def _text(file: Path) -> Iterator[PromptEntry]:
    for _, line in _lines(file):
        if line.strip():
            yield PromptEntry(line.removesuffix("\r"))


def _json_lines(file: Path) -> Iterator[PromptEntry]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            content = json.loads(line, object_pairs_hook=partial(_unique, file, number))
            if isinstance(content, str):
                content = {COLUMN: content}
            if not isinstance(content, dict):
                raise _invalid(file, "neither an object nor a string", number)
            entry = _entry(file, number, content)
        except (ValueError, RecursionError) as error:
            raise _invalid(file, "no JSON", number) from error
        yield entry


def _csv(file: Path) -> Iterator[PromptEntry]:
    csv.field_size_limit(MOST_LINE)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    rows = csv.reader((f"{line}\n" for _, line in _lines(file)), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if not header:
            return
        _unique(file, 1, [(name, "") for name in header])
        if COLUMN not in header:
            raise _invalid(file, f"no column {COLUMN!r}", 1)
        for row in rows:
            if not row or not any(map(str.strip, row)):
                continue
            if len(row) != len(header):
                raise _invalid(file, f"{len(row)} columns, the header has {len(header)}", rows.line_num)
            yield _entry(file, rows.line_num, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise _invalid(file, str(error), rows.line_num) from error


def _parquet(file: Path) -> Iterator[PromptEntry]:
    with file.open("rb") as stream, parquet.ParquetFile(stream) as content:
        names = content.schema_arrow.names
        _unique(file, 0, [(name, "") for name in names])
        if COLUMN not in names:
            raise _invalid(file, f"no column {COLUMN!r}")
        row = 0
        for batch in content.iter_batches(1024):
            for values in batch.to_pylist():
                row += 1
                yield _entry(file, row, values)


def _unique(file: Path, number: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _invalid(file, "a name stands there twice", number)
    return found


def _entry(file: Path, number: int, content: dict[str, Any]) -> PromptEntry:
    prompt = content.pop(COLUMN, None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise _invalid(file, f"no text under {COLUMN!r}", number)
    plain = json.dumps([prompt, content], default=str, ensure_ascii=False)
    try:
        plain.encode()
    except UnicodeEncodeError as error:
        raise _invalid(file, "half a surrogate pair", number) from error
    return PromptEntry(*json.loads(plain, parse_constant=lambda name: None))


_READERS: dict[str, Callable[[Path], Iterable[PromptEntry]]] = {
    ".json": _json_lines, ".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv, ".tsv": _csv,
    ".parquet": _parquet,
}  # fmt: skip
