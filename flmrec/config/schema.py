"""All sections, and what their types cannot say."""

from dataclasses import field

from pydantic.dataclasses import dataclass

from flmrec.config.evaluation import EvaluationConfig, TuneConfig, evaluation_faults, tune_faults
from flmrec.config.learning import (
    FeaturesConfig,
    ModelConfig,
    PositivesConfig,
    TextConfig,
    TrainingConfig,
    model_faults,
    training_faults,
)
from flmrec.config.operation import LakeConfig, RunConfig, SparkConfig
from flmrec.config.pretraining import PretrainConfig, pretrain_faults
from flmrec.config.quality import QualityConfig, quality_faults
from flmrec.config.ranking import FactorizationConfig, ScoringConfig, factorization_faults, scoring_faults
from flmrec.config.reranking import RerankConfig, rerank_faults
from flmrec.config.sources import SourceConfig, source_faults
from flmrec.config.strict import STRICT
from flmrec.errors import UsageError


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
    rerank: RerankConfig = field(default_factory=RerankConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


def check(config: Config, where: str) -> None:
    """What a type cannot say."""
    faults = source_faults(config.source) + quality_faults(config.quality)
    if config.lake.vacuum_days is not None and config.lake.vacuum_days < 7:
        faults.append(f"lake.vacuum_days must be at least 7, got {config.lake.vacuum_days}: readers need old files")
    if config.lake.in_catalog and config.lake.models is None:
        faults.append(f"lake.root {config.lake.root} is a catalog schema, so lake.models must name a folder")
    for key, value in (("scoring.k", config.scoring.k), ("training.num_proc", config.training.num_proc)):
        if value < 1:
            faults.append(f"{key} must be at least 1, got {value}")
    faults += scoring_faults(config.scoring) + model_faults(config.model) + evaluation_faults(config.evaluation)
    faults += pretrain_faults(config.pretrain) + training_faults(config.training)
    faults += factorization_faults(config.factorization) + tune_faults(config.tune) + rerank_faults(config.rerank)
    if faults:
        raise UsageError(f"{where}: {'; '.join(faults)}. Correct the file or the override and run again.")
