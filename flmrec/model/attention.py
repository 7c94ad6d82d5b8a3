"""Attention over histories in training, and the dropout of the tower: written for processors without a GPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_ENTRIES_AT_ONCE = 160_000  # of the attention weights: they stay in the processor's cache


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float) -> Tensor:
    """(B, heads, L, d): softmax(query key' / sqrt d) value, where a share `rate` of the weights is dropped.

    query, key, value: (B, heads, L, d) float32; mask: (B, 1, L, L), True where the row may look at the column, at least
    once in each row.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    attended: Tensor = _Attention.apply(query, key, value, mask, rate)
    return attended


def dropout(x: Tensor, rate: float) -> Tensor:
    """As F.dropout in training; on the CPU with one random byte an entry, which is many times faster than bernoulli.

    The rate is rounded to 1 / 256 there. Draws come from torch's default generator.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    if not round(256 * rate):
        return x
    keep, scale = _kept(x.shape, rate)
    return x * keep.to(x.dtype).mul_(scale)


class _Attention(torch.autograd.Function):
    """Forward and backward pass a few histories at a time; PyTorch's own operators make a dozen passes over all of
    the (B, heads, L, L) weights, which for 64 histories of 200 events lie in memory, not in the cache."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rate: float) -> Tensor:
        query, key, value = query.contiguous() / query.shape[-1] ** 0.5, key.contiguous(), value.contiguous()
        seen = torch.empty_like(query)
        weights = query.new_empty(*query.shape[:3], key.shape[2])
        keep, scale = _kept(weights.shape, rate)
        hidden = ~mask
        for own in _blocks(weights):
            block = weights[own]
            torch.matmul(query[own], key[own].transpose(-1, -2), out=block)
            torch.softmax(block.masked_fill_(hidden[own], float("-inf")), -1, out=block)
            torch.matmul((block * keep[own]).mul_(scale), value[own], out=seen[own])
        ctx.save_for_backward(query, key, value, weights, keep)
        ctx.scale = scale
        return seen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        query, key, value, weights, keep = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        slope = slope.contiguous()
        for own in _blocks(weights):
            kept = (weights[own] * keep[own]).mul_(ctx.scale)
            torch.matmul(kept.transpose(-1, -2), slope[own], out=of_value[own])
            of_logits = (slope[own] @ value[own].transpose(-1, -2)).mul_(kept)
            of_logits -= weights[own] * of_logits.sum(-1, keepdim=True)
            torch.matmul(of_logits, key[own], out=of_query[own])
            torch.matmul(of_logits.transpose(-1, -2), query[own], out=of_key[own])
        return of_query.div_(query.shape[-1] ** 0.5), of_key, of_value, None, None


def _blocks(weights: Tensor) -> list[slice]:
    at_once = max(1, _ENTRIES_AT_ONCE // weights[0].numel())
    return [slice(first, first + at_once) for first in range(0, len(weights), at_once)]


def _kept(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """(bool of that shape, what the kept entries are multiplied with); the rate is rounded to 1 / 256."""
    dropped = round(256 * rate)
    n_entries = shape.numel()
    words = torch.empty(-(-n_entries // 8), dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:n_entries].view(shape) >= dropped, 256 / (256 - dropped)
