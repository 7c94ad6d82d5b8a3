import datetime as dt
from pathlib import Path

import pytest
import yaml

from flmrec import config
from flmrec.errors import UsageError

CONF = Path(__file__).parent.parent / "conf"
SMALL = """
source:
  interactions: {path: log.csv, columns: {user_id: user, item_id: item, event_ts: ts}}
  items: {path: items.csv, columns: {item_id: item}, categorical: [brand, {column: genres, sep: "|"}]}
lake: {root: lake}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(
    "path", [p for p in sorted(CONF.rglob("*.yaml")) if p.parent.name != "recipes"], ids=lambda p: p.name
)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert config.load(path).lake.root


@pytest.mark.parametrize("path", sorted(CONF.rglob("recipes/*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_can_be_extended(path: Path, file: Path) -> None:
    file.write_text(f"{SMALL}\nextends: {path}\ntune: {{trials: 3}}\n")
    cfg = config.load(file)
    assert cfg.tune.trials == 3 and cfg.tune.ranges
    for name, own in cfg.tune.ranges.items():
        for value in own.choices or [int(own.low) if own.integer else own.low]:
            config.overridden(cfg, {name: value})


def test_a_value_can_be_replaced_by_its_key(file: Path) -> None:
    cfg = config.load(file)
    assert config.overridden(cfg, {"model.dim": 32, "factorization.als.rank": 8}).factorization.als.rank == 8
    with pytest.raises(UsageError, match="unknown key model.size"):
        config.overridden(cfg, {"model.size": 3})
    with pytest.raises(UsageError, match="no key modle.dim"):
        config.overridden(cfg, {"modle.dim": 3})


def test_defaults_fill_what_the_file_leaves_out(file: Path) -> None:
    cfg = config.load(file)
    assert (cfg.scoring.k, cfg.training.num_proc, cfg.training.launcher) == (10, 2, "horovod")
    assert cfg.run.date == dt.datetime.now(dt.UTC).date() and cfg.run.id


def test_an_override_is_split_at_its_first_equals_sign(file: Path) -> None:
    cfg = config.load(file, ["source.items.path=/log/dt=2024-05-01", "run.date=2024-05-01", "scoring.k=20"])
    assert cfg.source.items.path == "/log/dt=2024-05-01"
    assert (cfg.run.date, cfg.scoring.k) == (dt.date(2024, 5, 1), 20)


def test_a_categorical_is_a_name_or_a_name_with_a_separator(file: Path) -> None:
    brand, genres = config.load(file).source.items.categoricals()
    assert (brand.column, brand.sep) == ("brand", None)
    assert (genres.column, genres.sep) == ("genres", "|")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scoring.kk=20", "unknown key scoring.kk"),
        ("scoring.k=ten", "scoring.k: input should be a valid integer, got 'ten'"),
        ("scoring.k=0", "scoring.k must be at least 1, got 0"),
        ("scoring.k=10.5", "scoring.k: input should be a valid integer, got 10.5"),
        ("model.tuning=some", "model.tuning: input should be 'full', 'lora' or 'frozen', got 'some'"),
        ("run.date=yesterday", "run.date"),
        ("scoring=3", "no override"),
        ("scoring.k", "no override"),
        ("lake.root.deep=3", "root holds a value"),
        ("lake.root=main.recs", "lake.models must name a folder"),
        ("source.items.table=main.items", "source.items needs either path or table"),
        ("training.objectives={}", "training.objectives needs at least one"),
        ("training.objectives={hinge: 1.0}", "training.objectives.hinge"),
        ("model.residual_dropout=2.0", "model.residual_dropout must be from 0 to 1, got 2.0"),
        ("model.temperature=0.0", "model.temperature must be above 0, got 0.0"),
        ("training.max_gradient_norm=-1.0", "training.max_gradient_norm must be at least 0, got -1.0"),
        ("training.label_smoothing=2.0", "training.label_smoothing must be from 0 to 1, got 2.0"),
        ("factorization.parts=[als, als]", "factorization.parts needs at least one part, each once"),
        ("factorization.als.rank=0", "factorization.als.rank must be above 0, got 0"),
        ("tune.ranges={model.dim: {low: 3}}", "tune.ranges.model.dim needs either choices, or low below high"),
    ],
)
def test_faults_are_named(file: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        config.load(file, [override])


def test_all_faults_come_in_one_message(file: Path) -> None:
    with pytest.raises(UsageError) as raised:
        config.load(file, ["scoring.kk=20", "training.num_proc=two"])
    assert "scoring.kk" in str(raised.value) and "training.num_proc" in str(raised.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration file"):
        config.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("source: [")
    with pytest.raises(UsageError, match="not readable YAML"):
        config.load(broken)


def test_what_is_dumped_loads_as_the_same_configuration(file: Path) -> None:
    cfg = config.load(file, ["run.date=2024-05-01"])
    assert config.parse(yaml.safe_load(config.dump(cfg))) == cfg
