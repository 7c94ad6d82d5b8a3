"""Small files put together, old files deleted."""

from collections.abc import Sequence

from flmrec.lake import Lake

_EVERY = 10  # versions of a table


def keep(store: Lake, tables: Sequence[str]) -> None:
    """At every tenth version of these just written tables: OPTIMIZE where batches have made more files of one than
    lake.compact_files, VACUUM of files that no version of the last lake.vacuum_days needs."""
    for table in tables:
        if store.version(table) % _EVERY != _EVERY - 1:
            continue
        if len(store.live_files(table)) > store.config.compact_files:
            store.handle(table).optimize().executeCompaction()
        if store.config.vacuum_days is not None:
            store.handle(table).vacuum(24.0 * store.config.vacuum_days)
        store.pinned[table] = store.latest_version(table)
