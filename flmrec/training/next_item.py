"""The next-item objective on one rank: FLM head and user tower over cached text vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmrec.evaluation.gain import CHOOSING_K, next_item_ndcg
from flmrec.model.encoder import bf16_is_fast
from flmrec.model.flm import Flm
from flmrec.model.losses import adversarial_loss
from flmrec.model.recipe import TowerRecipe
from flmrec.training.comm import Communicator
from flmrec.training.inputs import Validation
from flmrec.training.objectives import DRAWN, Step, step_loss

_EVALUATED_AT_ONCE = 512  # users
_LENGTH_GROUPS = 4  # parts of a batch, by length


class NextItem:
    """Steps over batches of windows; gradients are averaged over the ranks, so all ranks keep the same weights."""

    def __init__(
        self,
        flm: Flm,
        recipe: TowerRecipe,
        attributes: np.ndarray,
        counts: np.ndarray,
        comm: Communicator,
        *,
        seed: int,
    ) -> None:
        """attributes: (n + 1, A); counts: (n + 1,) events an item."""
        self.flm, self.recipe, self.comm = flm, recipe, comm
        self.attributes = torch.from_numpy(attributes).to(comm.device)
        chance = torch.from_numpy(np.maximum(counts, 1) / max(counts.sum(), 1)).float()
        self.log_chance = chance.log().to(comm.device)  # (n + 1,) of being the next item of an event
        self.texts = self.texts_of_steps = torch.empty(0)
        self.seed, self.bf16 = seed, bf16_is_fast(comm.device)
        own = [flm.residual.weight, flm.bias.weight]  # a row an item
        self.shared = [p for p in flm.parameters() if all(p is not table for table in own)]
        self.dense = self.shared if recipe.sparse else [*flm.parameters()]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(self.dense, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        ]
        if recipe.sparse:
            self.optimizers.append(torch.optim.SparseAdam(own, recipe.learning_rate))
        self.steps = 0

    def start_epoch(self, epoch: int) -> None:
        """Draws depend on seed, epoch and rank alone, so that a resumed run draws what an unbroken one does."""
        seeds = np.random.SeedSequence([self.seed, epoch, self.comm.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.rng = np.random.default_rng(seeds)

    def progress(self) -> dict[str, Any]:
        """All that a checkpoint needs; `resume` takes it."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"flm": self.flm.state_dict(), "optimizers": optimizers, "steps": self.steps}

    def resume(self, progress: dict[str, Any]) -> None:
        self.flm.load_state_dict(progress["flm"])
        for optimizer, state in zip(self.optimizers, progress["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.steps = progress["steps"]

    def set_texts(self, vectors: Tensor) -> None:
        """New raw text vectors (n + 1, H); the scale of the first ones is kept."""
        self.texts = self.flm.scaled_texts(vectors.to(self.comm.device))
        whole = not self.recipe.negatives  # every step looks all of them up; of a sample a second copy would be a waste
        self.texts_of_steps = self.texts.bfloat16() if self.bf16 and whole else self.texts

    def step(
        self, windows: Tensor, times: Tensor, weights: Tensor | None = None, ratings: Tensor | None = None
    ) -> float:
        """One update from (B, W) windows, oldest item first, 0 = padding, the times of the events, epoch seconds, and
        how much each event counts as something to come; None: all alike. ratings: of the events, in standard deviations
        from the mean, NaN where there is none; for the objective `rating`.

        Returns the loss of this rank, nats.
        """
        self.flm.train()
        weights = torch.ones(windows.shape) if weights is None else weights
        of_targets = [weights] if ratings is None else [weights, ratings]
        cropped = crop(windows, times, of_targets, self.recipe.length, self.rng)
        lengths = (cropped[0] != 0).sum(1)
        order = lengths.argsort(stable=True)
        history, targets, of_time, *said = (rows[order].to(self.comm.device) for rows in cropped)
        loss = self._loss(history, targets, of_time, said, lengths[order].tolist())
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.comm.average_gradients_(self.flm.parameters())
        if self.recipe.max_gradient_norm:
            torch.nn.utils.clip_grad_norm_(self.dense, self.recipe.max_gradient_norm)
        self.steps += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * min(1.0, self.steps / self.recipe.warmup_steps)
            optimizer.step()
        return float(loss.detach())

    def _loss(self, history: Tensor, targets: Tensor, times: Tensor, said: list[Tensor], lengths: list[int]) -> Tensor:
        """Of rows in ascending order of their `lengths`, events; said: weights of the targets, maybe their ratings."""
        present = targets != 0
        if not present.any():  # a batch of users with one event each: nothing to learn, but the ranks go on together
            nobody = history.new_zeros(1)  # gradients that are sparse where those of the other ranks are
            own = self.flm.residual(nobody).sum() + self.flm.item_bias(nobody).sum()
            return (torch.stack([p.sum() for p in self.shared]).sum() + own) * 0
        items, of_history, of_targets, negatives = self._looked_up(history, targets)
        factors = self.flm.item_factors(self.texts_of_steps[items], self.attributes[items], items)
        known = torch.zeros(len(history), len(items), dtype=torch.bool, device=history.device)
        known.scatter_(1, torch.cat([of_history, of_targets], 1), True)
        weights, *ratings = (of[present] for of in said)
        owners = present.nonzero()[:, 0]
        alike = bool((weights == weights[0]).all())
        parts = without_padding(lengths, _LENGTH_GROUPS if history.device.type == "cpu" else 1)

        def loss_of(factors: Tensor) -> Tensor:
            return step_loss(
                Step(
                    states=torch.cat(
                        [
                            self.flm.states(history[part], factors[of_history[part]], times[part])[present[part]]
                            for part in parts
                        ]
                    ),
                    factors=factors,
                    bias=self.flm.item_bias(items),
                    targets=of_targets[present],
                    negatives=negatives,
                    owners=owners,
                    known=known,
                    log_chance=self.log_chance[items],
                    n_items=len(self.texts) - 1,
                    whole=not self.recipe.negatives,
                    weights=None if alike else weights,
                    ratings=ratings[0] if ratings else None,
                    to_rating=self.flm.to_rating,
                    bf16=self.bf16,
                ),
                self.recipe,
            )

        if not self.recipe.adversarial:
            return loss_of(factors) + self._penalty(items)
        loss, worst = adversarial_loss(loss_of, factors, self.recipe.adversarial)
        return loss + worst + self._penalty(items)

    def _looked_up(self, history: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(items (m,) in ascending order, and as rows of them: history, targets, negatives (N,))."""
        n_items, device = len(self.texts) - 1, history.device
        n_drawn = self.recipe.negatives or (
            min(DRAWN, n_items) if {"gbce", "click"} & set(self.recipe.objectives) else 0
        )
        negatives = torch.from_numpy(self.rng.integers(1, n_items + 1, n_drawn)).to(device)
        if not self.recipe.negatives:
            return torch.arange(n_items + 1, device=device), history, targets, negatives
        items, place = torch.unique(torch.cat([history.flatten(), targets.flatten(), negatives]), return_inverse=True)
        of_history, of_targets, of_negatives = place.split([history.numel(), targets.numel(), len(negatives)])
        return items, of_history.view_as(history), of_targets.view_as(targets), of_negatives

    def _penalty(self, items: Tensor) -> Tensor | float:
        """L1 and L2 of the residuals of the step's items."""
        if not (self.recipe.l1 or self.recipe.l2):
            return 0.0
        residual = self.flm.residual(items)
        return self.recipe.l1 * residual.abs().sum(1).mean() + self.recipe.l2 * residual.square().sum(1).mean()

    @torch.no_grad()
    def ndcg(self, validation: Validation) -> float:
        """NDCG@100 of the users' next events, in the whole catalogue without what they have seen; the ranks share."""
        self.flm.eval()
        factors = self.flm.item_factors(self.texts, self.attributes)
        own = np.arange(self.comm.rank, len(validation.targets), self.comm.size)
        total = 0.0
        for start in range(0, len(own), _EVALUATED_AT_ONCE):
            users = own[start : start + _EVALUATED_AT_ONCE]
            rows = validation.histories.windows(users, self.recipe.length)
            history, times = (torch.from_numpy(row).to(self.comm.device) for row in rows)
            scores = self.flm.states(history, factors[history], times)[:, -1] @ factors.T + self.flm.item_bias()
            seen = [validation.histories.of_user(user) for user in users]
            total += next_item_ndcg(scores.cpu().numpy(), seen, validation.targets[users], CHOOSING_K).sum()
        return sum(self.comm.allgather(float(total))) / len(validation.targets)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.flm.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.flm.load_state_dict(state)


def without_padding(lengths: list[int], n_groups: int) -> list[tuple[slice, slice]]:
    """Rows and columns of up to `n_groups` parts of a batch, each as wide as its longest row; padding is on the left.

    lengths: of the rows, ascending. Histories differ so much that half of a batch would be padding.
    """
    bounds = np.linspace(0, len(lengths), min(n_groups, len(lengths)) + 1).astype(int)
    return [
        (slice(first, last), slice(-max(1, lengths[last - 1]), None))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def crop(
    windows: Tensor, times: Tensor, of_targets: Sequence[Tensor], length: int, rng: np.random.Generator
) -> tuple[Tensor, ...]:
    """(history, targets, times of the history, what of_targets says of the targets), each (B, <= length): a random
    stretch of each window, targets one event later.

    windows, times and each of of_targets: (B, W), padded with 0 on the left. A window with more events ends at a random
    place.
    """
    width = windows.shape[1]
    spare = ((windows != 0).sum(1) - (length + 1)).clamp(min=0).numpy()
    stops = width - torch.from_numpy(rng.integers(0, spare + 1))  # (B,)
    columns = stops[:, None] + torch.arange(-length - 1, 0)
    rows = [of.gather(1, columns.clamp(min=0)) * (columns >= 0) for of in (windows, times, *of_targets)]
    longest = int((rows[0] != 0).sum(1).max())
    stretch, of_time, *said = (of[:, -max(longest, 2) :] for of in rows)
    return stretch[:, :-1], stretch[:, 1:] * (stretch[:, :-1] != 0), of_time[:, :-1], *(of[:, 1:] for of in said)
