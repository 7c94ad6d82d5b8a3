"""Two source lakes and a target, one inline pretraining: what is read, what is left out, what is published."""

import dataclasses
import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec import columns
from flmrec.columns import C, Tables
from flmrec.config import Config, LakeConfig, PretrainConfig, PretrainSource
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake
from flmrec.model.encoder import load_encoder
from flmrec.stages import pretrain
from flmrec.text.tokenization import tokenizer_ref
from tests.conftest import make_config
from tests.small import write_encoder

FILMS = ["Toy Story (1995)", "Heat (1995)", "Matrix, The (1999)", "Alien (1979)", "Big (1988)"]
SHOP = ["red pan", "tea pot", "The Matrix. DVD", "drum sticks", "rose seeds", "tent pegs"]


def fill(spark: SparkSession, root: Path, texts: list[str], histories: list[list[int]]) -> Lake:
    """Items numbered as strings, one user a history."""
    lake = Lake(spark, LakeConfig(root=str(root)))
    items = spark.createDataFrame([(str(i), text) for i, text in enumerate(texts)], f"{C.ITEM} STRING, {C.TEXT} STRING")
    at = dt.datetime(2024, 1, 1)
    rows = [
        (f"user {u}", str(item), at + dt.timedelta(days=n), n, None, None)
        for u, history in enumerate(histories)
        for n, item in enumerate(history)
    ]
    lake.write(Tables.ITEMS, items)
    lake.write(Tables.INTERACTIONS, spark.createDataFrame(rows, columns.INTERACTIONS))
    return lake


@pytest.fixture(scope="module")
def cfg(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Films and the target's own log and texts are the sources; the target sells one of the films."""
    folder = tmp_path_factory.mktemp("pretrain")
    rng = np.random.default_rng(1)
    fill(spark, folder / "films", FILMS, [rng.permutation(5).tolist() for _ in range(12)])
    fill(spark, folder / "shop", SHOP, [[0, 1, 2, 3, 4, 5], [1, 0, 2, 5, 4, 3]])
    sources = [{"root": str(folder / "films")}, {"root": str(folder / "shop")}]
    sources += [{"root": str(folder / "shop"), "interactions": False, "weight": 2.0}]
    return make_config(
        lake={"root": str(folder / "shop")},
        model={"encoder": str(write_encoder(folder / "tiny"))},
        training={"launcher": "inline", "reader": "petastorm"},
        pretrain={
            "sources": sources, "epochs": 2, "window_events": 4, "windows_per_step": 4,
            "losses": {"next_item": 1.0, "text_contrast": 0.5}, "text": {"drop": 0.2},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(spark: SparkSession, cfg: Config) -> Path:
    barred = dataclasses.replace(cfg.pretrain, exclude_items_of=[cfg.lake.root])
    films = dataclasses.replace(barred, sources=[cfg.pretrain.sources[0], cfg.pretrain.sources[2]], adapter_rank=2)
    pretrain.run(spark, dataclasses.replace(cfg, pretrain=cfg.pretrain))
    return pretrain.run(spark, dataclasses.replace(cfg, pretrain=films))


def seen(spark: SparkSession, cfg: Config, version: int) -> dict[int, list[list[str]]]:
    """Source: the texts of each window."""
    lake = Lake(spark, cfg.lake, {Tables.PRETRAIN_TEXTS: version, Tables.PRETRAIN_WINDOWS: version})
    texts = {row[C.IDX]: row[C.TEXT] for row in lake.read(Tables.PRETRAIN_TEXTS).collect()}
    found: dict[int, list[list[str]]] = {}
    for row in lake.read(Tables.PRETRAIN_WINDOWS).collect():
        found.setdefault(row[C.SOURCE], []).append([texts[i] for i in row[C.ITEM_IDX] if i])
    return found


def test_test_events_of_the_target_are_never_seen(spark: SparkSession, cfg: Config, made: Path) -> None:
    windows = seen(spark, cfg, 0)[1]
    held = [{"drum sticks", "rose seeds", "tent pegs"}, {"rose seeds", "drum sticks", "tent pegs"}]
    assert {tuple(window) for window in windows} == {tuple(SHOP[i] for i in h) for h in ([0, 1, 2, 3], [1, 0, 2, 5])}
    assert all(len(set(window) & each) <= 1 for window in windows for each in held)


def test_titles_of_the_target_are_left_out_of_histories(spark: SparkSession, cfg: Config, made: Path) -> None:
    by_source = seen(spark, cfg, 1)
    films = {text for window in by_source[0] for text in window}
    assert films == set(FILMS) - {"Matrix, The (1999)"}
    assert {text for window in by_source[1] for text in window} == set(SHOP)  # its own texts, without events
    assert "Matrix, The (1999)" in {text for window in seen(spark, cfg, 0)[0] for text in window}


def test_the_folder_is_an_encoder_with_a_card(spark: SparkSession, cfg: Config, made: Path) -> None:
    before, after = (load_encoder(name, "mean").state_dict() for name in (cfg.model.encoder, str(made)))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert tokenizer_ref(str(made), 16).fingerprint == tokenizer_ref(cfg.model.encoder, 16).fingerprint
    card = (made / "README.md").read_text()
    assert f"| {cfg.pretrain.sources[0].root} | histories | 4 |" in card and "next_item 1, text_contrast 0.5" in card
    assert f"Titles of {cfg.lake.root} were left out" in card
    assert f"adapter of rank 2 beside the shared weights: that of {cfg.lake.root} is merged into" in card
    assert list(json.loads((made / "pretraining.json").read_text())["losses"]) == ["1", "2"]


def test_rows_of_every_epoch_are_recorded(spark: SparkSession, cfg: Config, made: Path) -> None:
    lake = Lake(spark, cfg.lake)
    rows = lake.read(Tables.TRAINING).where(f"{C.MODEL_VERSION} = '{made.name}'").orderBy(C.EPOCH).collect()
    assert [row[C.ROWS_READ] for row in rows] == [lake.read(Tables.PRETRAIN_WINDOWS).count()] * 2
    ledger = {row[C.TABLE] for row in lake.read(Tables.LEDGER).where("stage = 'pretrain'").collect()}
    assert ledger == {Tables.PRETRAIN_TEXTS, Tables.PRETRAIN_WINDOWS, Tables.TRAINING}


def test_windows_lie_in_an_order_of_their_own(spark: SparkSession, cfg: Config, made: Path) -> None:
    """A run that goes on writes them again, and has to have the same batches."""
    order = F.xxhash64(C.SOURCE, C.ITEM_IDX).alias("order")
    rows = Lake(spark, cfg.lake, {Tables.PRETRAIN_WINDOWS: 0}).read(Tables.PRETRAIN_WINDOWS)
    files = rows.select(F.input_file_name().alias("file"), order).toPandas().groupby("file").order
    assert files.size().max() > 3 and all(own.is_monotonic_increasing for _, own in files)


def test_an_encoder_is_of_one_lake(spark: SparkSession, cfg: Config) -> None:
    """Two sources of each other's held-out events, in a shared folder of models."""
    stores = [Lake(spark, LakeConfig(root=source.root)) for source in cfg.pretrain.sources]
    names = set()
    for root in [*(source.root for source in cfg.pretrain.sources[:2]), "elsewhere", "nowhere"]:
        own = dataclasses.replace(cfg, lake=dataclasses.replace(cfg.lake, root=root))
        names.add(pretrain.version_name(own, stores, []))
    assert len(names) == 3  # lakes that are no source get the same encoder


def test_a_lake_is_known_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = tmp_path / "main" / "lake"
    lake.mkdir(parents=True)
    (tmp_path / "link").symlink_to(lake)
    monkeypatch.chdir(lake.parent)
    same = ["lake", "lake/", "../main/lake", "../link", str(lake), f"file://{lake}"]
    assert {pretrain._place(root) for root in same} == {str(lake)}
    assert pretrain._place("Main.flmrec") == pretrain._place("main.flmrec") == "main.flmrec"
    assert pretrain._place("s3://bucket/lake/") == pretrain._place("s3://bucket/lake") != pretrain._place("bucket/lake")


def test_wrong_settings_are_refused_in_one_sentence(spark: SparkSession, cfg: Config) -> None:
    def run(**changes: object) -> None:
        pretrain.run(spark, dataclasses.replace(cfg, pretrain=dataclasses.replace(cfg.pretrain, **changes)))  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=r"^pretrain.sources names no lake"):
        run(sources=[])
    with pytest.raises(UsageError, match="There is no table items"):
        run(sources=[PretrainSource(root="no/such/lake")])
    films = cfg.pretrain.sources[:1]
    with pytest.raises(DataContractError, match="has nothing to learn from"):
        run(sources=films, exclude_items_of=[films[0].root])
    with pytest.raises(UsageError, match="frozen leaves"):
        pretrain.run(spark, dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, tuning="frozen")))


@pytest.mark.parametrize(
    "section",
    [
        {"epochs": 0}, {"losses": {"next_item": 0.0, "words": 0.0}}, {"text": {"drop": 1.0}}, {"history": {"crop": -0.1}},
        {"text": {"templates": ["no slot"]}}, {"sources": [{"root": "x", "weight": 0.0}]}, {"half_life": 0.0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(section: dict) -> None:
    with pytest.raises(UsageError, match=r"pretrain\.\w+"):
        make_config(pretrain=section)


def test_defaults_are_accepted() -> None:
    assert make_config().pretrain == PretrainConfig()
