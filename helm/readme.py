"""Writes the tables of values into basin/README.md, from the comments in basin/values.yaml.

A comment above a key describes its value, however deep that goes; a key without one holds keys that have one.
`## Title` begins a section. What stands in README.md outside of the two marks is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "basin"
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


def rows(values: str) -> Iterator[tuple[str, str, str, str]]:
    """Section, name, default and description of every value.

    Args:
        values: the text of values.yaml.

    Raises:
        ValueError: a value has no description.
    """
    lines = values.splitlines()
    section = ""

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str, str, str]]:
        nonlocal section
        for key, value in node.value:
            first = key.start_mark.line
            while first and lines[first - 1].strip().startswith("#"):
                first -= 1
            said = [line.strip().lstrip("#") for line in lines[first : key.start_mark.line]]
            titles = [line for line in lines[first : key.start_mark.line] if line.startswith("## ")]
            if titles:
                section, said = titles[-1][3:], said[1:]
            name = prefix + key.value
            if said:
                default = json.dumps(yaml.safe_load(yaml.serialize(value)))
                yield section, name, default, "".join(said).strip()
            elif isinstance(value, yaml.MappingNode) and value.value:
                yield from walk(value, f"{name}.")
            else:
                raise ValueError(f"line {key.start_mark.line + 1} of values.yaml: {name} has no description")

    yield from walk(yaml.compose(values), "")


def readme(text: str, values: str) -> str:
    """README.md with the tables as values.yaml has them.

    Args:
        text: of README.md, as it is.
        values: the text of values.yaml.
    """
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    tables, last = "", ""
    for section, name, default, description in rows(values):
        if section != last:
            tables += f"\n### {section}\n\n| value | default | meaning |\n|---|---|---|\n"
            last = section
        tables += f"| `{name}` | `{default}` | {description} |\n".replace("\\", "\\\\")
    return before + BEGIN + tables + "\n" + END + after


def main() -> None:
    """Write README.md."""
    path = CHART / "README.md"
    path.write_text(readme(path.read_text(), (CHART / "values.yaml").read_text()))


if __name__ == "__main__":
    main()
