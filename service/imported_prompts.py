"""Prompt sets that a user imported: one file each, NAME.SUFFIX, in a folder of the user's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from platformdirs import user_data_path

from audit.errors import InvalidInput, NotFound
from service.names import check_name
from service.prompt_sets import SHIPPED, PromptSets
from service.prompts import PromptEntry, read_prompts

#: Names another folder. Not BASIN_PROMPTS, which is the server's setting `prompts`.
FOLDER_VARIABLE = "BASIN_PROMPTS_FOLDER"


def imports_folder() -> Path:
    """Where imported sets are, or will be."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else user_data_path("basin") / "prompts"


def imported_sets() -> dict[str, Path]:
    """Files of the imported sets by name. Of two of a name, which a killed replacement left, it is the newer one."""
    return {file.stem: file for file in _files()}


def known_sets() -> PromptSets:
    """Shipped and imported sets."""
    return PromptSets(imported_sets())


def find_prompts(given: str) -> Path:
    """The file that a user means: a file that is there, else that of a set of this name.

    Raises:
        NotFound: there is neither.
    """
    file = Path(given)
    if file.exists() and not file.is_dir():
        return file
    sets = known_sets()
    if given in sets.names:
        return sets.path(given)
    raise NotFound(
        f"there is no file {given}, nor a prompt set of that name: those are {', '.join(sets.names)}",
        reason="PROMPTS_NOT_FOUND",
        field="prompts",
    )


def import_prompts(file: Path, name: str, *, replace: bool = False) -> list[PromptEntry]:
    """Keep a copy of a file as a prompt set, byte for byte, whole or not at all.

    Args:
        file: that `read_prompts` reads.
        name: of the set.
        replace: whether it may take the place of an imported set of that name.

    Returns:
        Its prompts.

    Raises:
        NotFound: the file is not there.
        InvalidInput: it cannot be read as prompts; or the name is none, a shipped set's, or taken.
    """
    _check_own(name)
    if not file.exists():
        raise NotFound(f"there is no file {file}", reason="PROMPTS_NOT_FOUND", field="prompts")
    with _changing() as folder:
        if name in imported_sets() and not replace:
            raise InvalidInput(
                f"there is a prompt set {name!r} already; --replace puts this one in its place",
                reason="PROMPT_SET_EXISTS",
                field="name",
            )
        for _ in read_prompts(file):  # before it is copied, which may take long
            pass
        with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            copy = Path(shutil.copyfile(file, Path(partial) / file.name))
            entries = list(read_prompts(copy))  # the file may have been changed meanwhile
            kept = copy.replace(folder / f"{name}{file.suffix or '.txt'}")
        for other in _files():
            if other.stem == name and other != kept:
                other.unlink()
    return entries


def remove_prompts(name: str) -> None:
    """Remove an imported set.

    Raises:
        NotFound: there is none of that name.
        InvalidInput: it is a shipped one.
    """
    if name in SHIPPED:
        raise InvalidInput(
            f"the prompt set {name!r} comes with Basin and stays", reason="PROMPT_SET_SHIPPED", field="name"
        )
    if name not in imported_sets():
        raise NotFound(f"there is no imported prompt set {name!r}", reason="PROMPT_SET_NOT_FOUND", field="name")
    with _changing():
        for file in _files():
            if file.stem == name:
                file.unlink()


def _check_own(name: str) -> None:
    """Raises InvalidInput unless a set of a user's may have this name."""
    try:
        check_name(name)
    except ValueError as error:
        raise InvalidInput(f"the name {error}", reason="PROMPT_SET_NAME_INVALID", field="name") from error
    if name in SHIPPED:
        raise InvalidInput(
            f"the name {name!r} belongs to a shipped prompt set: choose another",
            reason="PROMPT_SET_SHIPPED",
            field="name",
        )


def _files() -> list[Path]:
    """Those of the folder that are sets, the newest last."""
    folder = imports_folder()
    found = [file for file in folder.iterdir() if _is_set(file)] if folder.exists() else []
    return sorted(found, key=lambda file: file.stat().st_mtime_ns)


def _is_set(file: Path) -> bool:
    try:
        return check_name(file.stem) not in SHIPPED and file.is_file()
    except ValueError:
        return False


@contextmanager
def _changing() -> Iterator[Path]:
    """The folder, made when missing, while no other process changes it."""
    folder = imports_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield folder
