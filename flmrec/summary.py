"""The last words of a refresh: where the results are, how good they are, what five users get. No user id is shown."""

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from rich.table import Table

from flmrec.columns import C, Tables
from flmrec.config import Config
from flmrec.lake import Lake
from flmrec.progress import console

METRICS = ("ndcg", "hit_rate", "recall", "mrr", "coverage")
SAMPLE_USERS, HISTORY, SHOWN, TITLE_CHARS = 5, 3, 5, 60


def show(spark: SparkSession, cfg: Config) -> None:
    lake = Lake(spark, cfg.lake)
    console.print(f"\nrecommendations: {lake.name(Tables.RECOMMENDATIONS)}, run_date = {cfg.run.date}")
    console.print(metrics_table(lake, cfg))
    console.print(f"What {SAMPLE_USERS} users saw last, and what they get:")
    for history, titles in sample_users(lake, cfg):
        console.print(f"  {'; '.join(history) or 'no history'}\n    -> {'; '.join(titles)}", markup=False)


def metrics_table(lake: Lake, cfg: Config) -> Table:
    """This run's metrics at 10 (or the k nearest to it), one row a model."""
    k = min(cfg.evaluation.k, key=lambda at: abs(at - 10))
    rows = (
        lake.read(Tables.METRICS)
        .where((F.col(C.RUN_ID) == cfg.run.id) & (F.col(C.SLICE) == "all") & (F.col(C.K) == k))
        .where(F.col(C.METRIC).isin(*METRICS))
        .collect()  # models x metrics, a few dozen rows
    )
    table = Table(title=f"{cfg.evaluation.protocol}, full catalogue, at {k}")
    table.add_column("model")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    values = {(row[C.MODEL], row[C.METRIC]): row[C.VALUE] for row in rows}
    best_first = sorted({row[C.MODEL] for row in rows}, key=lambda model: -values.get((model, "ndcg"), 0.0))
    for model in best_first:
        found = [values.get((model, metric)) for metric in METRICS]
        table.add_row(model, *("" if value is None else f"{value:.4f}" for value in found))
    return table


def sample_users(lake: Lake, cfg: Config) -> list[tuple[list[str], list[str]]]:
    """(titles of the latest history, recommended titles) of a few users, the same ones on every run."""
    recommended = lake.read(Tables.RECOMMENDATIONS).where(F.col(C.RUN_DATE) == F.lit(cfg.run.date))
    users = recommended.where(F.col(C.RANK) == 1).select(C.USER).orderBy(F.xxhash64(C.USER)).limit(SAMPLE_USERS)
    title = F.substring(F.substring_index(C.TEXT, "。", 1), 1, TITLE_CHARS)  # a dot with a blank may stand in a title
    titles = lake.read(Tables.ITEMS).select(C.ITEM, F.coalesce(title, F.concat(F.lit("item "), C.ITEM)).alias("title"))
    newest = Window.partitionBy(C.USER).orderBy(F.desc(C.EVENT_TS), F.desc(C.EVENT_ORDER), C.ITEM)
    history = (
        lake.read(Tables.INTERACTIONS)
        .join(F.broadcast(users), C.USER)
        .withColumn(C.RANK, F.row_number().over(newest))
        .where(F.col(C.RANK) <= HISTORY)
    )
    shown = recommended.where(F.col(C.RANK) <= SHOWN).join(F.broadcast(users), C.USER)
    found = _titles(users, history, titles, "history").join(_titles(users, shown, titles, "shown"), C.USER)
    return [(row["history"], row["shown"]) for row in found.orderBy(C.USER).collect()]


def _titles(users: DataFrame, rows: DataFrame, titles: DataFrame, name: str) -> DataFrame:
    """One row a user: the titles of its rows in order of rank."""
    titled = users.join(rows.join(titles, C.ITEM).select(C.USER, C.RANK, "title"), C.USER, "left")
    ranked = F.array_sort(F.collect_list(F.struct(C.RANK, "title")))
    return titled.groupBy(C.USER).agg(F.transform(ranked, lambda pair: pair["title"]).alias(name))
