"""The FLM: item factors from text, attributes and a learned residual; user factors from the history of items.

    i = W f(x_i) + T a_i + e_i        u = g(h_u)        score = u . i / temperature + b_i

The residual e_i is dropped at random in training, so that text and attributes alone must work as well: a cold item is
W f(x_i) + T a_i. The bias is folded into the published vectors (a constant 1 on the user's side). With
`recipe.similarity` cosine, i and u have length 1 and there is no bias.
"""

import torch
from torch import Tensor, nn

from flmrec.model.pooling import PoolingTower
from flmrec.model.recipe import RATING, TowerRecipe
from flmrec.model.tower import HistoryTower


class Flm(nn.Module):
    """n_items items numbered from 1 (0 is padding); text vectors of `text_width`, attributes of `attribute_width`."""

    text_mean: Tensor
    text_scale: Tensor

    def __init__(self, n_items: int, text_width: int, attribute_width: int, recipe: TowerRecipe) -> None:
        super().__init__()
        self.recipe, self.shape = recipe, (n_items, text_width, attribute_width)
        self.residual = nn.Embedding(n_items + 1, recipe.dim, padding_idx=0, sparse=recipe.sparse)
        nn.init.normal_(self.residual.weight, std=0.02)
        with torch.no_grad():
            self.residual.weight[0] = 0
        self.text = _small_linear(text_width, recipe.dim)
        self.attributes = _small_linear(attribute_width, recipe.dim) if attribute_width else None
        self.bias = nn.Embedding(n_items + 1, 1, sparse=recipe.sparse)
        nn.init.zeros_(self.bias.weight)
        self.tower: nn.Module = (
            PoolingTower(recipe.dim, recipe.dropout) if recipe.tower == "pooling" else HistoryTower(recipe)
        )
        # a rating, in standard deviations from the mean, is a score times the first number plus the second
        self.to_rating = nn.Parameter(torch.tensor([1.0, 0.0])) if RATING in recipe.objectives else None
        self.register_buffer("text_mean", torch.zeros(text_width))
        self.register_buffer("text_scale", torch.zeros(()))  # 0: not set yet

    def scaled_texts(self, vectors: Tensor) -> Tensor:
        """(n, H) raw text vectors centred and scaled to a root mean square length of recipe.text_length; zero rows (no
        text) stay zero.

        The first vectors that are given, those of all items, set centre and scale for good.
        """
        has_text = vectors.any(1, keepdim=True)
        unit = nn.functional.normalize(vectors, dim=1)
        if not self.text_scale and has_text.any():
            self.text_mean.copy_(unit[has_text[:, 0]].mean(0))
            length = (unit[has_text[:, 0]] - self.text_mean).pow(2).sum(1).mean().sqrt()
            self.text_scale.copy_(self.recipe.text_length / length.clamp(min=1e-6))
        return (unit - self.text_mean) * self.text_scale * has_text

    def item_factors(self, texts: Tensor, attributes: Tensor, items: Tensor | None = None) -> Tensor:
        """(n, D). texts: (n, H) centred; attributes: (n, A); items: (n,) their numbers, None: all, 0 included."""
        residual = self.residual.weight if items is None else self.residual(items)
        dropped = self.recipe.residual_dropout
        if dropped == 1:
            residual = residual * 0
        elif self.training and dropped:
            residual = residual * (torch.rand(len(residual), 1, device=residual.device) >= dropped)
        return self._of_likeness(residual + self.content_factors(texts, attributes))

    def item_bias(self, items: Tensor | None = None) -> Tensor:
        """(n,) of the items (n,), None: of all, 0 included."""
        found: Tensor = self.bias.weight if items is None else self.bias(items)
        return found[:, 0] * 0 if self.recipe.similarity == "cosine" else found[:, 0]

    def content_factors(self, texts: Tensor, attributes: Tensor) -> Tensor:
        """W f(x) + T a: what a cold item has. (n, D) float32; texts may be bfloat16, whose product is faster."""
        factors = nn.functional.linear(texts, self.text.weight.to(texts.dtype)).float()
        return factors if self.attributes is None else factors + self.attributes(attributes)

    def states(self, history: Tensor, factors: Tensor, times: Tensor) -> Tensor:
        """g: (B, L, D), the user after each event; over the temperature, so that the inner product is the score.

        history: (B, L) item numbers, 0 on the left is padding; factors: (B, L, D) of these items; times: (B, L) epoch
        seconds of the events, 0: not known.
        """
        return self._of_likeness(self.tower(factors, history, times)) / self.recipe.temperature

    def _of_likeness(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.recipe.similarity == "cosine" else vectors


def _small_linear(width: int, dim: int) -> nn.Linear:
    layer = nn.Linear(width, dim, bias=False)
    nn.init.normal_(layer.weight, std=0.02 / max(width, 1) ** 0.5)
    return layer
