"""encode and factorize on a lake of two tastes, whose model has not been trained: text and the linear models must do."""

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from transformers import AutoModel, AutoTokenizer

from flmrec import columns, config
from flmrec.columns import FITS, FULL, HOLDOUT, Tables, table_of
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.factorization import blend, factors
from flmrec.factorization.histories import Histories
from flmrec.lake import Lake
from flmrec.model import artifact
from flmrec.stages import encode, factorize, matrices
from tests.conftest import make_config
from tests.small import write_encoder
from tests.stages.model_lake import KITCHEN, MUSIC, N_USERS, TEXTS, write_lake


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Config]:
    """The lake after encode and factorize of both fits."""
    _lake, cfg = write_lake(spark, tmp_path_factory.mktemp("tastes"))
    for fit in FITS:
        encode.run(spark, cfg, fit)
        factorize.run(spark, cfg, fit)
    return Lake(spark, cfg.lake), cfg


def vectors(lake: Lake, table: str) -> dict[str, np.ndarray]:
    rows = lake.read(table).collect()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: np.array(row["vector"]) for row in rows}


def test_item_vectors_are_those_of_automodel_on_the_saved_folder(made):
    lake, _ = made
    folder = lake.models_folder() / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    published = vectors(lake, Tables.ITEM_VECTORS)
    assert set(published) == {item for item, text in TEXTS.items() if text}
    for item, vector in published.items():
        with torch.no_grad():
            states = model(**tokenizer(TEXTS[item], return_tensors="pt")).last_hidden_state[0]
        wanted = states.mean(0).numpy()  # float32; the stage may have had bfloat16
        assert vector @ wanted > 0.9995 * np.linalg.norm(vector) * np.linalg.norm(wanted)
        np.testing.assert_allclose(vector, wanted, atol=0.02 * np.abs(wanted).max())
    np.testing.assert_array_equal(published["flute"], published["lute"])  # one text
    assert lake.read(Tables.USER_VECTORS).count() == 0
    assert lake.read(table_of(Tables.ITEM_VECTORS, HOLDOUT)).first()["model_version"] == "model-holdout"


def test_every_item_and_every_user_has_a_factor(made):
    lake, _ = made
    for fit in FITS:
        items = vectors(lake, table_of(Tables.ITEM_FACTORS, fit))
        users = vectors(lake, table_of(Tables.USER_FACTORS, fit))
        assert set(items) == set(TEXTS) and len(users) == N_USERS + 1
        assert len({len(v) for v in [*items.values(), *users.values()]}) == 1
        assert all(np.isfinite(v).all() for v in [*items.values(), *users.values()])


def test_scores_follow_the_taste_also_for_new_items(made):
    lake, _ = made
    items, users = vectors(lake, Tables.ITEM_FACTORS), vectors(lake, Tables.USER_FACTORS)
    cooks = np.mean([users[f"user {u}"] for u in range(0, N_USERS, 2)], axis=0)
    players = np.mean([users[f"user {u}"] for u in range(1, N_USERS, 2)], axis=0)
    kitchen, music = (np.mean([items[i] for i in kind], axis=0) for kind in (KITCHEN, MUSIC))
    assert cooks @ kitchen > cooks @ music and players @ music > players @ kitchen
    bowl, harp = items["new bowl"], items["new harp"]
    assert cooks @ bowl > cooks @ harp and players @ harp > players @ bowl


def test_the_full_fit_takes_over_the_weights_of_the_holdout_fit(made):
    lake, _ = made
    chosen = [artifact.load_choices(lake.models_folder() / name)["blend"] for name in ("model", "model-holdout")]
    assert chosen[0] == chosen[1]
    assert set(chosen[0]["warm"]) == {"tower", "sequential", "long", "als"}


def test_a_history_gives_the_published_user_vector(made):
    lake, _ = made
    side = factors.load_user_side(lake.models_folder() / "model")
    index = {row["item_id"]: row["item_idx"] for row in lake.read(Tables.ITEM_INDEX).collect()}
    bought = lake.read(Tables.INTERACTIONS).where("user_id = 'user 7'").orderBy("event_ts").collect()
    items = np.array([index[row["item_id"]] for row in bought])
    times = np.array([int(row["event_ts"].timestamp()) for row in bought])
    again = side.vectors(Histories.of(np.zeros(4, dtype=int), items, 1, len(TEXTS), times))[0]
    np.testing.assert_allclose(vectors(lake, Tables.USER_FACTORS)["user 7"], again, rtol=1e-5, atol=1e-5)


def test_users_are_placed_by_the_profile_as_far_as_events_are_lacking(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(blend, "choose_mean_user", lambda start, *_: start)  # 2 events, not what 30 users prefer
    lake, cfg = write_lake(spark, tmp_path)
    users = {"path": "x.csv", "columns": {"user_id": "u"}, "categorical": ["hobby"]}
    cfg = config.overridden(cfg, {"source.users": users})
    profiles = [(f"user {u}", ["cook" if u % 2 == 0 else "play"]) for u in range(N_USERS - 1)]
    leanings = []
    for hobby, liked, other in (("cook", KITCHEN, MUSIC), ("play", MUSIC, KITCHEN)):
        of_two = [("quiet user", [hobby]), (f"user {N_USERS - 1}", [hobby])]
        rows = spark.createDataFrame([*profiles, *of_two], "user_id STRING, hobby ARRAY<STRING>")
        lake.write(Tables.USERS, rows)
        encode.run(spark, cfg, HOLDOUT)
        factorize.run(spark, cfg, HOLDOUT)
        now = Lake(spark, cfg.lake)
        items = vectors(now, table_of(Tables.ITEM_FACTORS, HOLDOUT))
        users = vectors(now, table_of(Tables.USER_FACTORS, HOLDOUT))
        of_liked, of_other = (np.mean([items[i] for i in kind], axis=0) for kind in (liked, other))
        assert users["quiet user"] @ of_liked > users["quiet user"] @ of_other
        own = users[f"user {N_USERS - 1}"]
        of_music, of_kitchen = (np.mean([items[i] for i in kind], axis=0) for kind in (MUSIC, KITCHEN))
        assert own @ of_music > own @ of_kitchen  # what the user bought counts more than what the user says
        leanings.append((own @ of_music - own @ of_kitchen) / np.linalg.norm(of_music - of_kitchen))
    assert leanings[0] < leanings[1]  # cook, play


def test_what_users_say_may_have_an_encoder_of_its_own(spark, tmp_path):
    """Of another width than the items'; two users who say the same, one without events, lean the same way."""
    lake, cfg = write_lake(spark, tmp_path)
    own = str(write_encoder(tmp_path / "own", width=32))
    users = {"path": "x.csv", "columns": {"user_id": "u"}, "text": ["about"]}
    cfg = config.overridden(cfg, {"source.users": users, "model.user_encoder": own})
    said = [f"I {'cook in my kitchen' if u % 2 == 0 else 'play the flute'}" for u in range(N_USERS)] + [
        "I play the flute"
    ]
    tokenizer = AutoTokenizer.from_pretrained(own)
    ids = [tokenizer(text)["input_ids"] for text in said]
    names = [f"user {u}" for u in range(N_USERS)] + ["quiet user"]
    rows = [
        (n, name, text, len(i), len(i), i, "x") for n, (name, text, i) in enumerate(zip(names, said, ids, strict=True))
    ]
    lake.write(table_of(Tables.USER_TOKENS, HOLDOUT), spark.createDataFrame(rows, columns.TOKENS).coalesce(1))
    encode.run(spark, cfg, HOLDOUT)
    factorize.run(spark, cfg, HOLDOUT)
    now = Lake(spark, cfg.lake)
    of_texts = vectors(now, table_of(Tables.USER_VECTORS, HOLDOUT))
    assert {len(v) for v in of_texts.values()} == {32}
    assert {len(v) for v in vectors(now, table_of(Tables.ITEM_VECTORS, HOLDOUT)).values()} == {384}
    model = AutoModel.from_pretrained(own).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([ids[-1]])).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(of_texts["quiet user"], wanted, atol=0.03 * np.abs(wanted).max())
    items, quiet = (vectors(now, table_of(t, HOLDOUT)) for t in (Tables.ITEM_FACTORS, Tables.USER_FACTORS))
    of_music, of_kitchen = (np.mean([items[i] for i in kind], axis=0) for kind in (MUSIC, KITCHEN))
    assert quiet["quiet user"] @ of_music > quiet["quiet user"] @ of_kitchen


def test_of_a_large_log_the_linear_models_get_all_events_of_some_users(made, spark, tmp_path):
    """A user's factor is made by the executors and needs no place in what the driver holds."""
    lake, cfg = made
    whole = matrices.histories(lake, cfg, matrices.positives(lake, cfg, FULL))
    part = config.overridden(cfg, {"factorization.max_events": 60})
    drawn = matrices.histories(lake, part, matrices.positives(lake, part, FULL))
    kept = drawn.lengths > 0
    assert 20 <= len(drawn.items) <= 100 < len(whole.items) == 120 and drawn.n_users == whole.n_users
    assert (drawn.lengths[kept] == whole.lengths[kept]).all()
    counts = matrices.item_counts(lake, part, matrices.positives(lake, part, FULL), drawn)
    assert (counts == whole.item_counts()).all() and (drawn.item_counts() < counts).any()

    _lake, other = write_lake(spark, tmp_path)
    other = config.overridden(other, {"factorization.max_events": 60})
    encode.run(spark, other, HOLDOUT)
    factorize.run(spark, other, HOLDOUT)
    users = vectors(Lake(spark, other.lake), table_of(Tables.USER_FACTORS, HOLDOUT))
    assert len(users) == N_USERS + 1
    assert all(np.isfinite(v).all() and v.any() for v in users.values())


def test_weights_of_events_come_along(made):
    lake, cfg = made
    fading = config.overridden(cfg, {"positives.half_life_days": 1})
    even, own = (matrices.histories(lake, c, matrices.positives(lake, c, FULL)) for c in (cfg, fading))
    assert (even.weights == 1).all() and own.items.tolist() == even.items.tolist()
    age_days = (own.times.max() - own.times) / 86_400
    np.testing.assert_allclose(own.weights, 0.5**age_days, rtol=1e-5)
    assert len(set(own.weights.tolist())) > 1


def test_a_missing_model_is_named(spark, tmp_path):
    cfg = make_config(lake={"root": str(tmp_path / "empty")})
    with pytest.raises(UsageError, match="There is no model of the full fit in .* run jobs/finetune.py first"):
        encode.run(spark, cfg, FULL)
    named = make_config(lake={"root": str(tmp_path / "empty")}, model={"version": "20240101-x"})
    with pytest.raises(UsageError, match="There is no model 20240101-x in"):
        factorize.run(spark, named, FULL)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is no model folder, it lacks flm.safetensors, config.yaml: name the folder"):
        artifact.load_flm(tmp_path)
    (tmp_path / artifact.CONFIG).write_text("{}")
    (tmp_path / artifact.FLM).write_bytes(b"not a tensor")
    with pytest.raises(UsageError, match=r"flm.safetensors is no FLM head .*name another model"):
        artifact.load_flm(tmp_path)
