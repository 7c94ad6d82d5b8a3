"""What has been worked off, so that the same input is not taken twice (table `processed_batches`)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import functions as F

from flmrec import columns
from flmrec.columns import C, Tables
from flmrec.lake import Lake


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One input that a stage has worked off for one table."""

    source: str  # the table that was made
    batch: str = ""  # a file or a Delta table
    stamp: str = ""  # size and time of the file, or `Lake.identity` of each table
    content: str = ""  # hash of the rows, whatever their order; of a table made from tables, its `Lake.identity`
    rows: int = 0
    settings: str = ""  # hash of the configuration that the table depends on
    types: str = ""  # the source's columns and their types, as JSON
    run_id: str = field(default="", compare=False)  # whose account it is in; "": of the run that writes it down


def settings_hash(*parts: Any) -> str:
    """Hash of whatever can be written as JSON (dates and the like as text)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def entries(store: Lake, stage: str) -> dict[str, list[Entry]]:
    """Table: what `stage` has worked off for it. A table that has been deleted since is still named."""
    if not store.exists(Tables.PROCESSED):
        return {}
    found: dict[str, list[Entry]] = {}
    for row in store.read(Tables.PROCESSED).where(F.col(C.STAGE) == stage).collect():
        values = {name: row[name] for name in Entry.__dataclass_fields__}
        found.setdefault(row[C.SOURCE], []).append(Entry(**values))
    return found


def replace(store: Lake, run_id: str, stage: str, new: Mapping[str, Sequence[Entry]]) -> None:
    """From now on exactly these entries are worked off for the tables that `new` names; one commit."""
    data = [
        (stage, e.source, e.batch, e.stamp, e.content, e.rows, e.settings, e.types, e.run_id or run_id)
        for some in new.values()
        for e in some
    ]
    tables = ", ".join(f"'{table}'" for table in new)
    frame = store.spark.createDataFrame(data, columns.PROCESSED).coalesce(1)
    store.replace(Tables.PROCESSED, frame, f"{C.STAGE} = '{stage}' AND {C.SOURCE} IN ({tables})")
