"""The next-item objective on one rank: FLM head and user tower over cached text vectors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmrec.evaluation.gain import next_item_ndcg
from flmrec.model.flm import Flm
from flmrec.model.losses import full_softmax_loss, sampled_softmax_loss
from flmrec.model.recipe import TowerRecipe
from flmrec.training.comm import Communicator
from flmrec.training.inputs import Validation

_EVALUATED_AT_ONCE = 512  # users


class NextItem:
    """Steps over batches of windows; gradients are averaged over the ranks, so all ranks keep the same weights."""

    def __init__(self, flm: Flm, recipe: TowerRecipe, attributes: np.ndarray, comm: Communicator, *, seed: int) -> None:
        self.flm, self.recipe, self.comm = flm, recipe, comm
        self.attributes = torch.from_numpy(attributes).to(comm.device)
        self.texts = torch.empty(0)
        self.seed = seed
        dense = [p for name, p in flm.named_parameters() if not (recipe.sparse and name == "residual.weight")]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense, recipe.learning_rate)]
        if recipe.sparse:
            self.optimizers.append(torch.optim.SparseAdam([flm.residual.weight], recipe.learning_rate))
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

    def step(self, windows: Tensor) -> float:
        """One update from (B, W) windows, oldest item first, 0 = padding. Returns the loss of this rank, nats."""
        self.flm.train()
        history, targets = crop(windows, self.recipe.length, self.rng)
        loss = self._loss(history.to(self.comm.device), targets.to(self.comm.device))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.comm.average_gradients_(self.flm.parameters())
        self.steps += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * min(1.0, self.steps / self.recipe.warmup_steps)
            optimizer.step()
        return float(loss.detach())

    def _loss(self, history: Tensor, targets: Tensor) -> Tensor:
        present = targets != 0
        if not present.any():  # a batch of users with one event each: nothing to learn, but the ranks go on together
            dense = [p.sum() for p in self.flm.parameters() if p is not self.flm.residual.weight]
            residual = self.flm.residual(history.new_zeros(1)).sum()  # sparse where those of the other ranks are
            return (torch.stack(dense).sum() + residual) * 0
        if not self.recipe.negatives:
            factors = self.flm.item_factors(self.texts, self.attributes)
            states = self.flm.states(history, factors[history])[present]
            return full_softmax_loss(states, factors, self.flm.bias, targets[present])
        return self._sampled_loss(history, targets, present)

    def _sampled_loss(self, history: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        """Negatives are drawn evenly from the catalogue; only the items of the step are looked up."""
        n_items = len(self.texts) - 1
        negatives = torch.from_numpy(self.rng.integers(1, n_items + 1, self.recipe.negatives)).to(history.device)
        items, place = torch.unique(torch.cat([history.flatten(), targets.flatten(), negatives]), return_inverse=True)
        factors = self.flm.item_factors(self.texts[items], self.attributes[items], items)
        of_history, of_targets, of_negatives = place.split([history.numel(), targets.numel(), len(negatives)])
        states = self.flm.states(history, factors[of_history.view_as(history)])[present]
        chosen = of_targets.view_as(targets)[present]
        even = torch.full((), -float(np.log(n_items / self.recipe.negatives)), device=history.device)
        bias = self.flm.bias[items]
        zero = torch.zeros(int(present.sum()), device=history.device)
        return sampled_softmax_loss(
            states, factors[chosen], bias[chosen], factors[of_negatives], bias[of_negatives],
            items[chosen], items[of_negatives], zero, even.expand(len(negatives)),
        )  # fmt: skip

    @torch.no_grad()
    def ndcg(self, validation: Validation) -> float:
        """NDCG@10 of the users' next events over the whole catalogue without what they have seen; the ranks share."""
        self.flm.eval()
        factors = self.flm.item_factors(self.texts, self.attributes)
        own = np.arange(self.comm.rank, len(validation.targets), self.comm.size)
        total = 0.0
        for start in range(0, len(own), _EVALUATED_AT_ONCE):
            users = own[start : start + _EVALUATED_AT_ONCE]
            history = newest(validation, users, self.recipe.length).to(self.comm.device)
            scores = self.flm.states(history, factors[history])[:, -1] @ factors.T + self.flm.bias
            seen = [validation.histories.of_user(user) for user in users]
            total += next_item_ndcg(scores.cpu().numpy(), seen, validation.targets[users]).sum()
        return sum(self.comm.allgather(float(total))) / len(validation.targets)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.flm.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.flm.load_state_dict(state)


def crop(windows: Tensor, length: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(history, targets), both (B, <= length): a random stretch of each window, targets one event later.

    windows: (B, W), padded with 0 on the left. A window with more events ends at a random place.
    """
    width = windows.shape[1]
    spare = ((windows != 0).sum(1) - (length + 1)).clamp(min=0).numpy()
    stops = width - torch.from_numpy(rng.integers(0, spare + 1))  # (B,)
    columns = stops[:, None] + torch.arange(-length - 1, 0)
    stretch = windows.gather(1, columns.clamp(min=0)) * (columns >= 0)
    longest = int((stretch != 0).sum(1).max())
    stretch = stretch[:, -max(longest, 2) :]
    return stretch[:, :-1], stretch[:, 1:] * (stretch[:, :-1] != 0)


def newest(validation: Validation, users: np.ndarray, length: int) -> Tensor:
    """(users, length): the newest events of each, padded with 0 on the left."""
    history = torch.zeros(len(users), length, dtype=torch.long)
    for row, user in enumerate(users):
        items = validation.histories.of_user(user)[-length:]
        history[row, length - len(items) :] = torch.from_numpy(items)
    return history
