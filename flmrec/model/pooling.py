"""A user tower without attention: the recency-weighted mean of the item factors, with a learned half-life."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALF_LIFE = 8.0  # events, to begin with


class PoolingTower(nn.Module):
    """g(h_u) after each event: norm(A m), m the mean of the factors so far, weights 0.5 ** (age / half-life).

    As HistoryTower: states (B, L, D) from item factors (B, L, D) and history (B, L), 0 = padding. A starts as the
    identity. An event's age is counted in events, whatever their times. Two products a window instead of a
    transformer's dozen.
    """

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.log_half_life = nn.Parameter(torch.tensor(_HALF_LIFE).log())
        self.turn = nn.Linear(dim, dim)
        nn.init.eye_(self.turn.weight)
        nn.init.zeros_(self.turn.bias)
        self.norm = nn.LayerNorm(dim)

    def forward(self, factors: Tensor, history: Tensor, _: Tensor) -> Tensor:
        places = torch.arange(history.shape[1], device=history.device, dtype=factors.dtype)
        age = places[:, None] - places  # (L, L)
        decay = torch.exp2(-age.clamp(min=0) / self.log_half_life.exp()) * (age >= 0)
        weights = decay * (history != 0)[:, None, :]  # (B, L, L)
        mean = weights @ factors / weights.sum(2, keepdim=True).clamp(min=1e-9)
        return self.norm(self.turn(F.dropout(mean, self.rate, self.training)))
