"""Training objectives. Losses are means in nats."""

import torch
import torch.nn.functional as F
from torch import Tensor


def full_softmax_loss(states: Tensor, factors: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the next item over the whole catalogue.

    states: (P, D); factors: (n + 1, D), row 0 is padding and no candidate; bias: (n + 1,); targets: (P,) from 1.
    """
    logits = states @ factors.T + bias  # (P, n + 1)
    return F.cross_entropy(logits[:, 1:], targets - 1)


def sampled_softmax_loss(
    states: Tensor, target_factors: Tensor, target_bias: Tensor, negative_factors: Tensor, negative_bias: Tensor,
    targets: Tensor, negatives: Tensor, target_log_q: Tensor, negative_log_q: Tensor,
) -> Tensor:  # fmt: skip
    """Softmax over the target and shared negatives, with logQ correction (Yi et al., RecSys 2019).

    states, target_factors: (P, D); negative_factors: (N, D); *_bias, *_log_q: (P,) and (N,), log_q the log probability
    with which the item is drawn; targets: (P,), negatives: (N,) item numbers. A negative that is the target is masked.
    """
    positive = (states * target_factors).sum(1) + target_bias - target_log_q  # (P,)
    negative = states @ negative_factors.T + negative_bias - negative_log_q  # (P, N)
    negative = negative.masked_fill(targets[:, None] == negatives[None, :], float("-inf"))
    return (torch.logsumexp(torch.cat([positive[:, None], negative], 1), 1) - positive).mean()


def alignment_loss(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the text's scores from the teacher's, over the items of the batch (Hinton et al., 2015).

    scores, teacher: (users, items) in the teacher's unit; temperature > 0, in the same unit.
    """
    target = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(F.log_softmax(scores / temperature, 1), target, log_target=True, reduction="batchmean")
