"""The whole configuration: one frozen dataclass per section, checked before Spark starts.

`load("conf/x.yaml", ["scoring.k=20"])` reads a file, applies `section.key=value` overrides (value in YAML), and
refuses unknown keys, missing ones and wrong types, all at once, in one message. Only the sources and `lake.root`
have no default; what a default of None means is said by its comment: chosen by the data's size or by the machine, or
not used.
"""

from flmrec.config.evaluation import (
    AlsConfig,
    EvaluationConfig,
    GateConfig,
    TuneConfig,
    TuneRange,
)
from flmrec.config.learning import (
    FeaturesConfig,
    ModelConfig,
    PositivesConfig,
    TextConfig,
    TrainingConfig,
)
from flmrec.config.loading import dump, load, overridden, parse
from flmrec.config.operation import (
    LakeConfig,
    RunConfig,
    SparkConfig,
)
from flmrec.config.pretraining import (
    HistoryAugmentConfig,
    PretrainConfig,
    PretrainLosses,
    PretrainSource,
    TextAugmentConfig,
)
from flmrec.config.quality import (
    QualityConfig,
    RobotRule,
    Rule,
    TextRule,
    TimeRule,
)
from flmrec.config.ranking import (
    AlsPartConfig,
    FactorizationConfig,
    ScoringConfig,
)
from flmrec.config.reranking import RerankConfig
from flmrec.config.schema import Config
from flmrec.config.sources import (
    Categorical,
    EntitySource,
    InteractionColumns,
    InteractionSource,
    SourceConfig,
    WordsColumns,
    WordsSource,
)

__all__ = [
    "AlsConfig",
    "AlsPartConfig",
    "Categorical",
    "Config",
    "EntitySource",
    "EvaluationConfig",
    "FactorizationConfig",
    "FeaturesConfig",
    "GateConfig",
    "HistoryAugmentConfig",
    "InteractionColumns",
    "InteractionSource",
    "LakeConfig",
    "ModelConfig",
    "PositivesConfig",
    "PretrainConfig",
    "PretrainLosses",
    "PretrainSource",
    "QualityConfig",
    "RerankConfig",
    "RobotRule",
    "Rule",
    "RunConfig",
    "ScoringConfig",
    "SourceConfig",
    "SparkConfig",
    "TextAugmentConfig",
    "TextConfig",
    "TextRule",
    "TimeRule",
    "TrainingConfig",
    "TuneConfig",
    "TuneRange",
    "WordsColumns",
    "WordsSource",
    "dump",
    "load",
    "overridden",
    "parse",
]
