"""The data contract as columns: which rule a row breaks first, by itself or beside other rows.

Plain column expressions judge a row in the pass that parses it. A data-quality library would bring a pass, a JVM
package or a metric store of its own and still leave the quarantine to us.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec.columns import C
from flmrec.config import QualityConfig, RobotRule, Rule

ROW = "row"  # struct of the source's own columns
DUPLICATE = "duplicate"  # rows that say the same as another one


@dataclass(frozen=True)
class Check:
    """One way to break a rule."""

    rule: str  # field of QualityConfig
    reason: str  # "column: what is wrong", as in the quarantine
    broken: Column  # true where the row breaks it; null counts as false


@dataclass(frozen=True)
class Parsed:
    """Rows with C.REASON (null where good) and ROW, and the rule behind every reason."""

    rows: DataFrame
    rules: dict[str, str]  # reason: field of QualityConfig


def given(column: str) -> Column:
    """The source's own column, by its exact name, of rows that have ROW."""
    return F.col(ROW).getField(column)


def rule_of(quality: QualityConfig, name: str) -> Rule:
    rule: Rule = getattr(quality, name)
    return rule


def active(checks: Iterable[Check], quality: QualityConfig) -> list[Check]:
    return [check for check in checks if rule_of(quality, check.rule).action != "off"]


def judged(read: DataFrame, checks: Sequence[Check], quality: QualityConfig) -> Parsed:
    """`read` (parsed columns and ROW) with C.REASON. The checks name columns of `read`: were they to parse again what
    they look at, Spark would do so in each check, which took ten times as long."""
    on = active(checks, quality)
    reason = F.coalesce(*[F.when(check.broken, F.lit(check.reason)) for check in on]).alias(C.REASON)
    others = [name for name in read.columns if name != ROW]
    return Parsed(read.select(*others, reason, ROW), {check.reason: check.rule for check in on})


def id_checks(column: str, *, required: bool = True) -> list[Check]:
    """An id is there, without control characters and without the character that stands for broken ones."""
    broken = F.col(column).rlike(r"[\p{Cntrl}\x{FFFD}]")
    damaged = Check("damaged_id", f"{column}: control or broken characters", broken)
    return [Check("missing_id", f"{column}: missing", F.col(column).isNull()), damaged] if required else [damaged]


def beyond(value: Column, limits: Sequence[float]) -> Column:
    return (value < limits[0]) | (value > limits[1])


def mark_unknown(parsed: Parsed, known: DataFrame, column: str, rule: str) -> Parsed:
    """Good rows whose `column` is not in `known` (distinct ids) break `rule`."""
    reason = f"{column}: unknown"
    ids = known.select(F.col(column), F.lit(True).alias("is_known"))
    joined = parsed.rows.join(ids, column, "left")
    return _marked(parsed, joined, Check(rule, reason, F.col("is_known").isNull()))


def mark_robots(parsed: Parsed, rule: RobotRule) -> Parsed:
    """Good rows of users with more than rule.events_per_day good events on some UTC day."""
    day = F.to_date(C.EVENT_TS).alias("day")
    per_day = parsed.rows.where(F.col(C.REASON).isNull()).groupBy(C.USER, day).count()
    robots = per_day.where(F.col("count") > rule.events_per_day).select(C.USER).distinct()
    joined = parsed.rows.join(robots.withColumn("is_robot", F.lit(True)), C.USER, "left")
    check = Check("robots", f"{C.USER}: more than {rule.events_per_day} events on one day", F.col("is_robot"))
    return _marked(parsed, joined, check)


def mark_same_second(parsed: Parsed) -> Parsed:
    """Good rows with user, item, kind of event and second of another one, other than exact duplicates of it."""
    content = F.xxhash64(C.EVENT_TS, C.EVENT_ORDER, C.VALUE)
    second = F.unix_timestamp(C.EVENT_TS)
    good = F.col(C.REASON).isNull()
    same = Window.partitionBy(C.USER, C.ITEM, C.EVENT, second, good)
    kept = F.min(content).over(same)
    rows = parsed.rows.withColumn("is_second", good & (content != kept))
    return _marked(
        parsed, rows, Check("same_second", f"{C.EVENT_TS}: second event of the same second", F.col("is_second"))
    )


def _marked(parsed: Parsed, rows: DataFrame, check: Check) -> Parsed:
    reason = F.coalesce(C.REASON, F.when(check.broken, F.lit(check.reason))).alias(C.REASON)
    columns = [reason if name == C.REASON else F.col(name) for name in parsed.rows.columns]
    return Parsed(rows.select(columns), parsed.rules | {check.reason: check.rule})
