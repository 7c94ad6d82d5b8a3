"""How learning rates go over the steps of a training that tunes a language model."""

import torch

_WARM_UP = 0.1  # share of the steps


def rise_and_fall(optimizer: torch.optim.Optimizer, total_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linearly up over the first tenth of the steps, then down to 0 at the last."""
    rise = max(1, int(_WARM_UP * total_steps))
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / rise, max(0.0, (total_steps - done) / total_steps))
    )
