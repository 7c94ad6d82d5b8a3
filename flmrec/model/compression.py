"""Smaller encoders: fewer layers, int8 weights, prefixes of vectors."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmrec.errors import UsageError
from flmrec.model.encoder import TextEncoder


def shorten(encoder: TextEncoder, n_layers: int) -> None:
    """Keeps `n_layers` of the encoder's layers, evenly spaced, the last among them (Sanh et al., "DistilBERT", 2019).

    Raises UsageError where the encoder has no more than these.
    """
    config = encoder.model.config
    n_before = int(config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    stacks = [m for m in encoder.model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_before]
    if not 0 < n_layers < n_before or len(stacks) != 1:
        raise UsageError(f"pretrain.layers must be from 1 to {n_before - 1} for this encoder, got {n_layers}.")
    step = n_before / n_layers
    kept = [stacks[0][round(step * (i + 1)) - 1] for i in range(n_layers)]
    del stacks[0][n_layers:]
    for i, layer in enumerate(kept):
        stacks[0][i] = layer
    config.num_hidden_layers = n_layers  # type: ignore[union-attr]


def quantized(encoder: TextEncoder) -> TextEncoder:
    """The encoder with int8 weights of its linear layers, one scale a row, for CPUs (torch's dynamic quantization)."""
    kinds = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchao is to take over; torch 2.13 has it still
        warnings.simplefilter("ignore", UserWarning)
        smaller: TextEncoder = torch.ao.quantization.quantize_dynamic(encoder.eval(), kinds)
    return smaller


def distillation_loss(student: Tensor, teacher: Tensor, prefixes: list[int]) -> Tensor:
    """1 - cosine to the teacher's vectors, and for each prefix of the vector the squared error of its cosines between
    the texts of the batch (Kusupati et al., "Matryoshka representation learning", 2022). student, teacher: (n, H)."""
    loss = (1 - F.cosine_similarity(student, teacher)).mean()
    wanted = _cosines(teacher)
    for length in prefixes:
        loss = loss + ((_cosines(student[:, :length]) - wanted) ** 2).mean()
    return loss


def _cosines(vectors: Tensor) -> Tensor:
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T
