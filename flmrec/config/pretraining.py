"""Self-supervised training of the encoder, on one or many lakes."""

from dataclasses import field

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainSource:
    """A lake that jobs/ingest.py has filled. Of `lake.root` itself only the training events of the split are used."""

    root: str  # as lake.root
    weight: float = 1.0  # times the windows that the temperature gives it
    interactions: bool = True  # false: its texts alone


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextAugmentConfig:
    """Views of a text. Shares are of its words, 0 to 1."""

    crop: float = 0.0  # a run of words is kept, shorter by this share
    drop: float = 0.0
    swap: float = 0.0  # neighbours change places
    mask: float = 0.0
    attributes: float = 0.0  # share of the parts behind the first (". " lies between) that are left out
    templates: list[str] = field(default_factory=list)  # other words around "{text}", one is drawn
    translator: str | None = None  # module:function, texts there and back; None: no back-translation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HistoryAugmentConfig:
    """Views of a history. Shares are of its events, 0 to 1."""

    crop: float = 0.0  # a run of events is kept, shorter by this share
    drop: float = 0.0
    mask: float = 0.0  # the place stays, the item is unknown
    reorder: float = 0.0  # a run of this share is shuffled
    substitute: float = 0.0  # by the most similar text of the step


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainLosses:
    """Weights; 0: the loss is not computed."""

    next_item: float = 1.0
    masked_item: float = 0.0
    history_contrast: float = 0.0
    text_contrast: float = 0.0
    words: float = 1.0  # texts that share rare words are alike
    mlm: float = 0.0
    moments: float = 0.0  # distance of the sources' means and covariances
    distil: float = 0.0  # distance from the vectors of model.encoder, for a student of fewer layers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """Self-supervised training of the encoder on one or many lakes, by jobs/pretrain.py."""

    sources: list[PretrainSource] = field(default_factory=list)
    # a source of n windows gets a share of n ** temperature; 1: as large as it is, 0: all alike
    temperature: float = 0.5
    # lakes whose titles no source with events may hold: zero-shot targets
    exclude_items_of: list[str] = field(default_factory=list)
    losses: PretrainLosses = field(default_factory=PretrainLosses)
    text: TextAugmentConfig = field(default_factory=TextAugmentConfig)
    history: HistoryAugmentConfig = field(default_factory=HistoryAugmentConfig)
    adapter_rank: int = 0  # of an adapter for each lake beside the weights that all share; 0: none
    layers: int | None = None  # of the encoder that are kept, evenly spaced; None: all
    prefixes: list[int] = field(default_factory=list)  # of distil: first entries of a vector that have to do alone
    epochs: int = 1
    window_events: int = 50  # events in a row of the training table
    windows_per_step: int = 64  # a rank
    texts_per_step: int = 128  # distinct texts that a rank encodes in a step, drawn from the windows' events
    negatives: int = 192  # and as many more, drawn from all texts of the windows' sources, each alike
    masked_share: float = 0.15  # of tokens (mlm) and of events (masked_item)
    behaviour_texts: int = 0  # of mlm: histories a step, written as one text each
    half_life: float = 10.0  # of an event's weight in a history's vector, events
    similarity_temperature: float = 0.1  # of the softmaxes
    learning_rate: float = 2e-5  # peak; rises over the first tenth of the steps, then falls to 0


def pretrain_faults(pretrain: PretrainConfig) -> list[str]:
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
        ("adapter_rank", 0),
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
