"""An adapter for each domain beside the weights that all domains share. No Spark in here.

What is a domain's own (the style of its titles, its makers' names) can go into its adapter, so that the shared weights
keep what carries over (Houlsby et al., ICML 2019; Bapna & Firat, EMNLP 2019, for domains).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flmrec.model.encoder import TextEncoder


class DomainAdapters:
    """Low-rank adapters of `peft` on the linear layers of `encoder`, one for each of `n_domains`; all weights that were
    trained before are trained still."""

    def __init__(self, encoder: TextEncoder, n_domains: int, rank: int) -> None:
        from peft import LoraConfig, PeftModel, get_peft_model

        self.encoder = encoder
        self.names = [f"domain_{number}" for number in range(n_domains)]
        self.trained = [p for p in encoder.parameters() if p.requires_grad]
        model: Any = encoder.model
        self.shared = list(model.active_adapters) if isinstance(model, PeftModel) else []  # LoRA that all share
        for name in self.names:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
        encoder.model = model
        self.own = [p for key, p in model.named_parameters() if any(f".{name}." in key for name in self.names)]
        self.trained += self.own
        self._train()

    def _train(self) -> None:
        """peft freezes what is not active, and what is frozen before the backward pass gets no gradient."""
        for parameter in self.trained:
            parameter.requires_grad_(True)

    def encode(self, domains: np.ndarray, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, ...) of `encode`, which is called with the rows (m,) of one domain after the other. domains: (n,)."""
        model: Any = self.encoder.model
        parts, rows = [], []
        for domain in np.unique(domains):
            model.base_model.set_adapter([*self.shared, self.names[domain]])
            rows.append(torch.from_numpy(np.flatnonzero(domains == domain)))
            parts.append(encode(rows[-1]))
        self._train()
        together = torch.cat(parts)
        return together[torch.cat(rows).argsort().to(together.device)]

    def fill_gradients(self) -> None:
        """Zeros for domains that the step had no text of: ranks average the same parameters."""
        for parameter in self.own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def merge(self, domain: int | None) -> None:
        """The encoder becomes a plain one: the shared weights, with the adapter of `domain` where one is given."""
        names = self.shared + ([] if domain is None else [self.names[domain]])
        model: Any = self.encoder.model
        merged: nn.Module = model.merge_and_unload(adapter_names=names) if names else model.unload()
        self.encoder.model = merged
