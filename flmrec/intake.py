"""What of a source has to be read tonight: everything, the new files, the change feed, or nothing."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

from flmrec import processed
from flmrec.config import Config
from flmrec.data.rules import ROW, given
from flmrec.errors import DataContractError
from flmrec.lake import attempts_at
from flmrec.processed import Entry
from flmrec.sources import BATCH, Opened, Source, batches, open_source, place

STAGE = "ingest"
_EMPTY = "0 "  # stamp of a file of 0 bytes
_PLACE = ("path", "table")  # keys of a source that do not change what its rows mean


@dataclass(frozen=True)
class Intake:
    """What is read of one source."""

    name: str
    source: Source
    stamps: dict[str, str]  # batch: stamp, of all that is there
    known: tuple[Entry, ...]  # batches of earlier runs
    settings: str
    files: tuple[str, ...] = ()  # read these only
    after: str = ""  # read the changes after this version only

    @property
    def is_update(self) -> bool:
        """True when what is read is merged into the table, False when it replaces the table."""
        return bool(self.files or self.after)


def plan(spark: SparkSession, cfg: Config, name: str, needed: Sequence[str], known: Sequence[Entry]) -> Intake | None:
    """None where there is nothing new. known: what earlier runs have worked off.

    Raises DataContractError where a file of an earlier run has other content.
    """
    source: Source = getattr(cfg.source, name)
    stamps = batches(spark, name, source)
    intake = Intake(name, source, stamps, tuple(known), _settings(cfg, name, source))
    if source.table is None and all(stamp.startswith(_EMPTY) for stamp in stamps.values()):
        raise DataContractError(f"source.{name}: {place(source)} holds no rows; deliver it again.")
    old = {e.batch: e.stamp for e in known}
    if source.load == "full" or not known:
        same = stamps == old and stamps and all(e.settings == intake.settings for e in known)
        return None if same else intake
    if stamps.keys() == old.keys() and _is_delta(stamps):
        (where, version), *_ = stamps.items()
        return None if old[where] == version else replace(intake, after=old[where])
    touched = [batch for batch, stamp in stamps.items() if batch in old and old[batch] != stamp]
    if touched:
        _refuse_other_content(spark, intake, touched, needed)
    new = tuple(sorted(batch for batch in stamps.keys() - old.keys() if not stamps[batch].startswith(_EMPTY)))
    return replace(intake, files=new) if new else None


def account(intake: Intake, run_id: str) -> str:
    """Under which run_id ledger and quarantine account for this reading: the run's or, where an attempt of the same run
    has worked off other input, whose account stands, the run's with #2, #3, ..."""
    if not intake.is_update:
        return run_id
    matches = [re.fullmatch(attempts_at(run_id), e.run_id) for e in intake.known]
    done = [int(match[1] or 1) for match in matches if match]
    return f"{run_id}#{max(done) + 1}" if done else run_id


def worked_off(intake: Intake, contents: dict[str, tuple[int, str]], types: str, run_id: str) -> list[Entry]:
    """The entries that stand for this source from now on. contents: batch: (rows, hash) of what was read; run_id: whose
    account these are in."""
    read = intake.files or intake.stamps
    entries = []
    for batch in read:
        rows, content = contents.get(batch, (0, ""))
        stamp = intake.stamps[batch]
        entries.append(
            Entry(
                source=intake.name,
                batch=batch,
                stamp=stamp,
                content=content,
                rows=rows,
                settings=intake.settings,
                types=types,
                run_id=run_id,
            )
        )
    kept = [e for e in intake.known if intake.files and e.batch not in read]
    return kept + entries


def is_same(intake: Intake, entries: Sequence[Entry]) -> bool:
    """True where a whole source was read again and says what it said before."""
    if intake.is_update or not intake.known:
        return False

    def facts(some: Sequence[Entry]) -> set[tuple[str, str, int, str]]:
        return {(e.batch, e.content, e.rows, e.settings) for e in some}

    return facts(entries) == facts(intake.known)


def content_hash(opened: Opened) -> tuple[Column, Column]:
    """Two sums over the hashes of the rows' own columns: equal for equal rows in any order."""
    columns = [given(c) for c, t in opened.types.items() if "map<" not in t]
    hashed = F.xxhash64(*columns)
    return F.sum(F.shiftright(hashed, 32)), F.sum(hashed.bitwiseAND(F.lit(0xFFFFFFFF).cast("bigint")))


def _settings(cfg: Config, name: str, source: Source) -> str:
    meaning = {key: value for key, value in asdict(source).items() if key not in _PLACE}
    return processed.settings_hash(name, meaning, asdict(cfg.quality))


def _is_delta(stamps: dict[str, str]) -> bool:
    return len(stamps) == 1 and all(stamp.isdigit() for stamp in stamps.values())


def _refuse_other_content(spark: SparkSession, intake: Intake, touched: list[str], needed: Sequence[str]) -> None:
    opened = open_source(spark, intake.name, intake.source, needed, files=touched)
    rows = opened.rows.select(BATCH, F.struct(*[F.col(f"`{c}`") for c in opened.types]).alias(ROW))
    high, low = content_hash(opened)
    found = rows.groupBy(BATCH).agg(F.count(F.lit(1)), F.concat_ws(" ", high, low)).collect()
    now = {r[0]: (r[1], r[2]) for r in found}
    for entry in intake.known:
        if entry.batch in touched and now.get(entry.batch, (0, "")) != (entry.rows, entry.content):
            raise DataContractError(
                f"source.{intake.name}: {entry.batch} was ingested with {entry.rows} rows and now holds other content "
                f"({now.get(entry.batch, (0, ''))[0]} rows); a batch cannot change: deliver corrections as a new file, "
                f"or take the whole source again with source.{intake.name}.load=full."
            )
