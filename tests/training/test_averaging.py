"""The running mean of weights, step by step and in strides."""

import pytest
import torch

from flmrec.training.averaging import RunningMean

DECAY = 0.99


def followed(every: int, steps: int) -> float:
    """The mean of a weight that grows by 1 a step."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    mean = RunningMean(model, DECAY, every)
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(step)
        mean.update()
    mean.apply()
    return model.weight.item()


def test_it_lags_by_as_many_steps_as_its_decay_says() -> None:
    assert followed(every=1, steps=2000) == pytest.approx(2000 - DECAY / (1 - DECAY), abs=1)


@pytest.mark.parametrize("steps", [3, 20, 2000])
def test_strides_change_it_by_less_than_a_stride(steps: int) -> None:
    assert followed(every=20, steps=steps) == pytest.approx(followed(every=1, steps=steps), abs=20)


def test_a_training_shorter_than_a_stride_has_a_mean() -> None:
    assert followed(every=20, steps=5) == followed(every=1, steps=5)
