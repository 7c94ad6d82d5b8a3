"""The rules that look at more than one row, shares, actions, columns."""

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from flmrec.errors import DataContractError
from flmrec.stages import ingest
from tests.dirty.shop import config, ingest_shop, write

DAY = 86_400


def event(user: str, item: str, ts: float, **more: Any) -> dict[str, Any]:
    return {"user": user, "item": item, "ts": str(ts)} | more


ROBOT = [event("robot", f"i{n}", DAY + n) for n in range(5)] + [event("robot", "i1", 9 * DAY)]
PEOPLE = [event("u1", "i1", DAY), event("u1", "i2", DAY + 1), event("u1", "i2", 2 * DAY), event("u2", "i1", DAY)]
TWICE = [
    event("u3", "i1", DAY + 0.25, stars=1),
    event("u3", "i1", DAY + 0.75, stars=2),
    event("u3", "i2", DAY + 0.5, stars=1),
]


def test_set_rules_together(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "log.csv", PEOPLE + ROBOT + [event("ghost", "i1", DAY), event("u1", "lost", DAY)] + TWICE)
    write(tmp_path / "users.csv", [{"user": u} for u in ("u1", "u2", "u3", "robot")])
    users = {"path": str(tmp_path / "users.csv"), "columns": {"user_id": "user"}}
    quality = {
        "unknown_user": {"action": "quarantine"},
        "unknown_item": {"action": "drop"},
        "same_second": {"action": "quarantine"},
        "robots": {"action": "quarantine", "events_per_day": 1},
    }
    write(tmp_path / "items.json", [{"item": f"i{n}", "title": "pan"} for n in range(5)])
    columns = {"user_id": "user", "item_id": "item", "event_ts": "ts", "value": "stars"}
    cfg = config(tmp_path, interactions={"columns": columns}, source={"users": users}, quality=quality)
    done = ingest_shop(spark, cfg)
    found = sorted((reason, raw["user"]) for reason, raw in done.bad("interactions"))
    robots = "user_id: more than 1 events on one day"
    assert found == sorted(
        [("user_id: unknown", "ghost")] + [(robots, "robot")] * 6 + [(robots, "u1")] * 3 + [(robots, "u3")] * 3
    )
    assert done.ledger("interactions") == (15, 1, 13, 0, 1)
    assert [r.user_id for r in done.tables["interactions"]] == ["u2"]


def test_same_second(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path / "log.csv", TWICE + TWICE[2:])
    done = ingest_shop(spark, config(tmp_path, quality={"same_second": {"action": "quarantine"}}))
    assert [(reason, raw["item"]) for reason, raw in done.bad("interactions")] == [
        ("event_ts: second event of the same second", "i1")
    ]
    assert done.ledger("interactions") == (4, 2, 1, 1, 0)


BAD = [event("", "i1", DAY), *PEOPLE]  # one row of five
LIMITS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no limit": ({}, None),
    "below its limit": ({"max_share": 0.2}, None),
    "above its limit": (
        {"max_share": 0.19},
        r"1 of 5 rows break missing_id \(user_id: missing\), allowed are 0.19 of them",
    ),
    "none allowed": ({"action": "fail"}, r"1 of 5 rows break missing_id .* allowed are 0 of them"),
    "dropped above": ({"action": "drop", "max_share": 0.1}, "1 of 5 rows break missing_id"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_shares(spark: SparkSession, tmp_path: Path, case: str) -> None:
    rule, message = LIMITS[case]
    write(tmp_path / "log.csv", BAD)
    cfg = config(tmp_path, quality={"missing_id": rule})
    if message is None:
        assert ingest_shop(spark, cfg).ledger("interactions") == (5, 4, 1, 0, 0)
        return
    with pytest.raises(DataContractError, match=message):
        ingest.run(spark, cfg)
    assert not (tmp_path / "lake" / "items").exists()


@pytest.mark.parametrize(
    ("rule", "column", "message"),
    [("empty_column", "note", "column note of .* has no value in all rows"),
     ("constant_column", "kind", "column kind of .* has one value in all rows")],
)  # fmt: skip
def test_whole_columns(spark: SparkSession, tmp_path: Path, rule: str, column: str, message: str) -> None:
    write(tmp_path / "log.csv", [row | {"kind": "buy", "note": ""} for row in PEOPLE])
    columns = {"user_id": "user", "item_id": "item", "event_ts": "ts", "event": column}
    with pytest.raises(DataContractError, match=message):
        ingest.run(spark, config(tmp_path, interactions={"columns": columns}, quality={rule: {"action": "fail"}}))
