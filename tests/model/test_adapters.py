"""Adapters of domains: who is trained by whose texts, and what is left when they are merged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flmrec.model.adapters import DomainAdapters
from flmrec.model.encoder import TextEncoder, Tuning, load_encoder
from tests.small import write_encoder

IDS, LENGTHS = torch.tensor([[2, 7, 9], [2, 8, 0], [2, 5, 6], [2, 9, 9]]), torch.tensor([3, 2, 3, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("adapters") / "tiny"))


def adapted(folder: str, tuning: Tuning = "full") -> tuple[TextEncoder, DomainAdapters]:
    """Two domains whose adapters differ; dropout is off."""
    torch.manual_seed(0)
    encoder = load_encoder(folder, "mean", tuning)
    adapters = DomainAdapters(encoder, 2, 4)
    with torch.no_grad():
        for parameter in adapters.own:
            parameter.add_(0.2 * torch.randn_like(parameter))
    encoder.eval()
    return encoder, adapters


def encoded(encoder: TextEncoder, adapters: DomainAdapters, domains: list[int]) -> Tensor:
    return adapters.encode(np.array(domains), lambda rows: encoder(IDS[rows], LENGTHS[rows]))


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_each_text_goes_through_its_own_domains_adapter(folder: str, tuning: Tuning) -> None:
    encoder, adapters = adapted(folder, tuning)
    mixed = encoded(encoder, adapters, [1, 0, 1, 0])
    apart = [encoded(encoder, adapters, [domain] * 4) for domain in (0, 1)]
    torch.testing.assert_close(mixed, torch.stack([apart[1][0], apart[0][1], apart[1][2], apart[0][3]]))
    assert not torch.allclose(apart[0], apart[1], atol=1e-3)


def test_a_step_trains_the_shared_weights_and_the_adapters_that_were_used(folder: str) -> None:
    encoder, adapters = adapted(folder)
    encoded(encoder, adapters, [0, 1, 0, 1]).square().sum().backward()
    named = dict(encoder.named_parameters())
    for part in ("domain_0", "domain_1", "base_layer"):
        assert any(part in name and p.grad is not None and p.grad.any() for name, p in named.items()), part
    encoder.zero_grad()
    encoded(encoder, adapters, [0, 0, 0, 0]).square().sum().backward()
    adapters.fill_gradients()
    unused = [p.grad for name, p in named.items() if "domain_1" in name]
    assert all(grad is not None and not grad.any() for grad in unused)  # all ranks average the same parameters


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_merged_is_a_plain_encoder(folder: str, tuning: Tuning, tmp_path: Path) -> None:
    encoder, adapters = adapted(folder, tuning)
    of_second = encoded(encoder, adapters, [1] * 4).detach()
    adapters.merge(1)
    encoder.save(tmp_path)
    torch.testing.assert_close(
        load_encoder(str(tmp_path), "mean").eval()(IDS, LENGTHS), of_second, atol=1e-5, rtol=1e-4
    )


def test_without_a_domain_of_its_own_the_shared_weights_are_left(folder: str) -> None:
    encoder, adapters = adapted(folder)
    adapters.merge(None)
    before = load_encoder(folder, "mean").state_dict()
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
