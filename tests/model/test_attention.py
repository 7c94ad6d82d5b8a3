import pytest
import torch
import torch.nn.functional as F

from flmrec.model import attention as module
from flmrec.model.attention import attention, dropout


def inputs() -> tuple[torch.Tensor, ...]:
    """Query, key, value (5, 2, 7, 4) and a causal mask in which some columns are padding."""
    torch.manual_seed(0)
    parts = [torch.randn(5, 2, 7, 4, requires_grad=True) for _ in range(3)]
    padding = torch.arange(7) < torch.tensor([0, 1, 3, 6, 2])[:, None]
    mask = (torch.ones(7, 7, dtype=torch.bool).tril() & ~padding[:, None, None, :]) | torch.eye(7, dtype=torch.bool)
    return *parts, mask


def plain(query, key, value, mask, keep) -> torch.Tensor:
    logits = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) * keep) @ value


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("at_once", [1, 250, 10_000])  # entries: one history, two, all of them
def test_attention_and_its_gradients_are_those_of_the_plain_formula(rate, at_once, monkeypatch):
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", at_once)
    *parts, mask = inputs()
    torch.manual_seed(3)
    keep = dropout(torch.ones(5, 2, 7, 7), rate)
    weights = torch.randn(5, 2, 7, 4)
    want = plain(*parts, mask, keep)
    torch.manual_seed(3)
    got = attention(*parts, mask, rate)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad((seen * weights).sum(), parts, retain_graph=True) for seen in (want, got, got)]
    for other in gradients[1:]:  # twice, as adversarial training asks
        torch.testing.assert_close(other, gradients[0])


def test_without_gradients_it_is_torchs_own():
    *parts, mask = inputs()
    with torch.no_grad():
        torch.testing.assert_close(attention(*parts, mask, 0.0), F.scaled_dot_product_attention(*parts, attn_mask=mask))


def test_dropout_drops_the_stated_share_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(301, 333), 0.4)
    assert abs((dropped == 0).float().mean() - 0.4) < 0.01
    assert abs(dropped.mean() - 1) < 0.01
    assert len(dropped.unique()) == 2
    by_column = (dropped == 0).float().mean(0)
    assert by_column.min() > 0.25 and by_column.max() < 0.55  # no place is dropped more often than others
    assert torch.equal(dropout(dropped, 0.0), dropped)
