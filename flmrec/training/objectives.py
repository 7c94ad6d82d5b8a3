"""What a step of next-item training minimises: one or several objectives, each with its weight.

softmax    cross-entropy over the catalogue, or with logQ correction over sampled negatives (recipe.negatives > 0)
gbce       generalised binary cross-entropy against negatives
click      binary cross-entropy of P(y = 1) = sigmoid(u . i + b) against negatives
in_batch   softmax over the other users' next items, logQ-corrected, false negatives masked
rating     squared error of the events' ratings, which are a learned line through u . i + b

Negatives are drawn evenly; no item of the user's window is one. With recipe.hard_negatives they are the best-scored of
them: of the whole catalogue where the softmax is over the whole, else of the draw.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flmrec.model import losses
from flmrec.model.recipe import RATING, TowerRecipe

DRAWN = 256  # negatives a step of gbce and click where the softmax needs none
_IN_BATCH = 2_048  # positives that face each other, at most; P x P scores are made


@dataclass(frozen=True)
class Step:
    """P positives of B windows, and the m items that the step has looked up."""

    states: Tensor  # (P, D) users before the event
    factors: Tensor  # (m, D)
    bias: Tensor  # (m,)
    targets: Tensor  # (P,) rows of factors
    negatives: Tensor  # (N,) rows of factors, drawn evenly from the catalogue with repetition
    owners: Tensor  # (P,) the window of each positive
    known: Tensor  # (B, m) bool: the item is in the window
    log_chance: Tensor  # (m,) log of the item's share in the events
    n_items: int  # of the catalogue
    whole: bool  # factors are those of the catalogue: row 0 is padding, row i is item i
    weights: Tensor | None = None  # (P,) how much each positive counts; None: all alike
    ratings: Tensor | None = None  # (P,) in standard deviations from the mean, NaN where there is none
    to_rating: Tensor | None = None  # (2,) slope and intercept of ratings over scores
    bf16: bool = False  # products over the whole catalogue in bfloat16


def step_loss(step: Step, recipe: TowerRecipe) -> Tensor:
    """The weighted sum of recipe.objectives."""
    parts = [weight * _OBJECTIVES[name](step, recipe) for name, weight in recipe.objectives.items()]
    return torch.stack(parts).sum()


def _softmax(step: Step, recipe: TowerRecipe) -> Tensor:
    smoothing = recipe.label_smoothing
    if step.whole:
        return losses.full_softmax_loss(
            step.states, step.factors, step.bias, step.targets, smoothing, weights=step.weights, bf16=step.bf16
        )
    rows, log_q = step.negatives, step.bias.new_full((), len(step.negatives) / step.n_items).log()
    return losses.sampled_softmax_loss(
        step.states, step.factors[step.targets], step.bias[step.targets], step.factors[rows], step.bias[rows],
        step.targets, rows, torch.zeros_like(step.targets, dtype=step.bias.dtype), log_q.expand(len(rows)), smoothing,
        step.weights,
    )  # fmt: skip


def _gbce(step: Step, recipe: TowerRecipe) -> Tensor:
    return losses.gbce_loss(_positive(step), _negative(step, recipe), step.n_items, recipe.calibration, step.weights)


def _click(step: Step, recipe: TowerRecipe) -> Tensor:
    return losses.gbce_loss(_positive(step), _negative(step, recipe), step.n_items, 0.0, step.weights)


def _in_batch(step: Step, recipe: TowerRecipe) -> Tensor:
    chosen = torch.arange(len(step.targets), device=step.targets.device)
    if len(chosen) > _IN_BATCH:
        chosen = torch.randperm(len(chosen), device=chosen.device)[:_IN_BATCH]
    targets, owners = step.targets[chosen], step.owners[chosen]
    known = step.known[:, targets][owners]  # (P, P)
    return losses.in_batch_softmax_loss(
        step.states[chosen], step.factors[targets], step.bias[targets], targets, step.log_chance[targets], known,
        recipe.label_smoothing, None if step.weights is None else step.weights[chosen],
    )  # fmt: skip


def _rating(step: Step, recipe: TowerRecipe) -> Tensor:
    assert step.ratings is not None and step.to_rating is not None  # the model and the reader have them by the recipe
    return losses.squared_error(_positive(step) * step.to_rating[0] + step.to_rating[1], step.ratings, step.weights)


def _positive(step: Step) -> Tensor:
    return (step.states * step.factors[step.targets]).sum(1) + step.bias[step.targets]


def _negative(step: Step, recipe: TowerRecipe) -> Tensor:
    """(P, N) scores, -inf where the user knows the item; with hard negatives the best of each row."""
    everything = step.whole and recipe.hard_negatives
    rows = torch.arange(1, len(step.factors), device=step.targets.device) if everything else step.negatives
    scores = step.states @ step.factors[rows].T + step.bias[rows]
    scores = scores.masked_fill(step.known[:, rows][step.owners], float("-inf"))
    return losses.hardest(scores, recipe.hard_negatives) if recipe.hard_negatives else scores


_OBJECTIVES = {"softmax": _softmax, "gbce": _gbce, "click": _click, "in_batch": _in_batch, RATING: _rating}
