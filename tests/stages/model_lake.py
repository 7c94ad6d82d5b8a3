"""A lake as it is before encode and factorize: a tiny log with two tastes, its tokens, and an untrained model folder."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import torch
from pyspark.sql import SparkSession

from flmrec import columns
from flmrec.columns import FITS, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.lake import Lake
from flmrec.model import artifact
from flmrec.model.encoder import DEFAULT_ENCODER, load_encoder, resolve_encoder
from flmrec.model.flm import Flm
from flmrec.model.recipe import TowerRecipe
from flmrec.stages import preparation
from tests.conftest import make_config

TEXTS = {
    "tea pot": "kitchen tea pot", "tea cup": "kitchen tea cup", "bread knife": "kitchen bread knife",
    "whisk": "kitchen whisk", "pan": "kitchen pan", "violin bow": "music violin bow", "drum": "music drum sticks",
    "flute": "music flute case", "piano": "music piano stool", "lute": "music flute case", "blank": None,
    "new bowl": "kitchen mixing bowl", "new harp": "music harp strings",
}  # fmt: skip
KITCHEN, MUSIC = list(TEXTS)[:5], list(TEXTS)[5:10]
N_USERS = 30  # even users cook, odd ones play; each buys 4 of the 5 items in an order of its own


def write_lake(spark: SparkSession, folder: Path, width: int = 384) -> tuple[Lake, Config]:
    """The tables, and a model folder of each fit with an encoder that has not been tuned."""
    cfg = make_config(
        lake={"root": str(folder / "lake")},
        source={
            "interactions": {"path": "x.csv", "columns": {"user_id": "u", "item_id": "i", "event_ts": "t"}},
            "items": {"path": "x.csv", "columns": {"item_id": "i"}, "text": ["title"], "numeric": ["weight"]},
        },
        factorization={"parts": ["tower", "sequential", "long", "als"], "als": {"rank": 4, "ridge": 1.0}},
    )
    lake = Lake(spark, cfg.lake)
    items = sorted(TEXTS)
    users = [f"user {u}" for u in range(N_USERS)] + ["quiet user"]
    _write(lake, Tables.ITEM_INDEX, columns.ITEM_INDEX, [(item, n) for n, item in enumerate(items, 1)])
    _write(lake, Tables.USER_INDEX, columns.USER_INDEX, [(user, n) for n, user in enumerate(users)])
    _write(lake, Tables.INTERACTIONS, columns.INTERACTIONS, _events())
    schema = f"{C.ITEM} STRING, {C.TEXT} STRING, weight DOUBLE"
    _write(lake, Tables.ITEMS, schema, [(i, text, float(len(i))) for i, text in TEXTS.items()])
    _write(lake, Tables.ITEM_TOKENS, columns.TOKENS, _tokens(items))
    for fit in FITS:
        _write(lake, table_of(Tables.USER_TOKENS, fit), columns.TOKENS, [])
        windows = [(0, 0, [0, 1], [0, 0], [0.0, 1.0])]
        _write(lake, table_of(Tables.SEQUENCES, fit), columns.SEQUENCES, windows)
        _write_model(lake, cfg, fit, len(items), width)
    return lake, cfg


def _events() -> list[tuple]:
    rng = np.random.default_rng(3)
    start = dt.datetime(2024, 1, 1)
    rows = []
    for user in range(N_USERS):
        taste = KITCHEN if user % 2 == 0 else MUSIC
        for place, item in enumerate(rng.permutation(taste)[:4]):
            rows.append((f"user {user}", str(item), start + dt.timedelta(hours=user + 100 * place), None, None, None))
    return rows


def _tokens(items: list[str]) -> list[tuple]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_encoder(DEFAULT_ENCODER))
    rows = []
    for n, item in enumerate(items, 1):
        ids = tokenizer(TEXTS[item])["input_ids"] if TEXTS[item] else []
        padded = ids + [0] * (len(ids) % 3)
        rows.append((n, item, TEXTS[item], len(ids), len(padded), padded, "test"))
    return rows


def _write_model(lake: Lake, cfg: Config, fit: str, n_items: int, width: int) -> None:
    version = "model" if fit != HOLDOUT else f"model-{HOLDOUT}"
    folder = lake.models_folder() / version
    folder.mkdir(parents=True)
    linear = {"rank": 4, "sequential_rank": 4, "half_lives": [4.0], "sequential_ridge": 1.0, "ease_ridge": 1.0}
    summary = {"linear": linear, "epochs": 1, "aligned_epochs": 0}
    (folder / preparation.SUMMARY).write_text(json.dumps(summary))
    preparation.prepare(lake, cfg, fit, folder, lake.models_folder() / f"model-{HOLDOUT}" if fit != HOLDOUT else None)
    torch.manual_seed(0)
    n_attributes = preparation.load_file(folder / "attributes.safetensors")["attributes"].shape[1]
    flm = Flm(n_items, width, n_attributes, TowerRecipe(dim=4, length=3))
    flm.scaled_texts(torch.randn(n_items, width))
    artifact.save_parts(folder, load_encoder(DEFAULT_ENCODER, "mean"), DEFAULT_ENCODER, flm)
    (folder / artifact.CONFIG).write_text(json.dumps({}))
    row = (fit, version, "test-run", str(folder), 1, dt.datetime(2024, 5, 1))
    frame = lake.spark.createDataFrame([row], columns.MODELS)
    lake.write(Tables.MODELS, frame, replace_where=f"fit = '{fit}'")


def _write(lake: Lake, table: str, schema: str, rows: list[tuple]) -> None:
    lake.write(table, lake.spark.createDataFrame(rows, schema).coalesce(1))
