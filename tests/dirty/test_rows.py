"""One bad row each: it goes to the quarantine with its reason and what it said, the good ones around it stay."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from tests.dirty.shop import Ingested, config, ingest_shop, write

FORMATS = ["csv.gz", "tsv", "json", "parquet", "delta"]
GOOD = {"user": "u1", "item": "i1", "ts": "1700000000", "event": "buy", "stars": "4.5", "order": "7"}

EVENTS: dict[str, tuple[dict[str, Any], str | None]] = {
    # what is wrong: (the changed fields, reason; None: nothing is wrong)
    "user missing": ({"user": None}, "user_id: missing"),
    "user empty": ({"user": ""}, "user_id: missing"),
    "user blank": ({"user": "   "}, "user_id: missing"),
    "item missing": ({"item": None}, "item_id: missing"),
    "user with a bell": ({"user": "u\x07"}, "user_id: control or broken characters"),
    "item with U+FFFD": ({"item": "caf\ufffd"}, "item_id: control or broken characters"),
    "time missing": ({"ts": None}, "event_ts: missing"),
    "time in words": ({"ts": "yesterday"}, "event_ts: not a time in epoch_s"),
    "time as a date": ({"ts": "2023-11-14"}, "event_ts: not a time in epoch_s"),
    "time NaN": ({"ts": "NaN"}, "event_ts: not a time in epoch_s"),
    "time infinite": ({"ts": "1e999"}, "event_ts: not a time in epoch_s"),
    "time of 40 digits": ({"ts": "9" * 40}, "event_ts: not a time in epoch_s"),
    "time in ms": ({"ts": "1700000000000"}, "event_ts: in the future"),
    "time in 2038": ({"ts": "2147483648"}, "event_ts: in the future"),
    "time in 1969": ({"ts": "-1"}, "event_ts: before 1970-01-01"),
    "time at the epoch": ({"ts": "0"}, None),
    "time with decimals": ({"ts": "1700000000.25"}, None),
    "value in words": ({"stars": "five"}, "value: not a number"),
    "value with a comma": ({"stars": "4,5"}, "value: not a number"),
    "value NaN": ({"stars": "NaN"}, "value: not a number"),
    "value infinite": ({"stars": "-inf"}, "value: not a number"),
    "value of Java": ({"stars": "4d"}, "value: not a number"),
    "value too large": ({"stars": "11"}, "value: not in 0 to 5"),
    "value negative": ({"stars": "-0.5"}, "value: not in 0 to 5"),
    "value missing": ({"stars": None}, None),
    "order with a fraction": ({"order": "1.5"}, "event_order: not a whole number"),
    "order beyond 64 bits": ({"order": "9223372036854775808"}, "event_order: not a whole number"),
    "order at 64 bits": ({"order": "9223372036854775807"}, None),
    "event unknown": ({"event": "steal"}, "event: not one of the allowed"),
    "event missing": ({"event": None}, "event: not one of the allowed"),
    "id with spaces": ({"user": " ann  smith "}, None),
    "id with quotes": ({"user": "o\"neil's"}, None),
    "id with slashes": ({"item": "a/b\\c"}, None),
    "id in Chinese": ({"user": "张三"}, None),
    "id of 1,000 characters": ({"user": "x" * 1000}, None),
    "id like SQL": ({"user": "'; DROP TABLE users; --"}, None),
    "id like a number": ({"item": "007"}, None),
    "id with an emoji": ({"item": "🎬"}, None),
}


@pytest.fixture(scope="module", params=FORMATS)
def events(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder: Path = tmp_path_factory.mktemp(request.param.replace(".", "_"))
    rows = [GOOD | {"case": "good"}] + [GOOD | changed | {"case": case} for case, (changed, _) in EVENTS.items()]
    path = write(folder / f"log.{request.param.replace('delta', 'parquet')}", rows)
    place = {}
    if request.param == "delta":
        spark.read.parquet(str(path)).write.format("delta").save(str(folder / "table"))
        place = {"path": str(folder / "table"), "format": "delta"}
    columns = {
        "user_id": "user",
        "item_id": "item",
        "event_ts": "ts",
        "event": "event",
        "value": "stars",
        "order": "order",
    }
    source = {"columns": columns, "value_range": [0.0, 5.0], "events": {"buy": 1.0, "view": 0.5}} | place
    return ingest_shop(spark, config(folder, interactions=source))


@pytest.mark.parametrize("case", EVENTS)
def test_event_is_judged(events: Ingested, case: str) -> None:
    changed, reason = EVENTS[case]
    found = [(why, raw) for why, raw in events.bad("interactions") if raw["case"] == case]
    if reason is not None:
        assert [why for why, _ in found] == [reason]
        assert all((found[0][1][key] or None) == (value or None) for key, value in changed.items())
        return
    assert not found
    kept = {(r.user_id, r.item_id) for r in events.tables["interactions"]}
    assert (changed.get("user", "u1"), changed.get("item", "i1")) in kept


def test_no_event_is_lost(events: Ingested) -> None:
    n_bad = sum(reason is not None for _, reason in EVENTS.values())
    assert events.ledger("interactions") == (len(EVENTS) + 1, len(EVENTS) + 1 - n_bad, n_bad, 0, 0)
    assert {r.run_id for r in events.tables["quarantine"]} == {"test-run"}


def test_values_arrive_as_they_are(events: Ingested) -> None:
    rows = {(r.event_ts.timestamp(), r.event_order, r.value) for r in events.tables["interactions"]}
    assert {(1700000000.25, 7, 4.5), (0.0, 7, 4.5), (1700000000.0, 9223372036854775807, 4.5)} <= rows
    assert (1700000000.0, 7, None) in rows


ENTITIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "id missing": ({"item": None}, "item_id: missing"),
    "id blank": ({"item": " "}, "item_id: missing"),
    "id with a line end": ({"item": "a\nb"}, "item_id: control or broken characters"),
    "price in words": ({"price": "cheap"}, "price: not a number"),
    "price out of range": ({"price": "-1"}, "price: not in 0 to 100"),
    "price missing": ({"price": None}, None),
    "picture too short": ({"picture": "[1, 2]"}, "picture: not 3 numbers"),
    "picture of words": ({"picture": "[1, 2, x]"}, "picture: not 3 numbers"),
    "picture missing": ({"picture": None}, None),
    "text missing": ({"title": None}, None),
    "text too long": ({"title": "pan " * 300}, "text: more than 1000 characters"),
    "text of markup only": ({"title": "<br/><p></p>"}, None),
}
PLAIN = {"item": "plain", "title": "red pan", "price": "9.5", "picture": "[0.5, 1, -2e-1]", "kind": "kitchen"}


@pytest.fixture(scope="module", params=["csv", "json"])
def items(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder: Path = tmp_path_factory.mktemp(f"items_{request.param}")
    rows = [PLAIN | {"case": "good"}]
    rows += [PLAIN | {"item": f"item {case}"} | changed | {"case": case} for case, (changed, _) in ENTITIES.items()]
    rows += [
        PLAIN | {"case": "good"},  # says the same
        PLAIN | {"item": "twice", "title": "long title of it", "case": "longer"},
        PLAIN | {"item": "twice", "title": "short", "case": "contradicts"},
        PLAIN | {"item": "twice", "title": "short", "case": "contradicts"},
    ]
    write(folder / f"items.{request.param}", rows)
    source = {
        "numeric": ["price"],
        "ranges": {"price": [0.0, 100.0]},
        "categorical": ["kind"],
        "vectors": {"picture": 3},
        "options": {"multiLine": True} if request.param == "csv" else {},
    }
    return ingest_shop(spark, config(folder, items=source, quality={"long_text": {"max_chars": 1000}}))


@pytest.mark.parametrize("case", ENTITIES)
def test_item_is_judged(items: Ingested, case: str) -> None:
    changed, reason = ENTITIES[case]
    assert [why for why, raw in items.bad("items") if raw["case"] == case] == ([] if reason is None else [reason])
    if reason is None:
        (row,) = (r for r in items.tables["items"] if r.item_id == f"item {case}")
        expected = {"text": "red pan", "price": 9.5, "picture": pytest.approx([0.5, 1.0, -0.2]), "kind": ["kitchen"]}
        empty = {"title": "text"}.get(*changed, next(iter(changed)))
        assert row.asDict() == {"item_id": f"item {case}", "content_hash": row.content_hash} | expected | {empty: None}


def test_no_item_is_lost(items: Ingested) -> None:
    n_bad = sum(reason is not None for _, reason in ENTITIES.values()) + 2
    assert items.ledger("items") == (len(ENTITIES) + 5, len(ENTITIES) + 5 - n_bad - 1, n_bad, 1, 0)


def test_of_two_rows_of_one_id_one_stays(items: Ingested) -> None:
    assert [r.text for r in items.tables["items"] if r.item_id == "twice"] == ["long title of it"]
    why = [reason for reason, raw in items.bad("items") if raw["case"] == "contradicts"]
    assert why == ["item_id: another row of this id says something else"] * 2


USERS: dict[str, tuple[dict[str, Any], str | None]] = {
    "id missing": ({"user": None}, "user_id: missing"),
    "id with U+FFFD": ({"user": "\ufffd"}, "user_id: control or broken characters"),
    "age in words": ({"age": "old"}, "age: not a number"),
    "age missing": ({"age": None}, None),
    "town missing": ({"town": None}, None),
}
WORDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "user missing": ({"user": None}, "user_id: missing"),
    "item with a bell": ({"item": "i\x07"}, "item_id: control or broken characters"),
    "item missing": ({"item": None}, None),
    "time in words": ({"ts": "today"}, "event_ts: not a time in epoch_s"),
    "time in 2038": ({"ts": "2147483648"}, "event_ts: in the future"),
    "time in 1969": ({"ts": "-1"}, "event_ts: before 1970-01-01"),
    "nothing said": ({"said": None}, "text: missing"),
    "nothing but markup": ({"said": "<p>&nbsp;</p>"}, "text: missing"),
    "too much said": ({"said": "word " * 300}, "text: more than 1000 characters"),
}
KEPT = {"user": "u1", "item": "i1", "ts": "1700000000", "said": "fine", "age": "30", "town": "Bonn"}


@pytest.fixture(scope="module")
def people(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Users in a TSV file, with ids of their own, and what they wrote as JSON."""
    folder: Path = tmp_path_factory.mktemp("people")
    users = [KEPT | {"user": case} | changed | {"case": case} for case, (changed, _) in USERS.items()]
    words = [KEPT | {"said": case} | changed | {"case": case} for case, (changed, _) in WORDS.items()]
    write(folder / "users.tsv", users)
    write(folder / "words.json", [*words, words[2]])
    profile: dict[str, Any] = {"columns": {"user_id": "user"}, "template": "from {town}", "numeric": ["age"]}
    profile |= {"categorical": ["town"], "names": {"town": {"Bonn": "the city of Bonn"}}}
    said = {"columns": {"user_id": "user", "item_id": "item", "event_ts": "ts", "text": "said"}}
    source = {
        "users": profile | {"path": str(folder / "users.tsv")},
        "words": said | {"path": str(folder / "words.json")},
    }
    return ingest_shop(spark, config(folder, source=source, quality={"long_text": {"max_chars": 1000}}))


@pytest.mark.parametrize(("source", "cases"), [("users", USERS), ("words", WORDS)])
def test_people_and_their_words_are_judged(people: Ingested, source: str, cases: dict[str, tuple]) -> None:
    found = {raw["case"]: reason for reason, raw in people.bad(source)}
    assert found == {case: reason for case, (_, reason) in cases.items() if reason is not None}
    n_twice = 1 if source == "words" else 0
    n_out = len(cases) - len(found)
    assert people.ledger(source) == (len(cases) + n_twice, n_out, len(found), n_twice, 0)
    assert len(people.tables[source]) == n_out
    texts = {r.text for r in people.tables[source]}
    assert source == "words" or texts == {"from the city of Bonn", "from"}
