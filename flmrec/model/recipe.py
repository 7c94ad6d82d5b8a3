"""How a model is trained: what the configuration leaves open is chosen here by the size of the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flmrec.config import FactorizationConfig, ModelConfig, TrainingConfig
from flmrec.model.encoder import TuningOptions

FULL_SOFTMAX_LIMIT = 20_000  # items; above, the softmax is over sampled negatives and the residuals are sparse
TWO_HALF_LIVES_LIMIT = 6_000  # items; two half-lives need a matrix twice as wide as the catalogue
WIDE_VECTORS_LIMIT = 100_000  # users; above, linear parts of more than 256 factors would fill the disk
COSINE_TEMPERATURE = 0.07
RATING = "rating"  # the objective


@dataclass(frozen=True, kw_only=True)
class DataSize:
    """What the training part of the log holds."""

    n_users: int
    n_items: int
    n_events: int
    n_windows: int  # rows of `sequences`


@dataclass(frozen=True, kw_only=True)
class TowerRecipe:
    """The FLM head, its user tower and their training."""

    tower: Literal["transformer", "pooling"] = "transformer"
    dim: int = 64  # latent factors
    layers: int = 2
    heads: int = 2
    widening: int = 1  # of the feed-forward layers, in factors
    length: int = 200  # newest events that the tower reads
    dropout: float = 0.4
    # of text vectors in the head: Adam moves a factor by the learning rate times the sum of |f(x)|, so the longer they
    # are, the more of an item is its text and the less its residual (docs/model.md)
    text_length: float = 2.0
    similarity: Literal["inner_product", "cosine"] = "inner_product"
    temperature: float = 1.0  # that scores are divided by
    residual_dropout: float = 0.1  # share of items whose residual is dropped in a step; 1: there are no residuals
    sparse: bool = False  # residuals get sparse gradients: only the rows of a batch travel between ranks
    negatives: int = 0  # sampled negatives a step; 0: softmax over the whole catalogue
    learning_rate: float = 3e-3  # peak, of Adam
    warmup_steps: int = 100
    averaging: float = 0.99  # decay of the running mean of the weights, which is what is kept
    objectives: Mapping[str, float] = field(default_factory=lambda: {"softmax": 1.0})  # each with its weight
    calibration: float = 0.75  # t of gbce
    hard_negatives: int = 0  # of gbce and click: the best-scored so many; 0: all that are drawn
    label_smoothing: float = 0.0
    adversarial: float = 0.0  # step of the item factors against the loss, in root mean squares of a factor
    weight_decay: float = 0.0  # of AdamW, for all weights but sparse residuals
    l1: float = 0.0  # of the residuals of a step's items
    l2: float = 0.0
    max_gradient_norm: float = 0.0  # of the dense gradients together; 0: none
    batch_size: int = 64  # windows a step over all ranks
    max_epochs: int = 40
    evaluate_every: int = 5  # epochs
    patience: int = 4  # evaluations without a gain after which training ends


@dataclass(frozen=True, kw_only=True)
class AlignmentRecipe:
    """Fine-tuning of the encoder: texts learn what the linear teacher says about their items."""

    max_epochs: int = 2
    learning_rate: float = 5e-5  # of the encoder
    head_learning_rate: float = 5e-4
    texts_per_step: int = 64  # a rank
    accumulate: int = 1  # steps whose gradients make one update
    warmup: float = 0.0  # share of the updates in which the learning rates rise; then they fall to 0
    scaling: Literal["none", "sqrt", "linear"] = "none"  # of the learning rates with the ranks
    max_texts_per_epoch: int = 4_096  # drawn anew each epoch: what fine-tuning costs does not grow with the catalogue
    share_of_histories: float = 0.5  # of a step's texts: items that the step's users had, instead of any
    words: float = 0.3  # weight of the loss that keeps texts alike which share rare words
    words_temperature: float = 0.1  # of its softmaxes over cosines
    temperature: float = 1.0  # in standard deviations of the teacher's scores
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0  # 0: none


@dataclass(frozen=True, kw_only=True)
class LinearRecipe:
    """The linear models in closed form."""

    rank: int = 256  # of the long model
    sequential_rank: int = 256
    half_lives: tuple[float, ...] = (3.0, 24.0)  # events, of the sequential model
    sequential_ridge: float = 300.0  # events
    ease_ridge: float = 300.0  # events

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "LinearRecipe":
        """From what `dataclasses.asdict` gave, back from JSON."""
        return cls(**{**settings, "half_lives": tuple(settings["half_lives"])})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    tower: TowerRecipe
    alignment: AlignmentRecipe
    linear: LinearRecipe
    pooling: Literal["mean", "cls", "last"]
    tuning: Literal["full", "lora", "frozen"]
    options: TuningOptions = field(default_factory=TuningOptions)


def choose(model: ModelConfig, training: TrainingConfig, factorization: FactorizationConfig, size: DataSize) -> Recipe:
    """The recipe for data of this size; what the configuration states is kept."""
    tower = _stated(
        _tower(size),
        tower=model.tower,
        dim=model.dim,
        layers=model.layers,
        heads=model.heads,
        length=model.history_length,
        dropout=model.dropout,
        similarity=model.similarity,
        temperature=model.temperature or (COSINE_TEMPERATURE if model.similarity == "cosine" else None),
        residual_dropout=model.residual_dropout,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        max_epochs=training.epochs,
        negatives=training.negatives,
        objectives=training.objectives,
        calibration=training.calibration,
        hard_negatives=training.hard_negatives,
        label_smoothing=training.label_smoothing,
        adversarial=training.adversarial,
        weight_decay=training.weight_decay,
        l1=training.l1,
        l2=training.l2,
        max_gradient_norm=training.max_gradient_norm,
    )
    linear = _stated(
        _linear(size),
        rank=factorization.dim,
        sequential_rank=factorization.dim,
        half_lives=None if factorization.half_life is None else (factorization.half_life,),
        sequential_ridge=factorization.ridge,
        ease_ridge=factorization.ridge,
    )
    encoder_epochs = 0 if model.tuning == "frozen" else training.encoder_epochs
    alignment = _stated(
        AlignmentRecipe(max_epochs=encoder_epochs, learning_rate=training.encoder_learning_rate),
        head_learning_rate=training.head_learning_rate,
        texts_per_step=training.texts_per_step,
        accumulate=training.accumulate,
        warmup=training.encoder_warmup,
        scaling=training.scaling,
        max_gradient_norm=training.encoder_max_gradient_norm,
    )
    options = TuningOptions(model.lora_rank, model.frozen_layers, model.gradient_checkpointing)
    return Recipe(
        tower=tower, alignment=alignment, linear=linear, pooling=model.pooling, tuning=model.tuning, options=options
    )


def _stated(recipe: Any, **settings: Any) -> Any:
    """The recipe with the settings that are not None."""
    return replace(recipe, **{name: value for name, value in settings.items() if value is not None})


def _tower(size: DataSize) -> TowerRecipe:
    if size.n_items > FULL_SOFTMAX_LIMIT:
        return TowerRecipe(
            length=50, sparse=True, negatives=1024, batch_size=512, max_epochs=5, evaluate_every=1, learning_rate=1e-3,
            dropout=0.2,
        )  # fmt: skip
    if size.n_events > 500_000:
        return TowerRecipe(batch_size=128, max_epochs=30, evaluate_every=5, dropout=0.2, widening=4)
    if size.n_windows > 5_000:
        return TowerRecipe(length=50, text_length=20.0, batch_size=128, max_epochs=28, evaluate_every=4)
    return TowerRecipe()


def _linear(size: DataSize) -> LinearRecipe:
    """The sums grow with the events an item, and so does the ridge that they need."""
    events_per_item = size.n_events / max(size.n_items, 1)
    ridge = min(max(5 * events_per_item, 50.0), 500.0)
    half_lives = (3.0, 24.0) if size.n_items <= TWO_HALF_LIVES_LIMIT else (4.0,)
    widest = 1024 if size.n_users <= WIDE_VECTORS_LIMIT else 256
    wide = min(max(size.n_items // 4, 256), widest)
    rank = wide if size.n_items <= FULL_SOFTMAX_LIMIT else 256  # a spectral filter lives on being narrow
    return LinearRecipe(
        sequential_ridge=ridge, ease_ridge=ridge, rank=rank, sequential_rank=wide, half_lives=half_lives
    )
