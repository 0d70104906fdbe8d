"""Rows of a reference set that do not count any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from audit.reference.folder import new_folder, seal
from audit.reference.manifest import REMOVED, ROWS, File, Manifest

#: `same_as` is the row that one became one with; null for what was taken out.
SCHEMA = pa.schema([("row", pa.int64()), ("same_as", pa.int64()), ("similarity", pa.float32())])


def removed_rows(folder: Path | None, manifest: Manifest) -> pa.Table:
    """Rows that do not count, in order, as `SCHEMA` has them."""
    if folder is None or manifest.removed is None:
        return SCHEMA.empty_table()
    return pq.read_table(folder / REMOVED / manifest.removed[0] / ROWS, partitioning=None)


def write_removed(folder: Path, table: pa.Table) -> tuple[str, File]:
    """A table as `SCHEMA` has it, for `Manifest.removed`."""
    path = new_folder(folder, REMOVED)
    pq.write_table(table, path / ROWS)
    name, files = seal(path)
    return name, files[ROWS]


def with_removed(
    folder: Path,
    manifest: Manifest,
    rows: NDArray[np.int64],
    same_as: NDArray[np.int64] | None,
    similarity: NDArray[np.float32] | None = None,
) -> Manifest:
    """With more rows that do not count, and what they are the same as."""
    count = len(rows)
    more = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "same_as": pa.nulls(count, pa.int64()) if same_as is None else pa.array(same_as, pa.int64()),
            "similarity": pa.nulls(count, pa.float32()) if similarity is None else pa.array(similarity, pa.float32()),
        }
    )
    table = pa.concat_tables([removed_rows(folder, manifest), more]).sort_by("row")
    return manifest.model_copy(update={"removed": write_removed(folder, table)})


def kept_rows(rows: NDArray[np.int64], gone: pa.Table) -> NDArray[np.int64]:
    """The rows that count in the place of others; -1 where none does.

    Args:
        rows: any.
        gone: from `removed_rows`.
    """
    removed, same = gone["row"].to_numpy(), gone["same_as"].fill_null(-1).to_numpy()
    found = rows.copy()
    while len(removed):
        place = np.minimum(np.searchsorted(removed, found), len(removed) - 1)
        hit = removed[place] == found
        if not hit.any():
            break
        found[hit] = same[place[hit]]
    return found
