"""Self-supervised objectives in text space: an item is the vector of its text, a history the mean of its items'.

Windows hold the numbers of a pool of texts (from 1; 0: no event) whose vectors are (P + 1, H), row 0 zero. Scores are
inner products of unit queries with the texts over a temperature, candidates are the pool's texts of the window's own
source, and the other events of a window are no negatives of its targets. Losses are means in nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # label of a token that is not to be guessed


class MaskedLanguageHead(nn.Module):
    """Logits of tokens from hidden states; the output layer is the encoder's word embeddings (Devlin et al., 2019)."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        vocabulary, width = embeddings.weight.shape
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def loss(self, states: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """states (B, L, H), labels (B, L) token ids or IGNORED, embeddings (vocabulary, H)."""
        wanted = labels != IGNORED
        hidden = self.transform(states[wanted].float())
        return F.cross_entropy(hidden @ embeddings.T + self.bias, labels[wanted])


def centred(vectors: Tensor, groups: Tensor) -> Tensor:
    """(n, H) less the mean of each group's rows, as texts are ranked without labels (factorization/zero_shot.py)."""
    out = vectors
    for group in groups.unique():
        own = (groups == group)[:, None]
        out = torch.where(own, vectors - vectors[own[:, 0]].mean(0), out)
    return out


def pooled(vectors: Tensor, windows: Tensor, half_life: float) -> Tensor:
    """(B, H) sums of the events' vectors, halved every `half_life` places from the window's end."""
    length = windows.shape[1]
    weights = 0.5 ** (torch.arange(length - 1, -1, -1, device=vectors.device) / half_life)  # (W,)
    return torch.einsum("w,bwh->bh", weights, vectors[windows])


def next_item_loss(
    vectors: Tensor, windows: Tensor, sources: Tensor, own: Tensor, half_life: float, temperature: float
) -> Tensor:
    """Each event from the mean of those before it. windows (B, W), oldest first; sources (P + 1,), own (B,)."""
    length = windows.shape[1]
    places = torch.arange(length, device=vectors.device)
    age = places[:, None] - 1 - places[None, :]  # of column's event when row's happens
    weights = torch.where(age >= 0, 0.5 ** (age / half_life), 0.0)  # (W, W)
    queries = torch.einsum("tw,bwh->bth", weights, vectors[windows])
    known = (windows != 0).cumsum(1) > (windows != 0).long()  # an event lies before
    rows, columns = torch.nonzero((windows != 0) & known, as_tuple=True)
    return _item_loss(vectors, queries[rows, columns], windows[rows, columns], windows, rows, sources, own, temperature)


def masked_item_loss(
    vectors: Tensor, windows: Tensor, hidden: Tensor, sources: Tensor, own: Tensor, temperature: float
) -> Tensor:
    """The hidden events of a window from the mean of the others. hidden (B, W) bool."""
    hidden = hidden & (windows != 0)
    context = (vectors[windows] * (~hidden)[..., None]).sum(1)  # (B, H)
    rows, columns = torch.nonzero(hidden & ((windows != 0) & ~hidden).any(1, keepdim=True), as_tuple=True)
    return _item_loss(vectors, context[rows], windows[rows, columns], windows, rows, sources, own, temperature)


def contrastive_loss(left: Tensor, right: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways: row i of left (n, H) belongs to row i of right; rows of other groups (n,) are no negatives."""
    logits = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / temperature
    logits = logits.masked_fill(groups[:, None] != groups[None, :], float("-inf"))
    labels = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def moment_loss(vectors: Tensor, groups: Tensor) -> Tensor:
    """Squared distance of the sources' means and covariances (Sun & Saenko, "Deep CORAL", 2016); 0 with one source.

    vectors (n, H); sources with fewer than two rows are left out.
    """
    parts = [vectors[groups == group] for group in groups.unique()]
    parts = [part for part in parts if len(part) > 1]
    loss = vectors.sum() * 0
    for i, one in enumerate(parts):
        for other in parts[:i]:
            loss = loss + ((one.mean(0) - other.mean(0)) ** 2).sum()
            loss = loss + ((torch.cov(one.T) - torch.cov(other.T)) ** 2).sum()
    return loss


def _item_loss(
    vectors: Tensor, queries: Tensor, targets: Tensor, windows: Tensor, rows: Tensor, sources: Tensor, own: Tensor,
    temperature: float,
) -> Tensor:  # fmt: skip
    """Softmax over the pool. queries (N, H) of the windows `rows` (N,), targets (N,)."""
    if not len(rows):
        return vectors.sum() * 0  # the same kind of gradient as any other batch
    logits = F.normalize(queries, dim=1) @ vectors.T / temperature  # (N, P + 1)
    barred = sources[None, :] != own[rows][:, None]
    barred = barred.scatter(1, windows[rows], True)  # the window's events, and 0
    barred[:, 0] = True
    barred[torch.arange(len(rows), device=rows.device), targets] = False
    return F.cross_entropy(logits.masked_fill(barred, float("-inf")), targets)
