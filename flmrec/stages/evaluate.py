"""Measures the holdout fit on the held-out events, beside popularity and ALS on the same split.

    interactions, item_index, user_index, holdout_item_factors, holdout_user_factors, holdout_item_vectors  ->  metrics

Every user with a test event counts, also one without recommendations. Each model ranks the whole catalogue without
what the user had in train and validation; with item_cold the cold items alone, among themselves.
"""

import math
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import yaml
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec import lake as lakes
from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.config import Config, EvaluationConfig
from flmrec.data import positives, split
from flmrec.errors import DataContractError, UsageError
from flmrec.evaluation import aggregation, baselines, gate, lists, ranking
from flmrec.evaluation import truth as truths
from flmrec.evaluation.aggregation import Rows
from flmrec.evaluation.baselines import AlsSettings
from flmrec.evaluation.gate import OURS, POPULARITY
from flmrec.evaluation.metrics import Bools, Floats
from flmrec.evaluation.ranking import Factors
from flmrec.evaluation.truth import POSITION, POSITIVE
from flmrec.lake import Lake, LedgerRow
from flmrec.model import artifact
from flmrec.scoring import shipping
from flmrec.stages import matrices

ALS = "als"
_FACTORS = (table_of(Tables.ITEM_FACTORS, HOLDOUT), table_of(Tables.USER_FACTORS, HOLDOUT))
_SPLIT_KEYS = ("protocol", "test_share", "split_seed", "few_shot", "few_shot_per_user")  # what decides who sees what
_TUNING_USERS = 20_000  # validation users that choose the settings of ALS, at most about


def run(spark: SparkSession, cfg: Config) -> None:
    """Writes this run's rows of `metrics`. Raises DataContractError where there is nothing to measure on."""
    started = time.monotonic()
    lake = Lake(spark, cfg.lake)
    _check_model(lake, cfg.evaluation)
    log = _log(lake, cfg).persist()
    users = _test_users(lake, cfg, log).persist()
    n_users = users.count()
    if n_users == 0:
        raise DataContractError(
            f"{lake.name(Tables.INTERACTIONS)}: the {cfg.evaluation.protocol} split leaves no user with a test event; "
            "give a longer log, or choose another evaluation.protocol."
        )
    rows = _measure(lake, cfg, log, users)
    protocol = cfg.evaluation.protocol
    data = [(cfg.run.id, model, protocol, name, metric, k, value, n) for model, name, metric, k, value, n in rows]
    frame = spark.createDataFrame(data, columns.METRICS).coalesce(1)
    version = lake.write(Tables.METRICS, frame, replace_where=f"{C.RUN_ID} = '{cfg.run.id}'")
    ledger = LedgerRow(table=Tables.METRICS, rows_in=len(rows), rows_out=len(rows), delta_version=version)
    lakes.record(lake, cfg.run.id, "evaluate", [ledger], time.monotonic() - started)
    users.unpersist()
    log.unpersist()


def _check_model(lake: Lake, cfg: EvaluationConfig) -> None:
    """Raises DataContractError where the factors are not of one model, and UsageError where that model was fitted on
    another split, and so has learned from tonight's test events."""
    versions = set()
    for table in _FACTORS:
        versions |= {row[0] for row in lake.read(table).select(C.MODEL_VERSION).distinct().limit(2).collect()}
    if len(versions) != 1:
        raise DataContractError(
            f"{' and '.join(map(lake.name, _FACTORS))} hold the model versions {sorted(versions)}, expected one: "
            "run jobs/factorize.py again."
        )
    [version] = versions
    saved = yaml.safe_load((lake.models_folder() / version / artifact.CONFIG).read_text(encoding="utf-8"))["evaluation"]
    for key in _SPLIT_KEYS:
        fitted = saved.get(key, getattr(EvaluationConfig(), key))  # an older model may lack a newer key
        if fitted != getattr(cfg, key):
            raise UsageError(
                f"Model {version} was fitted with evaluation.{key}={fitted}, not {getattr(cfg, key)}, so it knows "
                "events of the test: run tokenize, finetune, encode and factorize (or jobs/refresh.py) with this "
                "configuration first."
            )


def _log(lake: Lake, cfg: Config) -> DataFrame:
    """user_idx, position, split, positive."""
    parts = split.assign(lake.read(Tables.INTERACTIONS), cfg.evaluation)
    flagged = parts.withColumn(POSITIVE, F.lit(True))
    if cfg.source.interactions.events or cfg.positives.min_value is not None:
        liked = positives.weigh(flagged, cfg.source.interactions.events, cfg.positives).drop(C.WEIGHT)
        flagged = liked.unionByName(parts.withColumn(POSITIVE, F.lit(False)))
    return truths.events(flagged, lake.read(Tables.ITEM_INDEX), lake.read(Tables.USER_INDEX))


def _test_users(lake: Lake, cfg: Config, log: DataFrame) -> DataFrame:
    users = truths.truth(log, split.TEST, repeats=not cfg.scoring.exclude_seen)
    groups = cfg.evaluation.user_groups
    if not groups:
        return users
    attributes = lake.read(Tables.USERS)
    unknown = sorted(set(groups) - set(attributes.columns))
    if unknown:
        raise DataContractError(
            f"evaluation.user_groups names {', '.join(unknown)}, which {lake.name(Tables.USERS)} lacks; it has "
            f"{', '.join(attributes.columns)}."
        )
    return truths.with_groups(users, attributes.join(lake.read(Tables.USER_INDEX), C.USER), groups)


def _measure(lake: Lake, cfg: Config, log: DataFrame, users: DataFrame) -> Rows:
    ks = sorted({*cfg.evaluation.k, gate.K})
    known = truths.popularity(truths.history(log, split.TEST)).persist()
    sums: dict[str, pd.DataFrame] = {}
    rows: Rows = []
    with shipping.array(lake.spark.sparkContext, _content(lake)) as content:
        for name, model in _models(lake, cfg, log, known):
            with ranking.ranked(users, model, max(ks), exclude_seen=cfg.scoring.exclude_seen) as ranked:
                sums[name] = aggregation.sums(ranked, ks, cfg.run.seed, content)
                rows += aggregation.catalogue_values(name, ranked, known, model.allow, ks)
    known.unpersist()
    means = aggregation.means(sums, OURS)
    return rows + means + aggregation.gaps(means, cfg.evaluation.user_groups)


def _content(lake: Lake) -> Floats:
    """(M, H) text vectors of length 1 by position, zero for items without text."""
    name, size = table_of(Tables.ITEM_VECTORS, HOLDOUT), matrices.n_items(lake) + 1
    texts = matrices.vectors(lake, name, Tables.ITEM_INDEX, C.ITEM, C.ITEM_IDX, size, matrices.width(lake, name))
    return lists.unit_rows(texts[1:])


def _models(lake: Lake, cfg: Config, log: DataFrame, known: DataFrame) -> Iterator[tuple[str, Factors]]:
    """Ours and the baselines. ALS is left out where every item that may be recommended is new to it (item_cold)."""
    ours = _ours(lake, _allowed(lake, cfg.evaluation, log))
    yield OURS, ours
    if POPULARITY in cfg.evaluation.baselines:
        yield POPULARITY, baselines.popularity(known, lake.read(Tables.USER_INDEX), ours.allow)
    if ALS in cfg.evaluation.baselines and cfg.evaluation.protocol != "item_cold":
        yield ALS, _als(cfg, log, ours.allow)


def _ours(lake: Lake, allow: Bools) -> Factors:
    item_index, user_index = lake.read(Tables.ITEM_INDEX), lake.read(Tables.USER_INDEX)
    items, users = (lake.read(table) for table in _FACTORS)
    found = items.join(item_index, items[C.ID] == item_index[C.ITEM]).select(C.ITEM_IDX, C.VECTOR).toArrow()
    position = found.column(C.ITEM_IDX).to_numpy() - 1
    vectors = found.column(C.VECTOR).combine_chunks().flatten().to_numpy().reshape(len(position), -1)
    matrix = np.zeros((len(allow), vectors.shape[1]), dtype=np.float32)
    matrix[position] = vectors
    published = np.zeros(len(allow), dtype=bool)
    published[position] = True
    vectors_of_users = users.join(user_index, users[C.ID] == user_index[C.USER]).select(C.USER_IDX, C.VECTOR)
    return Factors(vectors_of_users, matrix, allow & published)


def _allowed(lake: Lake, cfg: EvaluationConfig, log: DataFrame) -> Bools:
    """(M,) the items that may be recommended: all, or with item_cold those whose events are held out for the test."""
    [(n_items,)] = lake.read(Tables.ITEM_INDEX).agg(F.max(C.ITEM_IDX)).collect()
    if cfg.protocol != "item_cold":
        return np.ones(n_items, dtype=bool)
    allow = np.zeros(n_items, dtype=bool)
    held_out: pd.DataFrame = log.where(F.col(C.SPLIT) == split.TEST).select(POSITION).distinct().toPandas()
    allow[held_out[POSITION]] = True
    return allow


def _als(cfg: Config, log: DataFrame, allow: Bools) -> Factors:
    """ALS with the settings that rank validation best after train, fitted again on both."""
    train = truths.history(log, split.VALIDATION).persist()
    users = truths.truth(log, split.VALIDATION, repeats=not cfg.scoring.exclude_seen)
    one_in = math.ceil(users.count() / _TUNING_USERS)
    judges = users.where(F.pmod(F.xxhash64(C.USER_IDX), F.lit(max(one_in, 1))) == 0).persist()

    def fit(past: DataFrame, settings: AlsSettings) -> Factors:
        return baselines.als(past, settings, allow, iterations=cfg.evaluation.als.iterations, seed=cfg.run.seed)

    def quality(settings: AlsSettings) -> float:
        model = fit(train, settings)
        with ranking.ranked(judges, model, gate.K, exclude_seen=cfg.scoring.exclude_seen) as ranked:
            return aggregation.mean_ndcg(ranked, gate.K)

    best = baselines.tuned_als(cfg.evaluation.als, quality)
    train.unpersist()
    judges.unpersist()
    return fit(truths.history(log, split.TEST), best)
