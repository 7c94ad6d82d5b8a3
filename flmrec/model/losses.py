"""Training objectives. Losses are means over positives, in nats; `weights` (P,) say how much each counts, None alike.

Letters: P positives (a user's state and its next event), N negatives, D factors, n items in the catalogue. A score is
z = u . i + b_i; a masked negative has score -inf and takes no part.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MASKED = float("-inf")
_FAR = -1e4  # as good as masked, and a logarithm that can be multiplied by 0


def full_softmax_loss(
    states: Tensor,
    factors: Tensor,
    bias: Tensor,
    targets: Tensor,
    smoothing: float = 0.0,
    *,
    weights: Tensor | None = None,
    bf16: bool = False,
) -> Tensor:
    """Cross-entropy of the next item over the whole catalogue.

    states: (P, D); factors: (n + 1, D), row 0 is padding and no candidate; bias: (n + 1,); targets: (P,) from 1.
    smoothing: 0..1, share of the target's probability that is spread evenly over the catalogue (Szegedy et al., CVPR
    2016). bf16: the products, the larger part of the work, in bfloat16; the softmax is float32 all the same.
    """
    shares = None if weights is None else weights * (len(weights) / weights.sum())
    loss: Tensor = _FullSoftmax.apply(states, factors[1:], bias[1:], targets - 1, shares, smoothing, bf16)
    return loss


def squared_error(predicted: Tensor, ratings: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over the positives (P,) that have a rating; 0 where none has. ratings: NaN is none."""
    counts = ratings.isfinite().to(predicted.dtype) * (1.0 if weights is None else weights)
    error = (predicted - ratings.nan_to_num(0.0)).square()
    return (counts * error).sum() / counts.sum().clamp(min=1e-9)


class _FullSoftmax(torch.autograd.Function):
    """The loss with its gradients in one pass over the positives, a block of them at a time.

    A block's scores stay in the processor's cache: on one core three times as fast as product, softmax and their
    backward passes one after the other where 6,400 positives meet 3,416 items, and P x n scores are never held.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, factors: Tensor, bias: Tensor, targets: Tensor, shares: Tensor | None,
        smoothing: float, bf16: bool,
    ) -> Tensor:  # fmt: skip
        """shares: (P,) of mean 1."""
        kind = torch.bfloat16 if bf16 else states.dtype
        block = _ON_CPU if states.device.type == "cpu" else _ON_GPU
        x, items = states.to(kind), factors.to(kind)
        of_states, of_factors, of_bias = torch.empty_like(states), torch.zeros_like(factors), torch.zeros_like(bias)
        loss, n_items = states.new_zeros(()), len(factors)
        for first in range(0, len(states), block):
            own, wanted = slice(first, first + block), targets[first : first + block, None]
            scores = (x[own] @ items.T).to(states.dtype).add_(bias)
            highest = scores.amax(1, keepdim=True)
            aimed = (1 - smoothing) * scores.gather(1, wanted)[:, 0] + smoothing * scores.sum(1) / n_items
            total = scores.sub_(highest).exp_().sum(1, keepdim=True)
            lost = (total.log() + highest)[:, 0] - aimed
            slope = scores.div_(total)  # softmax less the target's distribution
            if smoothing:
                slope -= smoothing / n_items
            slope.scatter_add_(1, wanted, slope.new_full(wanted.shape, smoothing - 1))
            if shares is not None:
                lost, slope = lost * shares[own], slope.mul_(shares[own, None])
            loss += lost.sum()
            of_bias += slope.sum(0)
            rounded = slope.to(kind)
            of_states[own] = (rounded @ items).to(states.dtype)
            of_factors += rounded.T @ x[own]
        ctx.save_for_backward(of_states, of_factors, of_bias)
        return loss / len(states)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        scale = slope / len(ctx.saved_tensors[0])
        return (*(gradient * scale for gradient in ctx.saved_tensors), None, None, None, None)


_ON_CPU, _ON_GPU = 128, 16_384  # positives a block


def sampled_softmax_loss(
    states: Tensor, target_factors: Tensor, target_bias: Tensor, negative_factors: Tensor, negative_bias: Tensor,
    targets: Tensor, negatives: Tensor, target_log_q: Tensor, negative_log_q: Tensor, smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Softmax over the target and shared negatives, with logQ correction (Yi et al., RecSys 2019).

    states, target_factors: (P, D); negative_factors: (N, D); *_bias, *_log_q: (P,) and (N,), log_q the log of how often
    the item is expected among the candidates; targets: (P,), negatives: (N,) item numbers. A negative that is the
    target is masked.
    """
    positive = (states * target_factors).sum(1) + target_bias - target_log_q  # (P,)
    negative = states @ negative_factors.T + negative_bias - negative_log_q  # (P, N)
    negative = negative.masked_fill(targets[:, None] == negatives[None, :], _MASKED)
    return candidate_softmax_loss(positive, negative, smoothing, weights)


def candidate_softmax_loss(
    positive: Tensor, negative: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the target among itself and its negatives. positive: (P,); negative: (P, N), -inf is masked.

    smoothing: 0..1, share of the target's probability that is spread evenly over the candidates.
    """
    logits = torch.cat([positive[:, None], negative], 1)  # (P, 1 + N)
    normaliser = torch.logsumexp(logits, 1)
    if not smoothing:
        return _mean(normaliser - positive, weights)
    present = torch.isfinite(logits)
    average = logits.masked_fill(~present, 0).sum(1) / present.sum(1)
    return _mean(normaliser - (1 - smoothing) * positive - smoothing * average, weights)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def in_batch_softmax_loss(
    states: Tensor, factors: Tensor, bias: Tensor, targets: Tensor, log_q: Tensor, known: Tensor | None = None,
    smoothing: float = 0.0, weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Softmax over the other positives of the batch, logQ-corrected (Yi et al., RecSys 2019), false negatives masked.

    states, factors: (P, D), the users and their targets; bias, targets, log_q: (P,), log_q the log probability that
    the item is the target of an event; known: (P, P) bool, True where the row's user is known to like the column's
    item. The own target in other columns is masked as well.
    """
    corrected = states @ factors.T + bias - log_q  # (P, P); the diagonal is positive
    positive = corrected.diagonal()
    false = targets[:, None] == targets[None, :]
    negative = corrected.masked_fill(false if known is None else false | known, _MASKED)
    return candidate_softmax_loss(positive, negative, smoothing, weights)


def gbce_loss(
    positive: Tensor, negative: Tensor, n_items: int, calibration: float = 0.75, weights: Tensor | None = None
) -> Tensor:
    """Generalised binary cross-entropy, which undoes the overconfidence that sampling gives (gSASRec; Petrov &
    Macdonald, RecSys 2023). Mean over the 1 + N candidates of each positive.

    positive: (P,) scores; negative: (P, N) of N negatives drawn evenly from the catalogue of n_items, -inf is masked.
    calibration: t of the paper, 0 (plain binary cross-entropy) to 1 (scores as a full softmax would give them).
    """
    rate = negative.shape[1] / max(n_items - 1, 1)  # of sampling
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    losses = -beta * F.logsigmoid(positive) - F.logsigmoid(-negative).sum(1)
    return _mean(losses / (1 + torch.isfinite(negative).sum(1)), weights)


def hardest(negative: Tensor, n: int) -> Tensor:
    """(P, n) the highest of each row of (P, N) scores: hard negatives, mined by the model's own ranking.

    Known positives have to be masked (-inf) before; where fewer than n items are left, -inf fills the row.
    """
    return torch.topk(negative, min(n, negative.shape[1]), dim=1).values


def adversarial_loss(loss_of: Callable[[Tensor], Tensor], factors: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(loss, loss where it hurts most): the second with each row of `factors` moved by `epsilon` along the gradient.

    Adversarial training of embeddings (Miyato et al., ICLR 2017; for rankings He et al., SIGIR 2018). factors: (m, D)
    that `loss_of` makes the loss of; rows are moved by epsilon times the row's root mean square.
    """
    loss = loss_of(factors)
    (slope,) = torch.autograd.grad(loss, factors, retain_graph=True)
    size = epsilon * factors.detach().square().mean(1, keepdim=True).sqrt()
    return loss, loss_of(factors + size * F.normalize(slope, dim=1))


def words_loss(vectors: Tensor, shared: Tensor, temperature: float, groups: Tensor | None = None) -> Tensor:
    """KL divergence of the vectors' likeness from that of the words: who shares rare words with whom.

    vectors: (n, H) unit rows, the mean taken off or not; shared: (n, n) cosines of the texts' words weighted by rarity
    (factorization/words.py). Both become softmaxes over the other rows, cosines over `temperature`. groups: (n,), rows
    of different groups are not compared; a row with fewer than two others has no part. 0 where no row has.
    """
    barred = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    if groups is not None:
        barred = barred | (groups[:, None] != groups[None, :])
    asked = (~barred).sum(1) > 1
    barred, unit = barred[asked], F.normalize(vectors.float(), dim=1)
    target = F.log_softmax((shared[asked] / temperature).masked_fill(barred, _FAR), 1)
    found = F.log_softmax((unit[asked] @ unit.T / temperature).masked_fill(barred, _FAR), 1)
    return F.kl_div(found, target, log_target=True, reduction="sum") / asked.sum().clamp(min=1)


def alignment_loss(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the text's scores from the teacher's, over the items of the batch (Hinton et al., 2015).

    scores, teacher: (users, items) in the teacher's unit; temperature > 0, in the same unit.
    """
    target = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(F.log_softmax(scores / temperature, 1), target, log_target=True, reduction="batchmean")
