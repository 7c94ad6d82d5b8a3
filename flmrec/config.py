"""The whole configuration: one frozen dataclass per section, checked before Spark starts.

`load("conf/x.yaml", ["scoring.k=20"])` reads a file, applies `section.key=value` overrides (value in YAML), and
refuses unknown keys, missing ones and wrong types, all at once, in one message. Only the sources and `lake.root`
have no default; a default of None means "chosen by the data's size or by the machine", as its comment says.
"""

import datetime as dt
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from flmrec.errors import UsageError

_STRICT = ConfigDict(extra="forbid", strict=True)
Format = Literal["csv", "tsv", "json", "parquet", "delta"]
# full: the table follows the whole source; incremental: new files, or the change feed of a Delta source, are merged in
Load = Literal["full", "incremental"]
Range = Annotated[list[float], Field(min_length=2, max_length=2)]  # [smallest, largest]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InteractionColumns:
    """Our name: the source's name."""

    user_id: str
    item_id: str
    event_ts: str
    order: str | None = None  # breaks ties of time
    event: str | None = None
    value: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class InteractionSource:
    columns: InteractionColumns
    path: str | None = None  # file, folder or glob, relative to the checkout
    table: str | None = None  # catalog table, instead of path
    format: Format | None = None  # None: from the file's suffix
    options: dict[str, str | bool | int] = field(default_factory=dict)  # Spark reader options
    ts_format: str = "epoch_s"  # epoch_s | epoch_ms | a Spark datetime pattern
    events: dict[str, float] | None = None  # allowed kinds of events, each with its weight; None: any, weight 1
    value_range: Range | None = None  # smallest and largest value
    load: Load = "full"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Categorical:
    """An attribute; `sep` splits a multi-valued one."""

    column: str
    sep: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EntitySource:
    """Items or users: an id, text in the order given, attributes."""

    columns: dict[str, str]
    path: str | None = None
    table: str | None = None
    format: Format | None = None
    options: dict[str, str | bool | int] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    template: str | None = None  # text from columns: "{title} ({year}).[ By {author}.]"; [] goes when a column is empty
    names: dict[str, dict[str, str]] = field(default_factory=dict)  # column: code: what the text calls it
    numeric: list[str] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)  # numeric column: smallest and largest value
    categorical: list[str | Categorical] = field(default_factory=list)
    vectors: dict[str, int] = field(default_factory=dict)  # column of an image or audio vector: its length
    load: Load = "full"

    def categoricals(self) -> list[Categorical]:
        return [c if isinstance(c, Categorical) else Categorical(column=c) for c in self.categorical]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WordsColumns:
    """Our name: the source's name."""

    user_id: str
    text: str
    event_ts: str
    item_id: str | None = None  # what the words are about


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WordsSource:
    """What users wrote (reviews, tags, searches): becomes part of their text."""

    columns: WordsColumns
    path: str | None = None
    table: str | None = None
    format: Format | None = None
    options: dict[str, str | bool | int] = field(default_factory=dict)
    ts_format: str = "epoch_s"
    load: Load = "full"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SourceConfig:
    interactions: InteractionSource
    items: EntitySource
    users: EntitySource | None = None
    words: WordsSource | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LakeConfig:
    root: str  # a folder (relative to the checkout), or catalog.schema
    models: str | None = None  # folder of the model versions; None: <root>/models
    compact_files: int = 64  # a table of more files than this is compacted (OPTIMIZE), looked at every tenth version
    vacuum_days: int | None = 30  # files that no version of so many days needs are deleted (VACUUM); None: never

    @property
    def in_catalog(self) -> bool:
        return re.fullmatch(r"\w+\.\w+", self.root) is not None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    id: str = ""  # "": the moment of the start, UTC
    date: dt.date | None = None  # partition of `recommendations`; None: today, UTC
    seed: int = 42
    debug: bool = False  # show the whole stack of an error


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SparkConfig:
    """Used only when the job itself starts Spark; spark-submit and Databricks bring their own."""

    master: str = "local[*]"
    driver_memory: str = "4g"
    conf: dict[str, str | bool | int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Rule:
    """What happens to a row that breaks a rule."""

    action: Literal["quarantine", "drop", "fail", "off"] = "quarantine"
    max_share: float | None = None  # of a source's rows; more bad rows end the run with status 3. None: no limit


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TimeRule(Rule):
    earliest: dt.date = dt.date(1970, 1, 1)  # first good day, UTC


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextRule(Rule):
    max_chars: int = 1_000_000


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RobotRule(Rule):
    events_per_day: int = 1_000  # of one user on one UTC day; all events of a user above it are bad


def _off() -> Rule:
    return Rule(action="off")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QualityConfig:
    """The data contract beyond the columns of the sources. A row is judged by the first rule that it breaks."""

    row_format: Rule = field(default_factory=Rule)  # no row of its format: cut, or with more or fewer columns
    missing_id: Rule = field(default_factory=Rule)
    damaged_id: Rule = field(default_factory=Rule)  # a control character, or U+FFFD, in an id
    bad_time: Rule = field(default_factory=Rule)  # missing, or not in ts_format
    future_time: Rule = field(default_factory=Rule)  # after run.date and after now
    early_time: TimeRule = field(default_factory=TimeRule)
    bad_value: Rule = field(default_factory=Rule)  # a value, order, number or vector that cannot be read
    value_range: Rule = field(default_factory=Rule)  # outside value_range, or ranges
    unknown_event: Rule = field(default_factory=Rule)  # not among source.interactions.events
    long_text: TextRule = field(default_factory=TextRule)
    repeated_id: Rule = field(default_factory=Rule)  # a second row of an item or user, with other content
    unknown_item: Rule = field(default_factory=_off)  # an event of an item without a good row in source.items
    unknown_user: Rule = field(default_factory=_off)
    same_second: Rule = field(default_factory=_off)  # same user, item, kind and second as an event that is kept
    robots: RobotRule = field(default_factory=lambda: RobotRule(action="off"))
    empty_column: Rule = field(default_factory=_off)  # of a whole column, so only fail or off
    constant_column: Rule = field(default_factory=_off)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PositivesConfig:
    """Which events count as positives, how much, and what stands against them."""

    min_value: float | None = None  # explicit values below it are no positives; None: every event is one
    half_life_days: float | None = None  # weights halve with every so many days before the newest event; None: never
    negatives: Literal["none", "uniform", "popularity"] = "none"  # of table `examples`; popularity: to the power 0.75
    negatives_per_positive: int = 4
    balance: bool = False  # weigh the labels of `examples` so that both weigh the same in total


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FeaturesConfig:
    """Attributes as numbers, in table `item_features`; statistics from the events of the fit only."""

    normalize: Literal["zscore", "minmax", "log", "none"] = "zscore"  # log: z-score of log(1 + x - smallest)
    fill: Literal["mean", "median", "zero"] = "mean"  # numeric attributes without a value
    max_categories: int = 1_000  # of one attribute, the most frequent; the rest are one


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextConfig:
    max_tokens: int = 64  # longer texts are cut, tokens
    max_words: int = 20  # newest writings of a user that join the user's text
    sequence_length: int = 200  # events in one window of a user's history


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    encoder: str = "all-MiniLM-L6-v2"  # folder or hub name; the default comes with the set-up
    tuning: Literal["full", "lora", "frozen"] = "full"
    pooling: Literal["mean", "cls", "last"] = "mean"
    lora_rank: int = 16
    frozen_layers: int = 0  # of the encoder, the first ones with the embeddings, that are not tuned
    gradient_checkpointing: bool = False  # less memory, a third more time; for large encoders
    tower: Literal["transformer", "pooling"] = "transformer"  # of the users; pooling: recency-weighted mean, quicker
    dim: int | None = None  # factors of the FLM head and its tower; None: by the data's size, as the next ones
    layers: int | None = None  # of the user tower
    heads: int | None = None  # of its attention; they divide dim
    history_length: int | None = None  # newest events that the tower reads, at most text.sequence_length
    dropout: float | None = None  # in the tower, 0..1
    version: str | None = None  # model to encode and score with; None: the newest
    int8: bool = False  # encode with int8 weights, on CPUs


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainingConfig:
    launcher: Literal["horovod", "torch_distributor", "inline"] = "horovod"
    reader: Literal["petastorm", "arrow"] = "petastorm"
    num_proc: int = 2  # ranks; the inline launcher runs one
    threads_per_rank: int | None = None  # None: the cores of the machine over its ranks
    epochs: int | None = None  # None: early stopping on validation, at most what the recipe says
    batch_size: int | None = None  # windows a step over all ranks; None: by the data's size, as the next one
    learning_rate: float | None = None  # of the FLM head and its tower
    # what the next event is learned by, each with its weight; several are learned at once
    objectives: dict[Literal["softmax", "gbce", "click", "in_batch"], float] = field(
        default_factory=lambda: {"softmax": 1.0}
    )
    negatives: int | None = None  # sampled a step; 0: softmax over the whole catalogue; None: by its size
    hard_negatives: int = 0  # of gbce and click: only the so many best-scored ones; 0: all
    calibration: float = 0.75  # of gbce, 0 (plain cross-entropy) to 1
    label_smoothing: float = 0.0  # 0..1, of softmax and in_batch
    adversarial: float = 0.0  # perturbation of the item factors, relative to their size; 0: none, 0.1 is much
    weight_decay: float = 0.0  # of the FLM head and its tower (AdamW)
    l1: float = 0.0  # penalty of the items' residuals, as is l2
    l2: float = 0.0
    encoder_epochs: int = 2  # epochs that tune the encoder, the first ones; validation may stop earlier
    encoder_learning_rate: float = 5e-5
    head_learning_rate: float = 5e-4  # of the encoder's head
    encoder_warmup: float = 0.0  # share of the encoder's updates in which its learning rates rise
    texts_per_step: int = 64  # that a rank encodes in a step
    accumulate: int = 1  # steps of texts whose gradients make one update of the encoder
    scaling: Literal["none", "sqrt", "linear"] = "none"  # of the encoder's learning rates with the ranks
    checkpoint_s: float = 60.0  # seconds between checkpoints at least; they are written when an epoch has ended

    @property
    def ranks(self) -> int:
        return 1 if self.launcher == "inline" else self.num_proc


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainSource:
    """A lake that jobs/ingest.py has filled. Of `lake.root` itself only the training events of the split are used."""

    root: str  # as lake.root
    weight: float = 1.0  # times the windows that the temperature gives it
    interactions: bool = True  # false: its texts alone


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextAugmentConfig:
    """Views of a text. Shares are of its words, 0 to 1."""

    crop: float = 0.0  # a run of words is kept, shorter by this share
    drop: float = 0.0
    swap: float = 0.0  # neighbours change places
    mask: float = 0.0
    attributes: float = 0.0  # share of the parts behind the first (". " lies between) that are left out
    templates: list[str] = field(default_factory=list)  # other words around "{text}", one is drawn
    translator: str | None = None  # module:function, texts there and back; None: no back-translation


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HistoryAugmentConfig:
    """Views of a history. Shares are of its events, 0 to 1."""

    crop: float = 0.0  # a run of events is kept, shorter by this share
    drop: float = 0.0
    mask: float = 0.0  # the place stays, the item is unknown
    reorder: float = 0.0  # a run of this share is shuffled
    substitute: float = 0.0  # by the most similar text of the step


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainLosses:
    """Weights; 0: the loss is not computed."""

    next_item: float = 1.0
    masked_item: float = 0.0
    history_contrast: float = 0.0
    text_contrast: float = 0.0
    mlm: float = 0.0
    moments: float = 0.0  # distance of the sources' means and covariances
    distil: float = 0.0  # distance from the vectors of model.encoder, for a student of fewer layers


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainConfig:
    """Self-supervised training of the encoder on one or many lakes, by jobs/pretrain.py."""

    sources: list[PretrainSource] = field(default_factory=list)
    temperature: float = (
        0.5  # a source of n windows gets a share of n ** temperature; 1: as large as it is, 0: all alike
    )
    exclude_items_of: list[str] = field(
        default_factory=list
    )  # lakes whose titles no source may hold: zero-shot targets
    losses: PretrainLosses = field(default_factory=PretrainLosses)
    text: TextAugmentConfig = field(default_factory=TextAugmentConfig)
    history: HistoryAugmentConfig = field(default_factory=HistoryAugmentConfig)
    layers: int | None = None  # of the encoder that are kept, evenly spaced; None: all
    prefixes: list[int] = field(default_factory=list)  # of distil: first entries of a vector that have to do alone
    epochs: int = 1
    window_events: int = 50  # events in a row of the training table
    windows_per_step: int = 32  # a rank
    texts_per_step: int = 64  # distinct texts that a rank encodes in a step, drawn from the windows' events
    negatives: int = 64  # and as many more, drawn from all texts of the windows' sources, each alike
    masked_share: float = 0.15  # of tokens (mlm) and of events (masked_item)
    behaviour_texts: int = 0  # of mlm: histories a step, written as one text each
    half_life: float = 10.0  # of an event's weight in a history's vector, events
    similarity_temperature: float = 0.1  # of the softmaxes
    learning_rate: float = 5e-5  # peak; rises over the first tenth of the steps, then falls to 0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AlsPartConfig:
    """The part `als`: implicit ALS with a text prior (flmrec/factorization/als.py)."""

    rank: int = 64  # factors
    alpha: float = 16.0  # confidence of an event of weight 1 beyond that of a pair without one
    ridge: float = 32.0  # pull of an item to what its text and attributes say, of a user to 0
    prior_ridge: float = 1.0  # of the regression from text and attributes
    sweeps: int = 8
    half_life: float | None = 4.0  # events; of an event's weight when users are folded in; None: all count alike
    local_entries: int = 2_000_000  # pairs of user and item that are solved in the driver's process; more: by Spark


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FactorizationConfig:
    # parts of the published vectors, weighted on validation; sequential only up to 20,000 items
    parts: list[Literal["tower", "sequential", "long", "als"]] = field(
        default_factory=lambda: ["tower", "sequential", "long"]
    )
    dim: int | None = None  # latent factors of each linear model; None: by the data's size, as the next ones
    half_life: float | None = None  # of the sequential model, events; None: one or two, by the data's size
    ridge: float | None = None  # of the linear models, events
    als: AlsPartConfig = field(default_factory=AlsPartConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ScoringConfig:
    mode: Literal["recommend", "similar_items"] = "recommend"  # similar_items: lists of items for items, by cosine
    k: int = 10  # recommendations a user
    exclude_seen: bool = True
    segment: str | None = None  # column of `users`: candidates and popularity lists of each of its values
    candidates: str | None = None  # table of allowed item_id (and `segment`, null: for all); None: every item
    blocked: list[str] = field(default_factory=list)  # tables of item_id that nobody gets: out of stock, unapproved
    category: str | None = None  # attribute of the items that max_per_category counts; of several values the first
    max_per_category: int | None = None
    diversity: float = 0.0  # maximal marginal relevance: weight of being unlike the items above, 0 to 1
    debias: float = 0.0  # what a score loses, times log(1 + users who know the item)
    min_score: float | None = None
    reasons: bool = False  # column `reasons`: items of the history and their shares in the score
    index: Literal["exact", "ivf", "hnsw"] = "exact"  # the approximate ones are for tens of millions of items
    probes: int = 32  # of the approximate index: clusters (ivf) or places (hnsw) that are visited


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AlsConfig:
    """What the baseline `als` tries; validation NDCG@10 chooses."""

    rank: list[int] = field(default_factory=lambda: [32, 64])  # every reg and alpha at the first, the rest at the best
    reg: list[float] = field(default_factory=lambda: [0.03, 0.1, 0.3])
    alpha: list[float] = field(default_factory=lambda: [1.0, 8.0])
    iterations: int = 10


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GateConfig:
    """When tonight's model is not published; the first night has no gate."""

    enabled: bool = True
    tolerance: float = 0.1  # share of last night's NDCG@10 that may be lost, beyond what chance explains


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluationConfig:
    protocol: Literal["leave_one_out", "temporal", "random", "item_cold", "user_cold"] = "leave_one_out"
    test_share: float = 0.1  # temporal, random: share of the events that is test; as much is validation
    split_seed: int = 0  # random, few_shot: another seed, another split
    few_shot: int | None = None  # training events that the evaluated fit keeps, chosen by hash; None: all
    few_shot_per_user: bool = True  # so many of each user; false: in total
    k: list[int] = field(default_factory=lambda: [5, 10, 20])
    baselines: list[Literal["popularity", "als"]] = field(default_factory=lambda: ["popularity", "als"])
    als: AlsConfig = field(default_factory=AlsConfig)
    user_groups: list[str] = field(default_factory=list)  # columns of users; each value becomes a slice `column=value`
    gate: GateConfig = field(default_factory=GateConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TuneRange:
    """Either choices, or numbers from low to high."""

    choices: list[int | float | str] | None = None
    low: float | None = None
    high: float | None = None
    integer: bool = False
    log: bool = False  # evenly on the logarithm


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TuneConfig:
    """What jobs/tune.py tries; validation NDCG@100 of the holdout fit chooses."""

    trials: int = 20  # fits of the holdout; those that were done before count
    ranges: dict[str, TuneRange] = field(default_factory=dict)  # section.key of the configuration: its range


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    source: SourceConfig
    lake: LakeConfig
    run: RunConfig = field(default_factory=RunConfig)
    spark: SparkConfig = field(default_factory=SparkConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    positives: PositivesConfig = field(default_factory=PositivesConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Configuration from a YAML file and `section.key=value` overrides. Raises UsageError naming every fault.

    A file that says `extends: other.yaml` (beside it) has the keys of the other file where it names none itself.
    """
    tree = _read(Path(path))
    for override in overrides:
        _apply(tree, override)
    now = dt.datetime.now(dt.UTC)
    run = tree.setdefault("run", {})
    if isinstance(run, dict):
        run["id"] = run.get("id") or now.strftime("%Y%m%dT%H%M%SZ")
        run["date"] = run.get("date") or now.date()
    return parse(tree, where=str(path))


def overridden(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with other values, by section.key. Raises UsageError naming every fault."""
    tree = json.loads(json.dumps(asdict(config), default=str))
    for name, value in values.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.get(section)
            if not isinstance(node, dict):
                raise UsageError(f"There is no key {name} in the configuration.")
        node[key] = value
    return parse(tree)


def parse(tree: dict[str, Any], where: str = "configuration") -> Config:
    """A checked Config from nested dictionaries. Raises UsageError naming every fault."""
    try:
        config = TypeAdapter(Config).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        faults = "; ".join(_describe(e) for e in error.errors(include_url=False))
        raise UsageError(f"{where}: {faults}. Correct the file or the override and run again.") from None
    _check(config, where)
    return config


def dump(config: Config) -> str:
    """The resolved configuration as YAML, as it is stored beside a model. `parse(yaml)` gives it back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config), default=str)), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"There is no configuration file {path}: give an existing YAML file with --config.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must hold sections such as source: and lake:, got {type(tree).__name__}.")
    base = tree.pop("extends", None)
    return tree if base is None else _merged(_read(path.parent / str(base)), tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both trees; what `above` says wins."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        both[key] = _merged(below[key], value) if nested else value
    return both


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UsageError(f"'{override}' is no override: write section.key=value, for example scoring.k=20.")
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UsageError(f"'{override}': {key} holds a value, not keys, in the configuration file.")
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"'{override}': the value is not readable YAML; put it in quotes.") from None


def _describe(error: Any) -> str:
    names = [str(part) for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    key = ".".join(names)
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {key}"
        case "missing":
            return f"{key} is missing"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _check(config: Config, where: str) -> None:
    """What a type cannot say."""
    faults = _source_faults(config.source) + _quality_faults(config.quality)
    if config.lake.vacuum_days is not None and config.lake.vacuum_days < 7:
        faults.append(f"lake.vacuum_days must be at least 7, got {config.lake.vacuum_days}: readers need old files")
    if config.lake.in_catalog and config.lake.models is None:
        faults.append(f"lake.root {config.lake.root} is a catalog schema, so lake.models must name a folder")
    for key, value in (("scoring.k", config.scoring.k), ("training.num_proc", config.training.num_proc)):
        if value < 1:
            faults.append(f"{key} must be at least 1, got {value}")
    faults += _scoring_faults(config.scoring) + _model_faults(config.model) + _evaluation_faults(config.evaluation)
    faults += _pretrain_faults(config.pretrain) + _training_faults(config.training)
    faults += _factorization_faults(config.factorization) + _tune_faults(config.tune)
    if faults:
        raise UsageError(f"{where}: {'; '.join(faults)}. Correct the file or the override and run again.")


def _evaluation_faults(evaluation: EvaluationConfig) -> list[str]:
    faults = []
    for name in ("rank", "reg", "alpha"):
        tried = getattr(evaluation.als, name)
        if not tried or min(tried) <= 0:
            faults.append(f"evaluation.als.{name} needs at least one value above 0, got {tried}")
    if min(evaluation.k, default=0) < 1:
        faults.append(f"evaluation.k needs at least one number, each at least 1, got {evaluation.k}")
    if not 0 < evaluation.test_share < 0.5:
        faults.append(f"evaluation.test_share must be above 0 and below 0.5, got {evaluation.test_share}")
    if evaluation.few_shot is not None and evaluation.few_shot < 1:
        faults.append(f"evaluation.few_shot must be at least 1, got {evaluation.few_shot}")
    if not 0 <= evaluation.gate.tolerance <= 1:
        faults.append(f"evaluation.gate.tolerance must be between 0 and 1, got {evaluation.gate.tolerance}")
    return faults


def _tune_faults(tune: TuneConfig) -> list[str]:
    faults = []
    for name, own in tune.ranges.items():
        bounded = own.low is not None and own.high is not None and own.low < own.high
        if bounded == bool(own.choices):
            faults.append(f"tune.ranges.{name} needs either choices, or low below high")
        elif own.log and (own.low or 0) <= 0:
            faults.append(f"tune.ranges.{name}.low must be above 0 where log is true, got {own.low}")
    if tune.trials < 1:
        faults.append(f"tune.trials must be at least 1, got {tune.trials}")
    return faults


def _training_faults(training: TrainingConfig) -> list[str]:
    faults = []
    if not training.objectives or min(training.objectives.values()) <= 0:
        faults.append(f"training.objectives needs at least one, each with a weight above 0, got {training.objectives}")
    for name in ("texts_per_step", "accumulate"):
        if getattr(training, name) < 1:
            faults.append(f"training.{name} must be at least 1, got {getattr(training, name)}")
    for name in ("negatives", "hard_negatives", "adversarial", "weight_decay", "l1", "l2"):
        value = getattr(training, name)
        if value is not None and value < 0:
            faults.append(f"training.{name} must be at least 0, got {value}")
    for name in ("calibration", "label_smoothing", "encoder_warmup"):
        if not 0 <= getattr(training, name) <= 1:
            faults.append(f"training.{name} must be from 0 to 1, got {getattr(training, name)}")
    return faults


def _factorization_faults(factorization: FactorizationConfig) -> list[str]:
    faults = []
    if not factorization.parts or len(set(factorization.parts)) < len(factorization.parts):
        faults.append(f"factorization.parts needs at least one part, each once, got {factorization.parts}")
    elif factorization.parts == ["sequential"]:
        faults.append("factorization.parts needs a part beside sequential, which catalogues above 20,000 items lack")
    for name in ("rank", "alpha", "ridge", "prior_ridge", "sweeps", "half_life"):
        value = getattr(factorization.als, name)
        if value is not None and value <= 0:
            faults.append(f"factorization.als.{name} must be above 0, got {value}")
    return faults


def _model_faults(model: ModelConfig) -> list[str]:
    faults = []
    if model.dim is not None and model.dim % (model.heads or 2):
        faults.append(f"model.dim must be a multiple of model.heads ({model.heads or 2}), got {model.dim}")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        faults.append(f"model.dropout must be at least 0 and below 1, got {model.dropout}")
    return faults


def _pretrain_faults(pretrain: PretrainConfig) -> list[str]:
    shares = {f"text.{name}": value for name, value in vars(pretrain.text).items() if isinstance(value, float)}
    shares |= {f"history.{name}": value for name, value in vars(pretrain.history).items()}
    faults = [
        f"pretrain.{name} must be at least 0 and below 1, got {share}"
        for name, share in shares.items()
        if not 0 <= share < 1
    ]
    for name, least in (
        ("epochs", 1),
        ("windows_per_step", 1),
        ("window_events", 2),
        ("texts_per_step", 2),
        ("negatives", 0),
    ):
        if getattr(pretrain, name) < least:
            faults.append(f"pretrain.{name} must be at least {least}, got {getattr(pretrain, name)}")
    for name in ("half_life", "similarity_temperature", "learning_rate", "masked_share"):
        if getattr(pretrain, name) <= 0:
            faults.append(f"pretrain.{name} must be above 0, got {getattr(pretrain, name)}")
    weights = vars(pretrain.losses).values()
    if min(weights) < 0 or max(weights) <= 0:
        faults.append("pretrain.losses needs weights of at least 0, one of them above 0")
    if any(source.weight <= 0 for source in pretrain.sources):
        faults.append("pretrain.sources: weight must be above 0")
    if any("{text}" not in template for template in pretrain.text.templates):
        faults.append("pretrain.text.templates: each needs {text}")
    return faults


def _source_faults(sources: SourceConfig) -> list[str]:
    faults = []
    for name in ("interactions", "items", "users", "words"):
        source = getattr(sources, name)
        if source is not None and (source.path is None) == (source.table is None):
            faults.append(f"source.{name} needs either path or table")
    for name, entity, key in (("items", sources.items, "item_id"), ("users", sources.users, "user_id")):
        if entity is None:
            continue
        if key not in entity.columns:
            faults.append(f"source.{name}.columns needs {key}")
        for column in entity.ranges.keys() - set(entity.numeric):
            faults.append(f"source.{name}.ranges.{column}: {column} is not among numeric")
    limits = {"source.interactions.value_range": sources.interactions.value_range}
    limits |= {f"source.items.ranges.{column}": limit for column, limit in sources.items.ranges.items()}
    faults += [
        f"{key}: {limit[0]} is above {limit[1]}" for key, limit in limits.items() if limit and limit[0] > limit[1]
    ]
    return faults


def _quality_faults(quality: QualityConfig) -> list[str]:
    faults = []
    for rule in ("empty_column", "constant_column"):
        if getattr(quality, rule).action not in ("fail", "off"):
            faults.append(f"quality.{rule}.action must be fail or off: a column cannot be put into quarantine")
    for rule in vars(quality):
        share = getattr(quality, rule).max_share
        if share is not None and not 0 <= share <= 1:
            faults.append(f"quality.{rule}.max_share must be from 0 to 1, got {share}")
    for rule in ("row_format", "missing_id", "bad_time"):
        if getattr(quality, rule).action == "off":
            faults.append(f"quality.{rule}.action cannot be off: such a row cannot be kept")
    return faults


def _scoring_faults(scoring: ScoringConfig) -> list[str]:
    faults = []
    if not 0 <= scoring.diversity <= 1:
        faults.append(f"scoring.diversity must be from 0 to 1, got {scoring.diversity}")
    if (scoring.category is None) != (scoring.max_per_category is None):
        faults.append("scoring.category and scoring.max_per_category go together")
    for key, value in (("max_per_category", scoring.max_per_category), ("probes", scoring.probes)):
        if value is not None and value < 1:
            faults.append(f"scoring.{key} must be at least 1, got {value}")
    return faults
