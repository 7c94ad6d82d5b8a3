"""The cross-encoder that puts the best of a list into another order."""

from pydantic.dataclasses import dataclass

from flmrec.config.strict import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RerankConfig:
    """How jobs/rerank.py trains and judges it; scoring.rerank says how many of each list it reorders."""

    history_events: int = 8  # newest events whose texts stand before the item's
    event_tokens: int = 12  # of each of these texts
    item_tokens: int = 32  # of the item's text
    examples_per_user: int = 4  # newest training events that it learns from, each with the events before it
    max_examples: int = 20_000  # of all users; of more, those of users drawn by a hash
    negatives: int = 3  # beside each of them, drawn by popularity ** 0.75 from what the user never had
    epochs: int = 1
    pairs_per_step: int = 32  # a rank
    learning_rate: float = 5e-5  # peak; rises over the first tenth of the steps, then falls to 0
    judged_users: int = 500  # whose lists choose its weight (validation) and measure it (test)


def rerank_faults(rerank: RerankConfig) -> list[str]:
    faults = [
        f"rerank.{name} must be at least 1, got {value}"
        for name, value in vars(rerank).items()
        if name != "learning_rate" and value < 1
    ]
    if rerank.learning_rate <= 0:
        faults.append(f"rerank.learning_rate must be above 0, got {rerank.learning_rate}")
    return faults
