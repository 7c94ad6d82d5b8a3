"""The data contract over a whole source: counts per rule, shares, columns, types."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from flmrec import intake
from flmrec.columns import C
from flmrec.config import QualityConfig
from flmrec.data.rules import Parsed, rule_of
from flmrec.errors import DataContractError
from flmrec.intake import Intake
from flmrec.sources import BATCH, Opened, quoted


def count(parsed: DataFrame, opened: Opened) -> list[Row]:
    """(batch, reason, rows, high, low): as many rows as batches and reasons; high and low hash the content."""
    high, low = intake.content_hash(opened)
    grouped = parsed.groupBy(F.col(BATCH).alias("batch"), F.col(C.REASON).alias("reason"))
    return grouped.agg(F.count(F.lit(1)).alias("rows"), high.alias("high"), low.alias("low")).collect()


def bad(counts: Sequence[Row]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in counts:
        if row.reason is not None:
            found[row.reason] += row.rows
    return found


def contents(counts: Sequence[Row]) -> dict[str, tuple[int, str]]:
    """Batch: (rows, hash of its content)."""
    sums: dict[str, list[int]] = {}
    for row in counts:
        total = sums.setdefault(row.batch, [0, 0, 0])
        for i, value in enumerate((row.rows, row.high, row.low)):
            total[i] += value
    return {batch: (rows, f"{high} {low}") for batch, (rows, high, low) in sums.items()}


def check(plan: Intake, opened: Opened, parsed: Parsed, counts: Sequence[Row], quality: QualityConfig) -> None:
    """Raises DataContractError where too many rows break a rule, or no row is left."""
    found, total = bad(counts), sum(row.rows for row in counts)
    faults = list(_excesses(parsed, found, total, quality))
    if faults:
        raise DataContractError(
            f"source.{plan.name}: {opened.where} breaks the data contract: {'; '.join(faults)}. Nothing was written; "
            "deliver the rows again, or change the rule under quality."
        )
    if plan.is_update or found.total() < total:
        return
    if total == 0:
        raise DataContractError(f"source.{plan.name}: {opened.where} holds no rows; deliver it again.")
    worst = ", ".join(f"{reason} ({n})" for reason, n in found.most_common(3))
    raise DataContractError(
        f"source.{plan.name}: none of the {total} rows of {opened.where} can be used: {worst}; "
        f"correct format, columns, options or ts_format of source.{plan.name}."
    )


def check_columns(opened: Opened, rows: DataFrame, needed: Sequence[str], quality: QualityConfig) -> None:
    """Raises DataContractError for configured columns without any value, or with one value, where that is a rule.

    The message does not tell the value, which may be a user's id or words.
    """
    if quality.empty_column.action == quality.constant_column.action == "off":
        return
    texts = {c: quoted(c).cast("string") for c in dict.fromkeys(needed)}
    ends = [F.struct(F.min(t), F.max(t)).alias(f"c{i}") for i, t in enumerate(texts.values())]
    found = rows.agg(*ends).collect()[0]
    for column, (low, high) in zip(texts, found, strict=True):
        rule, wrong = ("empty_column", "no value") if low is None else ("constant_column", "one value")
        if low == high and rule_of(quality, rule).action == "fail":
            raise DataContractError(
                f"source.{opened.name}: column {column} of {opened.where} has {wrong} in all rows; deliver it again, "
                f"or set quality.{rule}.action=off."
            )


def check_types(plan: Intake, opened: Opened, needed: Sequence[str]) -> Iterator[str]:
    """A line for each new column. Raises DataContractError for a needed column whose type is no longer the same."""
    same_settings = [e for e in plan.known if e.settings == plan.settings and e.types]
    if not same_settings:
        return
    before: dict[str, str] = json.loads(same_settings[-1].types)
    for column, dtype in opened.types.items():
        if column not in before:
            yield f"  {plan.name}: new column {column} ({dtype}) is left out; name it in source.{plan.name} to use it"
        elif dtype != before[column] and column in needed:
            raise DataContractError(
                f"source.{plan.name}: column {column} of {opened.where} was {before[column]} and is now {dtype}; "
                f"deliver it as {before[column]}, or give it another name and change source.{plan.name}."
            )


def _excesses(parsed: Parsed, found: Counter[str], total: int, quality: QualityConfig) -> Iterator[str]:
    by_rule: Counter[str] = Counter()
    for reason, n in found.items():
        by_rule[parsed.rules[reason]] += n
    for name, n in by_rule.items():
        rule = rule_of(quality, name)
        limit = 0.0 if rule.action == "fail" else rule.max_share
        if limit is not None and n > limit * total:
            reasons = ", ".join(reason for reason in found if parsed.rules[reason] == name)
            yield f"{n} of {total} rows break {name} ({reasons}), allowed are {limit:.4g} of them"
