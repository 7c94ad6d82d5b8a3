"""The user tower: a causal transformer over the factors of a user's history.

After Kang & McAuley, "Self-attentive sequential recommendation" (ICDM 2018), with pre-normalisation and GELU. The time
since the event before is a part of the input, which Li et al., "Time interval aware self-attention" (WSDM 2020), put
into the attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmrec.model.attention import attention, dropout
from flmrec.model.recipe import TowerRecipe

_GAPS_S = tuple(2**power - 1 for power in range(31))  # seconds, where a class of gaps begins: 0, 1, 3, 7 ... 34 years


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each on normalised input, with a residual."""

    def __init__(self, recipe: TowerRecipe) -> None:
        super().__init__()
        self.heads, self.dropout = recipe.heads, recipe.dropout
        dim, wide = recipe.dim, recipe.dim * recipe.widening
        self.norm_attention, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, wide), nn.Linear(wide, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, L, D); mask: (B, 1, L, L), True where the row's position may look at the column's."""
        batch, length, dim = x.shape
        parts = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D / heads)
        seen = attention(query, key, value, mask, self.dropout if self.training else 0.0)
        x = x + self._drop(self.out(seen.transpose(1, 2).reshape(batch, length, dim)))
        hidden = self._drop(F.gelu(self.wide(self.norm_forward(x))))
        return x + self._drop(self.narrow(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training else x


class HistoryTower(nn.Module):
    """g(h_u): states (B, L, D) after each event, from item factors (B, L, D), history (B, L), 0 = padding, and times
    (B, L)."""

    def __init__(self, recipe: TowerRecipe) -> None:
        super().__init__()
        dim = recipe.dim
        self.dropout, self.scale = recipe.dropout, dim**0.5
        self.positions = nn.Parameter(torch.randn(recipe.length, dim) * 0.02)  # counted from the newest event
        self.gaps = nn.Parameter(torch.randn(len(_GAPS_S) + 1, dim) * 0.02)  # since the event before
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, factors: Tensor, history: Tensor, times: Tensor) -> Tensor:
        """times: (B, L) epoch seconds, 0: not known."""
        length = history.shape[1]
        x = factors * self.scale + self.positions[-length:] + self.gaps[gap_classes(times)]
        x = dropout(x, self.dropout) if self.training else x
        device = history.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=device)  # padding looks at itself: no empty softmax
        mask = (causal & (history != 0)[:, None, None, :]) | itself
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


def gap_classes(times: Tensor) -> Tensor:
    """(B, L) class of the time since the event before, by powers of two; 0 for the first event and unknown times."""
    before = torch.cat([torch.zeros_like(times[:, :1]), times[:, :-1]], 1)
    classes = torch.bucketize(times - before, torch.tensor(_GAPS_S, device=times.device), right=True)
    return classes * ((before > 0) & (times > 0))
