"""What the model learns from, what it is made of, and how it is trained."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PositivesConfig:
    """Which events count as positives, how much, and what stands against them."""

    min_value: float | None = None  # explicit values below it are no positives; None: every event is one
    half_life_days: float | None = None  # weights halve with every so many days before the newest event; None: never
    # of table `examples`, which is for models of your own; popularity: to the power 0.75
    negatives: Literal["none", "uniform", "popularity"] = "none"
    negatives_per_positive: int = 4
    balance: bool = False  # weigh the labels of `examples` so that both weigh the same in total


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeaturesConfig:
    """Attributes as numbers, in `item_features` and `user_features`, for models of your own; no stage reads them. The
    statistics come from the fit's events only."""

    normalize: Literal["zscore", "minmax", "log", "none"] = "zscore"  # log: z-score of log(1 + x - smallest)
    fill: Literal["mean", "median", "zero"] = "mean"  # numeric attributes without a value
    max_categories: int = 1_000  # of one attribute, the most frequent; the rest are one


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextConfig:
    max_tokens: int = 64  # longer texts are cut, tokens
    max_words: int = 20  # newest writings of a user that join the user's text
    sequence_length: int = 200  # events in one window of a user's history


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    encoder: str = "all-MiniLM-L6-v2"  # folder or hub name; the default comes with the set-up
    user_encoder: str | None = None  # of what users say, used as it is; None: that of the items, as fine-tuned
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
    similarity: Literal["inner_product", "cosine"] = "inner_product"  # of user and item in the tower
    temperature: float | None = None  # that the tower's scores are divided by in training; None: 1, of cosines 0.07
    residual_dropout: float = 0.1  # share of items that do without their residual in a step; 1: no residuals at all
    version: str | None = None  # model to encode and score with; None: the newest
    int8: bool = False  # encode with int8 weights, on CPUs
    onnx: bool = False  # jobs/finetune.py and jobs/pretrain.py write the encoder as model.onnx too


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    launcher: Literal["horovod", "torch_distributor", "inline"] = "horovod"
    reader: Literal["petastorm", "arrow"] = "petastorm"
    num_proc: int = 2  # ranks; the inline launcher runs one
    threads_per_rank: int | None = None  # None: the cores of the machine over its ranks
    epochs: int | None = None  # at most, None: the recipe's; the holdout fit stops early and keeps the best epoch
    batch_size: int | None = None  # windows a step over all ranks; None: by the data's size, as the next one
    learning_rate: float | None = None  # of the FLM head and its tower
    # what the next event is learned by, each with its weight; several are learned at once
    objectives: dict[Literal["softmax", "gbce", "click", "in_batch", "rating"], float] = field(
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
    max_gradient_norm: float = 0.0  # of the FLM head and its tower, all dense gradients together; 0: not clipped
    encoder_epochs: int = 2  # epochs that tune the encoder, the first ones; validation may stop earlier
    encoder_learning_rate: float = 5e-5
    head_learning_rate: float = 5e-4  # of the encoder's head
    encoder_warmup: float = 0.0  # share of the encoder's updates in which its learning rates rise
    texts_per_step: int = 64  # that a rank encodes in a step
    encoder_max_gradient_norm: float = 1.0  # of the encoder and its head; 0: not clipped
    accumulate: int = 1  # steps of texts whose gradients make one update of the encoder
    scaling: Literal["none", "sqrt", "linear"] = "none"  # of the encoder's learning rates with the ranks
    checkpoint_s: float = 60.0  # seconds between checkpoints at least; they are written when an epoch has ended

    @property
    def ranks(self) -> int:
        return 1 if self.launcher == "inline" else self.num_proc


def model_faults(model: ModelConfig) -> list[str]:
    faults = []
    if model.dim is not None and model.dim % (model.heads or 2):
        faults.append(f"model.dim must be a multiple of model.heads ({model.heads or 2}), got {model.dim}")
    if model.dropout is not None and not 0 <= model.dropout < 1:
        faults.append(f"model.dropout must be at least 0 and below 1, got {model.dropout}")
    if model.temperature is not None and model.temperature <= 0:
        faults.append(f"model.temperature must be above 0, got {model.temperature}")
    if not 0 <= model.residual_dropout <= 1:
        faults.append(f"model.residual_dropout must be from 0 to 1, got {model.residual_dropout}")
    return faults


def training_faults(training: TrainingConfig) -> list[str]:
    faults = []
    if not training.objectives or min(training.objectives.values()) <= 0:
        faults.append(f"training.objectives needs at least one, each with a weight above 0, got {training.objectives}")
    for name in ("texts_per_step", "accumulate"):
        if getattr(training, name) < 1:
            faults.append(f"training.{name} must be at least 1, got {getattr(training, name)}")
    not_negative = ("negatives", "hard_negatives", "adversarial", "weight_decay", "l1", "l2", "max_gradient_norm")
    for name in (*not_negative, "encoder_max_gradient_norm"):
        value = getattr(training, name)
        if value is not None and value < 0:
            faults.append(f"training.{name} must be at least 0, got {value}")
    for name in ("calibration", "label_smoothing", "encoder_warmup"):
        if not 0 <= getattr(training, name) <= 1:
            faults.append(f"training.{name} must be from 0 to 1, got {getattr(training, name)}")
    return faults
