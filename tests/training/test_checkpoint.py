"""A crash leaves the previous checkpoint whole, a resumed run goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch

from flmrec.errors import TrainingError
from flmrec.training.checkpoint import Checkpoint, load, publish, restore, save, working_folder
from flmrec.training.comm import SingleCommunicator


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, epochs: range) -> None:
    for epoch in epochs:
        torch.manual_seed(epoch)
        loss = model(torch.randn(8, 3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(
        [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01, "betas": (0.8, 0.9)}]
    )


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken, optimizer = make()
    train(unbroken, optimizer, range(6))
    broken, optimizer = make()
    train(broken, optimizer, range(4))
    save(tmp_path, Checkpoint(4, {"model": broken.state_dict(), "optimizer": optimizer.state_dict(), "best": 0.25}))

    resumed, optimizer = make()
    found = restore(SingleCommunicator(), tmp_path)
    assert found is not None and found.epoch == 4 and found.state["best"] == 0.25
    resumed.load_state_dict(found.state["model"])
    optimizer.load_state_dict(found.state["optimizer"])
    train(resumed, optimizer, range(4, 6))
    for ours, theirs in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_tied_weights_are_written(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save(tmp_path, Checkpoint(1, {"a": weight, 7: [weight.t(), None]}))
    found = load(tmp_path)
    assert found is not None and torch.equal(found.state["a"], found.state[7][0].t())


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, Checkpoint(1, {"w": torch.ones(3)}))
    monkeypatch.setattr("flmrec.training.checkpoint.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save(tmp_path, Checkpoint(2, {"w": torch.zeros(3)}))
    found = load(tmp_path)
    assert found is not None and found.epoch == 1 and found.state["w"].sum() == 3


def test_a_checkpoint_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    save(tmp_path, Checkpoint(3, {"w": torch.ones(30)}))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TrainingError, match=r"checkpoint .* cannot be read .*: remove .* to train this version"):
        load(tmp_path)


def test_a_version_is_published_whole_and_without_its_checkpoint(tmp_path: Path) -> None:
    working, final = working_folder(tmp_path, "v1"), tmp_path / "v1"
    assert load(working) is None
    save(working, Checkpoint(1, {"w": torch.ones(1)}))
    (working / "config.yaml").write_text("a: 1\n")
    assert not final.exists()
    publish(working, final)
    assert [path.name for path in final.iterdir()] == ["config.yaml"]
    assert not working.exists()
