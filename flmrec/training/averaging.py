"""The running mean of a model's weights (Polyak & Juditsky, 1992), which ranks better than the last step's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class RunningMean:
    """Exponential mean of the parameters of `model`; early steps count less, so that the start is forgotten.

    every: of so many steps one counts, for all of them, since a step of a large catalogue touches few of the weights
    that the mean is over.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1) -> None:
        self.decay, self.every, self.updates = decay, every, 0
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.means = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        started = self.updates > self.every  # a short training has a mean as well
        if started and self.updates % self.every:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) ** (self.every if started else 1)
        torch._foreach_lerp_(self.means, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """The model takes over the means."""
        torch._foreach_copy_(self.parameters, self.means)

    def progress(self) -> dict[str, Any]:
        return {"updates": self.updates, "means": self.means}

    def resume(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        torch._foreach_copy_(self.means, state["means"])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the means inside the block, and its own weights again after it."""
        own = [p.detach().clone() for p in self.parameters]
        self.apply()
        yield
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, own)
