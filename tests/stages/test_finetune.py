"""One small shop, both fits inline: what is published, what is recorded, and what happens a second time."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from safetensors.torch import load_file
from transformers import AutoModel

from flmrec import config
from flmrec.columns import FITS, FULL, HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.errors import TrainingError, UsageError
from flmrec.lake import Lake
from flmrec.model.encoder import DEFAULT_ENCODER, resolve_encoder
from flmrec.stages import finetune, ingest, preparation, tokenize, tune
from flmrec.training import worker
from flmrec.training.comm import SingleCommunicator
from flmrec.training.worker import EpochRow
from tests.small import write_conf, write_encoder, write_shop

SETTINGS = ["run.date=2024-05-01", "run.id=first", "training.launcher=inline", "training.epochs=2"]


@pytest.fixture(scope="module")
def cfg(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a shop that is ingested, tokenized and fine-tuned in both fits."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder, n_users=40)
    cfg = config.load(write_conf(folder, folder), SETTINGS)
    ingest.run(spark, cfg)
    tokenize.run(spark, cfg)
    for fit in FITS:
        finetune.run(spark, cfg, fit)
    return cfg


@pytest.fixture
def lake(spark: SparkSession, cfg: Config) -> Lake:
    return Lake(spark, cfg.lake)


def folder_of(lake: Lake, cfg: Config, fit: str) -> Path:
    return lake.models_folder() / finetune.version_name(lake, cfg, fit)


def training_rows(lake: Lake) -> pd.DataFrame:
    return lake.read(Tables.TRAINING).toPandas().sort_values(["model_version", "epoch", "rank"]).reset_index(drop=True)


@pytest.mark.parametrize("fit", FITS)
def test_every_epoch_read_every_row(lake: Lake, cfg: Config, fit: str) -> None:
    rows = training_rows(lake)
    rows = rows[rows.model_version == finetune.version_name(lake, cfg, fit)]
    chosen = json.loads((folder_of(lake, cfg, HOLDOUT) / "training.json").read_text())["epochs"]
    assert rows.epoch.to_list() == list(range(1, 1 + (2 if fit == HOLDOUT else chosen)))
    assert set(rows.rows_read) == {lake.read(table_of(Tables.SEQUENCES, fit)).count()}
    assert (rows.steps >= 1).all() and (rows.seconds > 0).all() and set(rows.run_id) == {"first"}


def test_the_full_fit_goes_on_from_the_holdout_fits_weights(
    lake: Lake, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_LITTLE_NEW", 0.5)  # as if histories were longer
    holdout = folder_of(lake, cfg, HOLDOUT)
    job = preparation.prepare(lake, cfg, FULL, tmp_path, holdout)
    assert job.epochs == 1
    run = worker._Run(job, SingleCommunicator())
    weights = load_file(holdout / "flm.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in run.trainer.flm.state_dict().items())
    before = AutoModel.from_pretrained(holdout).get_input_embeddings().weight
    assert torch.equal(run.aligner.encoder.model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("evaluation", [{}, {"protocol": "item_cold"}, {"few_shot": 3}])  # {}: histories are short
def test_the_full_fit_starts_anew_where_the_holdout_fit_lacks_much(
    lake: Lake, cfg: Config, tmp_path: Path, evaluation: dict[str, object]
) -> None:
    holdout = folder_of(lake, cfg, HOLDOUT)
    other = dataclasses.replace(cfg, evaluation=dataclasses.replace(cfg.evaluation, **evaluation))  # type: ignore[arg-type]
    job = preparation.prepare(lake, other, FULL, tmp_path, holdout)
    assert (job.head, job.encoder) == (None, resolve_encoder(DEFAULT_ENCODER))
    assert job.epochs == json.loads((holdout / "training.json").read_text())["epochs"]


def test_the_encoder_and_the_head_are_published(lake: Lake, cfg: Config) -> None:
    folder = folder_of(lake, cfg, FULL)
    before = AutoModel.from_pretrained(resolve_encoder(DEFAULT_ENCODER)).state_dict()
    after = AutoModel.from_pretrained(folder).state_dict()
    moved = any(not torch.equal(before[name], after[name]) for name in before if ".layer." in name)
    assert moved == (json.loads((folder / "training.json").read_text())["aligned_epochs"] > 0)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "flm.safetensors").values())
    assert config.parse(yaml.safe_load((folder / "config.yaml").read_text())).training == cfg.training
    assert not [
        path for path in folder.iterdir() if path.suffix in (".bin", ".pkl", ".pt") or "checkpoint" in path.name
    ]


def test_models_and_ledger_name_the_versions(lake: Lake, cfg: Config) -> None:
    models = lake.read(Tables.MODELS).toPandas().set_index("fit")
    assert models.path.to_dict() == {fit: str(folder_of(lake, cfg, fit)) for fit in FITS}
    assert models.loc[HOLDOUT, C.MODEL_VERSION] == f"{models.loc[FULL, C.MODEL_VERSION]}-holdout"
    assert models.loc[FULL, C.MODEL_VERSION].startswith("20240501-")
    ledger = lake.read(Tables.LEDGER).where("stage LIKE 'finetune%'").toPandas()
    assert set(ledger.stage) == {"finetune", "finetune holdout"}
    assert (ledger.rows_in == ledger.rows_out).all()


def test_a_version_that_is_there_is_not_made_again(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    before, weights = training_rows(lake), folder_of(lake, cfg, FULL) / "flm.safetensors"
    made = weights.stat().st_mtime_ns
    again = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, id="second"))
    finetune.run(spark, again, FULL)
    assert weights.stat().st_mtime_ns == made
    pd.testing.assert_frame_equal(training_rows(Lake(spark, cfg.lake)), before)


def test_rows_lost_between_folder_and_tables_are_written_again(spark: SparkSession, lake: Lake, cfg: Config) -> None:
    before = training_rows(lake)
    version = finetune.version_name(lake, cfg, FULL)
    for table in (Tables.TRAINING, Tables.MODELS):
        lake.handle(table).delete(f"model_version = '{version}'")
    finetune.run(spark, cfg, FULL)
    pd.testing.assert_frame_equal(training_rows(Lake(spark, cfg.lake)), before)
    assert Lake(spark, cfg.lake).read(Tables.MODELS).count() == 2


def test_what_changes_the_model_changes_its_name(lake: Lake, cfg: Config) -> None:
    def name(**changes: object) -> str:
        return finetune.version_name(lake, dataclasses.replace(cfg, **changes), FULL)  # type: ignore[arg-type]

    own = name()
    assert name(training=dataclasses.replace(cfg.training, reader="arrow", threads_per_rank=1)) == own
    assert name(scoring=dataclasses.replace(cfg.scoring, k=3)) == own
    others = {
        name(training=dataclasses.replace(cfg.training, epochs=3)),
        name(run=dataclasses.replace(cfg.run, seed=1)),
        name(model=dataclasses.replace(cfg.model, tuning="frozen")),
    }
    assert len(others | {own}) == 4


def test_ratings_are_learned_beside_what_comes_next(spark: SparkSession, cfg: Config, tmp_path: Path) -> None:
    shop = Path(cfg.source.interactions.path or "").parent
    objectives = "training.objectives={softmax: 1.0, rating: 0.5}"
    encoder = f"model.encoder={write_encoder(tmp_path / 'encoder')}"
    rated = config.load(write_conf(tmp_path, shop), [*SETTINGS, objectives, encoder])
    ingest.run(spark, rated)
    tokenize.run(spark, rated)
    finetune.run(spark, rated, HOLDOUT)
    store = Lake(spark, rated.lake)
    mean, deviation = preparation._ratings(store.read(Tables.INTERACTIONS))
    assert 3 < mean < 5 and 0.5 < deviation < 1  # stars of the shop are 3 to 5
    weights = load_file(folder_of(store, rated, HOLDOUT) / "flm.safetensors")
    assert weights["to_rating"].tolist() != [1, 0]
    with pytest.raises(UsageError, match=r"training\.objectives\.rating learns from values, and interactions has none"):
        preparation._ratings(store.read(Tables.INTERACTIONS).withColumn(C.VALUE, F.lit(None).cast("double")))


def test_the_full_fit_needs_the_holdout_fit(spark: SparkSession, cfg: Config) -> None:
    other = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, seed=77))
    with pytest.raises(
        UsageError, match=r"needs the holdout fit 20240501-\w+-holdout, which is not in .*run jobs/finetune.py"
    ):
        finetune.run(spark, other, FULL)


def test_rows_that_were_not_read_fail_the_fit() -> None:
    def row(epoch: int, rank: int, rows_read: int) -> EpochRow:
        return EpochRow(epoch=epoch, rank=rank, rows_read=rows_read, steps=3, loss=1.0, seconds=0.1)

    finetune.check_rows([row(1, 0, 50), row(1, 1, 51)], 101, "sequences")
    with pytest.raises(TrainingError, match="read 100 rows in epoch 2, but sequences has 101: nothing was published"):
        finetune.check_rows([row(1, 0, 50), row(1, 1, 51), row(2, 0, 50), row(2, 1, 50)], 101, "sequences")


def test_a_folder_that_cannot_be_made_is_refused(spark: SparkSession, cfg: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    blocked = dataclasses.replace(cfg, lake=dataclasses.replace(cfg.lake, models=str(tmp_path / "file" / "models")))
    with pytest.raises(UsageError, match=r"model folder .*file/models.* cannot be made \(Not a directory\)"):
        finetune.run(spark, blocked, HOLDOUT)


def test_the_summary_in_the_folder_holds_the_losses(lake: Lake, cfg: Config) -> None:
    summary = json.loads((folder_of(lake, cfg, HOLDOUT) / "training.json").read_text())
    assert [row["epoch"] for row in summary["rows"]] == [1, 2]
    rows = training_rows(lake).set_index(C.MODEL_VERSION)
    assert [row["loss"] for row in summary["rows"]] == rows.loc[
        [finetune.version_name(lake, cfg, HOLDOUT)], "loss"
    ].to_list()
    assert 1 <= summary["epochs"] <= 2


def test_a_crashed_run_goes_on_and_ends_like_an_unbroken_one(
    spark: SparkSession, lake: Lake, cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = dataclasses.replace(
        cfg,
        lake=dataclasses.replace(cfg.lake, models=str(tmp_path)),
        training=dataclasses.replace(cfg.training, checkpoint_s=0.0),
    )
    epoch_of_run = worker._Run.epoch

    def power_cut(run: worker._Run, epoch: int) -> str:
        if epoch == 2:
            raise OSError("power cut")
        return epoch_of_run(run, epoch)

    version = finetune.version_name(lake, cfg, HOLDOUT)
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="failed with OSError: power cut"):
        patch.setattr(worker._Run, "epoch", power_cut)
        finetune.run(spark, elsewhere, HOLDOUT)
    assert [path.name for path in tmp_path.iterdir()] == [f"{version}.partial"]

    finetune.run(spark, elsewhere, HOLDOUT)
    assert [path.name for path in tmp_path.iterdir()] == [version]
    for name in ("flm.safetensors", "model.safetensors"):
        ours, theirs = load_file(tmp_path / version / name), load_file(folder_of(lake, cfg, HOLDOUT) / name)
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-6)
    rows = training_rows(Lake(spark, cfg.lake))
    assert rows[rows.model_version == version].epoch.to_list() == [1, 2]


def test_tuning_measures_settings_on_validation_and_leaves_the_models_alone(spark: SparkSession, cfg: Config) -> None:
    ranges = {
        "tune.ranges": {
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "model.dim": {"choices": [8, 16]},
        }
    }
    quick = {"training.epochs": 1, "model.tuning": "frozen", "factorization.parts": ["tower", "long"], "tune.trials": 2}
    searched = config.overridden(cfg, ranges | quick)
    lake = Lake(spark, cfg.lake)
    before = sorted(path.name for path in lake.models_folder().iterdir())
    tune.run(spark, searched)
    best = yaml.safe_load((lake.models_folder() / tune.BEST).read_text())
    assert 1e-4 <= best["training"]["learning_rate"] <= 1e-2 and best["model"]["dim"] in (8, 16)
    assert sorted(path.name for path in lake.models_folder().iterdir()) == sorted([*before, tune.BEST, tune.STUDY])
    assert Lake(spark, cfg.lake).read(Tables.MODELS).count() == len(FITS)
    written = (lake.models_folder() / tune.STUDY).stat().st_size
    tune.run(spark, searched)  # both trials are there
    assert (lake.models_folder() / tune.STUDY).stat().st_size == written
    with pytest.raises(UsageError, match="trials of other ranges"):
        tune.run(spark, config.overridden(searched, {"tune.ranges": {"model.dim": {"choices": [8]}}}))
    with pytest.raises(UsageError, match="model.dimension"):
        tune.run(spark, config.overridden(searched, {"tune.ranges": {"model.dimension": {"choices": [8]}}}))
