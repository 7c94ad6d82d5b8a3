"""The user tower: a causal transformer over the factors of a user's history.

After Kang & McAuley, "Self-attentive sequential recommendation" (ICDM 2018), with pre-normalisation and GELU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmrec.model.attention import attention, dropout


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each on normalised input, with a residual."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, dim), nn.Linear(dim, dim)

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
    """g(h_u): states (B, L, D) after each event, from item factors (B, L, D) and history (B, L), 0 = padding."""

    def __init__(self, dim: int, layers: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.scale = dropout, dim**0.5
        self.positions = nn.Parameter(torch.randn(length, dim) * 0.02)  # counted from the newest event
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, factors: Tensor, history: Tensor) -> Tensor:
        length = history.shape[1]
        x = factors * self.scale + self.positions[-length:]
        x = dropout(x, self.dropout) if self.training else x
        device = history.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=device)  # padding looks at itself: no empty softmax
        mask = (causal & (history != 0)[:, None, None, :]) | itself
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
