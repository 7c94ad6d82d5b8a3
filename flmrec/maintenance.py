"""Small files put together, old files deleted."""

from collections.abc import Sequence

from flmrec.lake import Lake

_VACUUM_EVERY = 10  # versions of a table


def keep(store: Lake, tables: Sequence[str]) -> None:
    """OPTIMIZE where one of these just written tables has more files than lake.compact_files, which a table has that
    batches are merged into; VACUUM, every tenth version, of files that no version of lake.vacuum_days needs."""
    for table in tables:
        compacted = len(store.live_files(table)) > store.config.compact_files
        if compacted:
            store.handle(table).optimize().executeCompaction()
        if store.config.vacuum_days is not None and store.version(table) % _VACUUM_EVERY == _VACUUM_EVERY - 1:
            store.handle(table).vacuum(24.0 * store.config.vacuum_days)
        if compacted:
            store.pinned[table] = store.latest_version(table)
