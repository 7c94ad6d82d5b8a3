"""Tokenize after ingest: what the tables hold, what is done again, and what held-out rows may not change."""

import datetime as dt
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec import columns, processed
from flmrec.columns import FULL, HOLDOUT, C, Tables, table_of
from flmrec.data import sequences, split
from flmrec.lake import Lake
from flmrec.stages import ingest, tokenize
from tests.dirty.shop import config, write

DAY = 86_400
N_ITEMS = 12


def shop(
    folder: Path,
    events: list[tuple[str, int, int]],
    words: Sequence[tuple[str, str, str, int]] = (),
    users: Sequence[str] = ("u0", "u1", "only here"),
    **sections: Any,
):
    """A configuration over these events (user, item number, time) and words (user, item, text, time)."""
    folder.mkdir(exist_ok=True)
    items = [{"item": f"i{n}", "title": f"pan number {n}", "price": n, "kind": f"kind {n % 3}"} for n in range(N_ITEMS)]
    items[5]["title"], items[6]["price"] = None, None
    write(folder / "items.json", items)
    (folder / "log").mkdir(exist_ok=True)
    rows = [{"user": u, "item": f"i{i}", "ts": t} for u, i, t in events]
    write(folder / "log" / f"{len(list((folder / 'log').iterdir()))}.csv", rows)
    write(folder / "users.csv", [{"user": u, "town": "Bonn"} for u in users])
    source: dict[str, Any] = {
        "users": {"path": str(folder / "users.csv"), "columns": {"user_id": "user"}, "template": "lives in {town}"}
    }
    if words:
        write(folder / "words.csv", [dict(zip(("user", "item", "said", "ts"), row, strict=True)) for row in words])
        columns = {"user_id": "user", "item_id": "item", "text": "said", "event_ts": "ts"}
        source["words"] = {"path": str(folder / "words.csv"), "columns": columns}
    return config(
        folder,
        interactions={"path": str(folder / "log"), "format": "csv", "load": "incremental"},
        items={"numeric": ["price"], "categorical": ["kind"]},
        source=source,
        text={"sequence_length": 3},
        **({"positives": {"negatives": "popularity", "negatives_per_positive": 2}} | sections),
    )


def night(spark: SparkSession, cfg) -> Lake:
    ingest.run(spark, cfg)
    tokenize.run(spark, cfg)
    return Lake(spark, cfg.lake)


def windows(store: Lake, fit: str) -> set[tuple]:
    """(user id, window, item ids, times, maybe weights) of the sequences of a fit."""
    users = {r.user_idx: r.user_id for r in store.read(Tables.USER_INDEX).collect()}
    items = {0: None} | {r.item_idx: r.item_id for r in store.read(Tables.ITEM_INDEX).collect()}
    rows = store.read(table_of(Tables.SEQUENCES, fit)).collect()
    return {
        (users[r.user_idx], r.window, tuple(items[i] for i in r.item_idx), tuple(r.event_ts), *map(tuple, r[4:]))
        for r in rows
    }


LOG = [(f"u{u}", (3 * u + n) % N_ITEMS, DAY * (n + 1) + u) for u in range(6) for n in range(u + 2)]


@pytest.fixture(scope="module")
def first(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Lake]:
    cfg = shop(tmp_path_factory.mktemp("first"), LOG)
    return cfg, night(spark, cfg)


def test_indices_number_everyone(first: tuple[Any, Lake]) -> None:
    users = {r.user_id: r.user_idx for r in first[1].read(Tables.USER_INDEX).collect()}
    assert set(users) == {f"u{n}" for n in range(6)} | {"only here"} and sorted(users.values()) == list(range(7))
    items = {r.item_id: r.item_idx for r in first[1].read(Tables.ITEM_INDEX).collect()}
    assert set(items) == {f"i{n}" for n in range(N_ITEMS)} and sorted(items.values()) == list(range(1, N_ITEMS + 1))


def test_tokens_have_a_row_for_each(first: tuple[Any, Lake]) -> None:
    rows = {r.id: r for r in first[1].read(Tables.ITEM_TOKENS).collect()}
    assert len(rows) == N_ITEMS and (rows["i5"].n_tokens, rows["i5"].length, rows["i5"].input_ids) == (0, 0, [])
    assert rows["i4"].n_tokens == len(rows["i4"].input_ids) == 5  # [CLS] pan number 4 [SEP]
    users = {r.id: r.n_tokens for r in first[1].read(Tables.USER_TOKENS).collect()}
    assert users["only here"] == users["u1"] == 5 and users["u4"] == 0


def test_holdout_sequences_are_those_of_the_training_events(spark: SparkSession, first: tuple[Any, Lake]) -> None:
    cfg, store = first
    events = split.training_events(store.read(Tables.INTERACTIONS), cfg.evaluation, HOLDOUT)
    indices = store.read(Tables.USER_INDEX), store.read(Tables.ITEM_INDEX)
    rows = sequences.windows(events, *indices, cfg.text.sequence_length)
    assert sorted(map(str, rows.collect())) == sorted(
        map(str, store.read(table_of(Tables.SEQUENCES, HOLDOUT)).collect())
    )


def test_sequences_hold_the_log(first: tuple[Any, Lake]) -> None:
    got = {key[:2]: key[2:4] for key in windows(first[1], "full")}
    assert got["u1", 0] == ((None, "i3", "i4", "i5"), (0, DAY + 1, 2 * DAY + 1, 3 * DAY + 1))
    assert got["u2", 0][0] == ("i6", "i7", "i8", "i9") and got["u2", 1][0] == (None, None, None, "i6")
    held = {key[:2]: key[2] for key in windows(first[1], HOLDOUT)}
    assert held["u1", 0] == (None, None, None, "i3") and held["u0", 0] == (None, None, None, "i0")
    assert held["u5", 0] == ("i4", "i5", "i6", "i7") or held["u5", 0][-1] == "i7"


def test_features_are_filled_and_normalised_by_the_training_part(first: tuple[Any, Lake]) -> None:
    store = first[1]
    trained = {item for u in range(6) for item in [(3 * u + n) % N_ITEMS for n in range(u + 2)][: -2 if u else -1]}
    prices = [float(n) for n in trained if n != 6]
    rows = {r.item_id: r for r in store.read(table_of(Tables.ITEM_FEATURES, HOLDOUT)).collect()}
    for n in range(N_ITEMS):
        price = float(n) if n != 6 else np.mean(prices)
        assert rows[f"i{n}"].price == pytest.approx((price - np.mean(prices)) / np.std(prices))
    stats = {r.attribute: r for r in store.read(table_of(Tables.FEATURE_STATISTICS, HOLDOUT)).collect()}
    assert stats["price"].n == len(prices) and stats["price"].entity == "items"
    assert set(stats["kind"].categories) == {f"kind {n % 3}" for n in trained}


def test_negatives_are_never_seen(first: tuple[Any, Lake]) -> None:
    store = first[1]
    rows = store.read(Tables.EXAMPLES).collect()
    ones = {(r.user_idx, r.item_idx) for r in rows if r.label == 1}
    zeros = [(r.user_idx, r.item_idx) for r in rows if r.label == 0]
    assert len(ones) == len(LOG) and len(zeros) == 2 * len(LOG) and not ones & set(zeros)


def test_shards_are_even_and_enough(first: tuple[Any, Lake]) -> None:
    cfg, store = first
    files = [pq.ParquetFile(path).metadata for path in store.live_files(Tables.SEQUENCES)]
    assert sum(f.num_row_groups for f in files) >= 4 * cfg.training.num_proc
    rows = [f.num_rows for f in files]
    assert max(rows) - min(rows) <= 1


def test_a_second_run_commits_nothing(spark: SparkSession, first: tuple[Any, Lake]) -> None:
    cfg, store = first
    tables = [t.name for t in Path(cfg.lake.root).iterdir() if t.name not in ("ledger", "processed_batches")]
    before = {t: store.latest_version(t) for t in tables}
    night(spark, cfg)
    assert {t: store.latest_version(t) for t in tables} == before


def test_a_night_gives_what_a_full_build_gives(spark: SparkSession, tmp_path: Path) -> None:
    """New events behind and before a user's history, new users, a new item, one changed text."""
    cfg = shop(tmp_path / "grown", LOG)
    store = night(spark, cfg)
    spark.sql(f"UPDATE {store.name(Tables.ITEM_TOKENS)} SET input_ids = array(1) WHERE id = 'i1'")  # a mark
    new = [
        ("u5", 11, 100 * DAY),
        ("u5", 2, 101 * DAY),
        ("u4", 9, 1),
        ("new", 3, 5),
        ("u0", 1, DAY * 2),
        ("u1", 7, 99 * DAY),
    ]
    cfg = shop(tmp_path / "grown", new)
    items = (tmp_path / "grown" / "items.json").read_text().replace("number 2", "number two")
    (tmp_path / "grown" / "items.json").write_text(items)
    grown = night(spark, cfg)
    built = shop(tmp_path / "built", LOG + new)
    (tmp_path / "built" / "items.json").write_text(items)
    whole = night(spark, built)
    for fit in ("full", HOLDOUT):
        assert windows(grown, fit) == windows(whole, fit)
    tokens = [{r.id: r.input_ids for r in s.read(Tables.ITEM_TOKENS).collect()} for s in (grown, whole)]
    assert tokens[0].pop("i1") == [1]  # taken over, not made again
    assert tokens[1].pop("i1") and tokens[0] == tokens[1]

    store = night(spark, shop(tmp_path / "grown", [("newest", 0, 102 * DAY)], users=["u0"]))
    numbers = {r.user_id: r.user_idx for r in store.read(Tables.USER_INDEX).collect()}
    assert numbers.keys() == {user for user, _, _ in LOG + new} | {"newest"}  # who was only described has gone
    assert sorted(numbers.values()) == list(range(len(numbers)))


def test_two_runs_that_number_at_once_give_every_id_one_number(spark: SparkSession, tmp_path: Path) -> None:
    cfg = shop(tmp_path, LOG)
    night(spark, cfg)
    slow = tokenize.Night(store := Lake(spark, cfg.lake), cfg, processed.entries(store, tokenize.STAGE))
    store.version(Tables.USER_INDEX)  # pinned as it is now
    night(spark, shop(tmp_path, [("fast", 1, 200 * DAY), ("both", 2, 200 * DAY)]))
    assert tokenize._index(slow, tokenize._USERS) is not None  # knows of the new events, not of their numbers
    numbers = [(r.user_id, r.user_idx) for r in Lake(spark, cfg.lake).read(Tables.USER_INDEX).collect()]
    assert {user for user, _ in numbers} >= {"fast", "both", "u0"}
    assert sorted(number for _, number in numbers) == list(range(len(numbers))) and len(dict(numbers)) == len(numbers)


def test_weights_are_kept_where_they_differ(spark: SparkSession, tmp_path: Path) -> None:
    store = night(spark, shop(tmp_path, LOG, positives={"half_life_days": 1}))
    for fit in (FULL, HOLDOUT):
        newest = {user: row for user, window, *row in windows(store, fit) if not window}
        _, times, weights = newest["u5"]
        assert all(weights[-i] > 1.9 * weights[-i - 1] for i in (1, 2)) and len(times) == len(weights) == 4


def test_another_table_of_the_same_version_is_not_the_same_input(spark: SparkSession, tmp_path: Path) -> None:
    cfg = shop(tmp_path, LOG)
    assert night(spark, cfg).version(Tables.INTERACTIONS) == 0
    for place in (tmp_path / "log", Path(cfg.lake.root) / Tables.INTERACTIONS):
        shutil.rmtree(place)
    other = [(user, item, time + DAY) for user, item, time in LOG if user != "u0"]
    again = night(spark, shop(tmp_path, other))
    assert again.version(Tables.INTERACTIONS) == 0
    assert {times[-1] for _, window, _, times in windows(again, FULL) if not window} == {
        max(time for user, _, time in other if user == own) for own, _, _ in other
    }


def test_users_without_any_text_cost_no_rows(spark: SparkSession, first: tuple[Any, Lake], tmp_path: Path) -> None:
    described, ingested = first
    shutil.copytree(ingested.config.root, tmp_path / "lake")
    cfg = replace(
        described,
        source=replace(described.source, users=None),
        lake=replace(described.lake, root=str(tmp_path / "lake")),
    )
    tables = [table_of(Tables.USER_TOKENS, fit) for fit in (FULL, HOLDOUT)]
    tokenize.run(spark, cfg)
    store = Lake(spark, cfg.lake)
    emptied = {table: store.version(table) for table in tables}
    assert all(store.read(table).count() == 0 < ingested.read(table).count() for table in tables)

    event = store.read(Tables.INTERACTIONS).limit(1).withColumn(C.USER, F.lit("newcomer"))
    store.write(Tables.INTERACTIONS, event, mode="append")
    tokenize.run(spark, cfg)
    after = Lake(spark, cfg.lake)
    assert "newcomer" in {r.user_id for r in after.read(Tables.USER_INDEX).collect()}
    assert {table: after.version(table) for table in tables} == emptied


def test_held_out_rows_change_nothing_in_training(spark: SparkSession, tmp_path: Path) -> None:
    """The last two events of each user, and what users wrote from then on, are altered."""
    words = [("u3", "i9", "likes steel", DAY), ("u3", "i1", "loves copper", 50 * DAY), ("u4", "i0", "old pan", 2)]
    altered_words = [words[0], ("u3", "i2", "hates copper", 51 * DAY), words[2]]
    last = {u: sorted(t for v, _, t in LOG if v == u)[-2:] for u in {u for u, _, _ in LOG}}
    altered = [
        (u, (i + 5) % N_ITEMS if t in last[u] and u != "u0" else i, t + 7 if t == last[u][1] else t) for u, i, t in LOG
    ]
    lakes = [
        night(spark, shop(tmp_path / name, log, said))
        for name, log, said in (("a", LOG, words), ("b", altered, altered_words))
    ]

    assert_same_training(*lakes)
    tokens = {r.id: r.n_tokens for r in lakes[0].read(Tables.USER_TOKENS).collect()}
    held = {r.id: r.n_tokens for r in lakes[0].read(table_of(Tables.USER_TOKENS, HOLDOUT)).collect()}
    assert tokens["u3"] > held["u3"] > 0 and tokens["u4"] == held["u4"] > 0


def assert_same_training(store: Lake, altered: Lake) -> None:
    """What the holdout fit reads is the same in both lakes, though their logs are not."""
    assert windows(store, HOLDOUT) == windows(altered, HOLDOUT) and windows(store, FULL) != windows(altered, FULL)
    for table in (Tables.USER_TOKENS, Tables.EXAMPLES, Tables.ITEM_FEATURES, Tables.FEATURE_STATISTICS):
        one, other = (sorted(map(str, lake.read(table_of(table, HOLDOUT)).collect())) for lake in (store, altered))
        assert one == other and one, table


Event = tuple[str, int, int]
ALTERATIONS: dict[str, Callable[[str, int, int], Event]] = {  # of a held-out event, which stays held out
    "temporal": lambda user, item, ts: (user, (item + 5) % N_ITEMS, ts),
    "item_cold": lambda user, item, ts: (f"u{(int(user[1:]) + 1) % 6}", item, ts + 7),
    "user_cold": lambda user, item, ts: (user, (item + 5) % N_ITEMS, ts + 7),
}


@pytest.mark.parametrize("protocol", ALTERATIONS)
def test_held_out_rows_change_nothing_by_any_protocol(
    protocol: str, spark: SparkSession, first: tuple[Any, Lake], tmp_path: Path
) -> None:
    """Where it depends on more than what is altered which rows are held out (random), no such test is possible."""
    sections = {"evaluation": {"protocol": protocol, "test_share": 0.2}}
    ingested, alter = first[1], ALTERATIONS[protocol]
    log = ingested.read(Tables.INTERACTIONS)
    parts = split.assign(log, shop(tmp_path / "a", LOG, **sections).evaluation).where(F.col(C.SPLIT) != split.TRAIN)
    held = {(r.user_id, r.item_id) for r in parts.collect()}
    lakes = []
    for name, out in (("a", set()), ("b", held)):
        cfg = shop(tmp_path / name, LOG, **sections)
        for table in (Tables.ITEMS, Tables.USERS):
            shutil.copytree(Path(ingested.config.root) / table, Path(cfg.lake.root) / table)
        rows = []
        for row in log.collect():
            user, item, ts = row.user_id, int(row.item_id[1:]), int(row.event_ts.timestamp())
            if (row.user_id, row.item_id) in out:
                user, item, ts = alter(user, item, ts)
            when = dt.datetime.fromtimestamp(ts, dt.UTC)
            rows.append((user, f"i{item}", when, row.event_order, row.event, row.value))
        store = Lake(spark, cfg.lake)
        store.write(Tables.INTERACTIONS, spark.createDataFrame(rows, columns.INTERACTIONS))
        tokenize.run(spark, cfg)
        lakes.append(Lake(spark, cfg.lake))
    assert_same_training(*lakes)
