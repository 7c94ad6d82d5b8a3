"""Small files put together, old files deleted."""

import datetime as dt
from collections.abc import Sequence

from flmrec.lake import Lake

_SMALL_MB = 32


def keep(store: Lake, tables: Sequence[str]) -> None:
    """OPTIMIZE where a table has become many small files; VACUUM by lake.vacuum_days. For tables just written."""
    for table in tables:
        detail = store.handle(table).detail().select("numFiles", "sizeInBytes", "createdAt").collect()[0]
        if detail.numFiles > store.config.compact_files and detail.sizeInBytes < detail.numFiles * _SMALL_MB << 20:
            store.handle(table).optimize().executeCompaction()
        days = store.config.vacuum_days
        if days is not None and detail.createdAt < dt.datetime.now() - dt.timedelta(days=days):
            store.handle(table).vacuum(24.0 * days)
        store.pinned[table] = store.latest_version(table)
