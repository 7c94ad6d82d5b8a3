"""Publishing: the best items for every user, by exact inner product of the published factors.

    user_factors, item_factors, interactions, users, candidates  ->  recommendations   (one atomic commit a run_date)
    item_factors  ->  similar_items                                                     (scoring.mode=similar_items)

Every user that `user_factors`, `interactions` or `users` knows gets a list; who has no factors, or factors of zeros,
gets what is popular in the segment, marked source = popular.
"""

import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, Row, SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec import lake as lakes
from flmrec.columns import C, Tables
from flmrec.config import Config, ScoringConfig
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake, LedgerRow
from flmrec.progress import console
from flmrec.scoring import ann, driver
from flmrec.scoring.driver import Catalogue
from flmrec.scoring.files import open_items
from flmrec.scoring.rules import Rules
from flmrec.scoring.topk import search
from flmrec.scoring.worker import ALL, SEEN, SEGMENT, Job, ragged
from flmrec.stages import eligible, rerank

_KINDS = 5  # model versions or dimensions that a message names
_JUDGED_USERS = 500  # users whose approximate lists are compared with the exact ones


def run(spark: SparkSession, cfg: Config) -> None:
    started = time.monotonic()
    lake = Lake(spark, cfg.lake)
    mode = _similar_items if cfg.scoring.mode == "similar_items" else _recommend
    rows = mode(spark, lake, cfg)
    lakes.record(lake, cfg.run.id, "score", rows, time.monotonic() - started)


def _recommend(spark: SparkSession, lake: Lake, cfg: Config) -> list[LedgerRow]:
    scoring = cfg.scoring
    assert cfg.run.date is not None
    if scoring.rerank:
        rerank.newest(lake)  # says so at once where there is none
    factors = lake.read(Tables.USER_FACTORS)
    events = lake.read(Tables.INTERACTIONS).select(C.USER, C.ITEM)
    segments = _segments(lake, scoring)
    item_files = lake.live_files(Tables.ITEM_FACTORS)
    with ThreadPoolExecutor() as meanwhile:  # Spark counts while the driver reads the items
        kinds = meanwhile.submit(_kinds, factors)
        counting = meanwhile.submit(eligible.count_events, events, segments)
        with driver.catalogue(item_files) as items:
            _refuse_other_models(kinds.result(), items)
            counts = eligible.popularity(counting.result(), items)
            rows, allow, allowed = eligible.candidates(lake, scoring, items)
            popular = eligible.popular_lists(counts, allow, allowed, max(scoring.k, scoring.rerank))
            job = _job(cfg, items, allowed, popular)
            if scoring.debias:
                items = driver.with_column(items, (-scoring.debias * np.log1p(counts[ALL])).astype(np.float32))
            about: dict[str, NDArray[Any]] = {
                "popularity": counts[ALL],
                "category": eligible.categories(lake, scoring, items),
            }
            if scoring.new_share:
                log = lake.read(Tables.INTERACTIONS)
                about["new"] = eligible.new_items(log, items, cfg.run.date, scoring.new_days)
            shipped = driver.ship(spark, items, allow, about, scoring.index, cfg.run.seed)
            vectors = factors.select(F.col(C.ID).alias(C.USER), C.VECTOR)
            tasks = driver.tasks(spark, max(factors.count(), 0 if segments is None else segments.count()))
            users = driver.audience(vectors, driver.histories(events, items, tasks), segments, tasks)
            passed = Observation()  # counts the users on their way, instead of once more beforehand
            counted = users.observe(passed, F.count(F.lit(1)).alias("users"))
            listed = driver.recommend(counted, shipped, job, columns.RECOMMENDATIONS)
            if scoring.rerank:
                lake.pinned[Tables.RERANK_LISTS] = _publish(lake, Tables.RERANK_LISTS, listed, job)
                listed = rerank.reordered(lake, cfg)
            version = _publish(lake, Tables.RECOMMENDATIONS, listed, job)
            n_users, n_rows = passed.get["users"], lake.rows_written(Tables.RECOMMENDATIONS, version)
            _say_short(n_users * scoring.k - n_rows, n_users, scoring.k)
            if scoring.index != "exact":
                _measure_recall(spark, lake, cfg, items, users, job)
            return [*rows, _ledger(Tables.RECOMMENDATIONS, n_users * scoring.k, n_rows, version)]


def _job(
    cfg: Config, items: Catalogue, allowed: dict[str, NDArray[np.int32]], popular: dict[str, NDArray[np.int32]]
) -> Job:
    scoring = cfg.scoring
    assert cfg.run.date is not None
    return Job(
        run_date=cfg.run.date,
        model_version=items.model_version,
        rules=Rules(
            k=max(scoring.k, scoring.rerank),
            max_per_category=scoring.max_per_category,
            diversity=scoring.diversity,
            min_score=scoring.min_score,
        ),
        dim=items.dim,
        debias=scoring.debias,
        new_places=math.ceil(round(scoring.new_share * scoring.k, 6)),
        exclude_seen=scoring.exclude_seen,
        with_reasons=scoring.reasons,
        index=scoring.index,
        probes=scoring.probes,
        allowed=allowed,
        popular=popular,
    )


def _similar_items(spark: SparkSession, lake: Lake, cfg: Config) -> list[LedgerRow]:
    scoring = cfg.scoring
    assert cfg.run.date is not None
    with driver.catalogue(lake.live_files(Tables.ITEM_FACTORS)) as items:
        rows, allow, _ = eligible.candidates(lake, scoring, items)
        driver.unit_length(items)
        nothing: dict[str, NDArray[Any]] = {
            "popularity": np.zeros(len(items.ids), np.int64),
            "category": eligible.categories(lake, scoring, items),
        }
        shipped = driver.ship(spark, items, allow, nothing)
        rules = Rules(k=scoring.k, max_per_category=scoring.max_per_category, min_score=scoring.min_score)
        none = {ALL: np.zeros(0, np.int32)}
        job = Job(
            run_date=cfg.run.date,
            model_version=items.model_version,
            rules=rules,
            dim=items.dim,
            cosine=True,
            popular=none,
        )
        vectors = lake.read(Tables.ITEM_FACTORS).select(F.col(C.ID).alias(C.USER), C.VECTOR)
        itself = vectors.select(C.USER, F.col(C.USER).alias(C.ITEM))
        tasks = driver.tasks(spark, len(items.ids))
        users = driver.audience(vectors, driver.histories(itself, items, tasks), None, tasks)
        listed = driver.recommend(users, shipped, job, columns.RECOMMENDATIONS)
        renamed = listed.select(
            C.RUN_DATE,
            F.col(C.USER).alias(C.ITEM),
            C.RANK,
            F.col(C.ITEM).alias(C.SIMILAR),
            C.SCORE,
            C.MODEL_VERSION,
        )
        version = _publish(lake, Tables.SIMILAR_ITEMS, renamed, job)
        asked = len(items.ids) * scoring.k
        return [*rows, _ledger(Tables.SIMILAR_ITEMS, asked, lake.rows_written(Tables.SIMILAR_ITEMS, version), version)]


def _publish(lake: Lake, table: str, rows: DataFrame, job: Job) -> int:
    where = f"{C.RUN_DATE} = '{job.run_date}'"
    try:
        return lake.write(table, rows, replace_where=where, partition_by=[C.RUN_DATE])
    except PySparkException as error:
        said = re.search(f"{DataContractError.__name__}: (.+)", str(error))  # by a worker
        if said is None:
            raise
        raise DataContractError(said[1]) from None


def _ledger(table: str, asked: int, written: int, version: int) -> LedgerRow:
    """rows_dropped: places of lists that could not be filled."""
    dropped = asked - written
    return LedgerRow(table=table, rows_in=asked, rows_out=written, rows_dropped=dropped, delta_version=version)


def _say_short(missing: int, n_users: int, k: int) -> None:
    if missing:
        console.print(
            f"score: {missing} of {n_users * k} places of the lists are empty, because fewer than {k} items were "
            "allowed and unseen for some users; the ledger has the number in rows_dropped."
        )


def _kinds(factors: DataFrame) -> list[Row]:
    """(model_version, dimension) of the users, some of them where they are many."""
    return factors.select(C.MODEL_VERSION, F.size(C.VECTOR)).distinct().limit(_KINDS).collect()


def _refuse_other_models(kinds: list[Row], items: Catalogue) -> None:
    """Raises DataContractError where the users' factors are of another model than the items'."""
    versions, dims = {str(row[0]) for row in kinds}, {row[1] for row in kinds}
    if kinds and versions != {items.model_version}:
        raise DataContractError(
            f"user_factors are of model {', '.join(sorted(versions))} and item_factors of {items.model_version}: "
            "their inner products mean nothing; run jobs/factorize.py again."
        )
    if kinds and dims != {items.dim}:
        raise DataContractError(
            f"user_factors have {sorted(dims)} dimensions and item_factors {items.dim}: both must come from one model; "
            "run jobs/factorize.py again."
        )


def _segments(lake: Lake, scoring: ScoringConfig) -> DataFrame | None:
    """user_id, segment of every row of `users`; None where there is no such table."""
    if not lake.exists(Tables.USERS):
        if scoring.segment is not None:
            raise UsageError(f"scoring.segment={scoring.segment} needs the table users; give source.users a path.")
        return None
    users = lake.read(Tables.USERS)
    if scoring.segment is None:
        return users.select(C.USER, F.lit(None).cast("string").alias(SEGMENT))
    return users.select(C.USER, eligible.first_value(users, scoring.segment, "scoring.segment").alias(SEGMENT))


def _measure_recall(spark: SparkSession, lake: Lake, cfg: Config, items: Catalogue, users: DataFrame, job: Job) -> None:
    """Writes ann_recall: the share of the exact lists of a sample of users that the approximate index finds."""
    sample = users.where(F.col(C.VECTOR).isNotNull()).orderBy(F.xxhash64(C.USER)).limit(_JUDGED_USERS).toArrow()
    vectors = np.array(eligible.column(sample, C.VECTOR).to_pylist(), dtype=np.float32).reshape(len(sample), -1)
    if job.debias:
        vectors = np.pad(vectors, ((0, 0), (0, 1)), constant_values=1.0)
    exclude = ragged(eligible.column(sample, SEEN))
    prepared = open_items(items.prefix)[0]
    exact, _ = search(prepared, vectors, job.rules.k, exclude=exclude)
    found, _ = ann.search(items.prefix, job.probes, vectors, job.rules.k, exclude)
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(exact, found, strict=True))
    recall = hits / max(int((exact >= 0).sum()), 1)
    console.print(f"score: the {job.index} index finds {recall:.1%} of the exact lists of {len(sample)} users")
    row = (cfg.run.id, "flm", cfg.evaluation.protocol, "all", "ann_recall", job.rules.k, recall, len(sample))
    where = f"{C.RUN_ID} = '{cfg.run.id}' AND {C.METRIC} = 'ann_recall'"
    lake.replace(Tables.METRICS, spark.createDataFrame([row], columns.METRICS), where)
