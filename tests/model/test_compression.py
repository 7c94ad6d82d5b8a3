"""Smaller encoders are smaller, load again, and say nearly the same."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from flmrec.errors import UsageError
from flmrec.model import compression, onnx
from flmrec.model.encoder import DEFAULT_ENCODER, Pooling, load_encoder


def test_layers_are_kept_evenly_and_the_folder_loads(tmp_path: Path) -> None:
    encoder = load_encoder(DEFAULT_ENCODER, "mean")
    wanted = [encoder.model.encoder.layer[i].output.dense.weight.clone() for i in (1, 3, 5)]
    compression.shorten(encoder, 3)
    encoder.save(tmp_path)
    again = load_encoder(str(tmp_path), "mean")
    assert all(
        torch.equal(layer.output.dense.weight, own)
        for layer, own in zip(again.model.encoder.layer, wanted, strict=True)
    )
    ids, lengths = torch.tensor([[101, 2000, 102]]), torch.tensor([3])
    torch.testing.assert_close(again.eval()(ids, lengths), encoder.eval()(ids, lengths))


@pytest.mark.parametrize("n_layers", [0, 6, 7])
def test_a_student_has_fewer_layers(n_layers: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 5"):
        compression.shorten(load_encoder(DEFAULT_ENCODER, "mean"), n_layers)


def test_int8_is_close_and_leaves_the_encoder_alone() -> None:
    encoder = load_encoder(DEFAULT_ENCODER, "mean").eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(1000, 20_000, (16, 12)))
    lengths = torch.full((16,), 12)
    with torch.no_grad():
        before = encoder(ids, lengths)
        found = compression.quantized(encoder)(ids, lengths)
        assert torch.equal(before, encoder(ids, lengths))
    cosines = F.cosine_similarity(before, found)
    assert float(cosines.min()) > 0.9 and float(cosines.max()) < 1


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_onnx_gives_the_same_vectors(pooling: Pooling, tmp_path: Path) -> None:
    encoder = load_encoder(DEFAULT_ENCODER, pooling).eval()
    compression.shorten(encoder, 1)  # exporting takes as long as there are layers
    encoder.save(tmp_path)
    onnx.export(tmp_path, pooling)
    ids, lengths = torch.randint(1000, 20_000, (5, 33)), torch.tensor([33, 1, 9, 20, 2])
    mask = (torch.arange(33) < lengths[:, None]).long()
    session = onnxruntime.InferenceSession(tmp_path / onnx.FILE)
    (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, encoder(ids, lengths).numpy(), atol=1e-4)


def test_onnx_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match="no_such_package on the driver"):
        onnx.check_packages()


def test_distillation_is_zero_for_the_teacher_and_looks_at_prefixes() -> None:
    teacher = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert float(compression.distillation_loss(3 * teacher, teacher, [8])) == pytest.approx(0, abs=1e-6)
    turned = teacher.flip(1)
    without, with_prefix = (float(compression.distillation_loss(turned, teacher, p)) for p in ([], [4]))
    assert 0 < without < with_prefix
    unit = F.normalize(turned[:, :4], dim=1)
    wanted = F.normalize(teacher, dim=1)
    assert with_prefix - without == pytest.approx(float(((unit @ unit.T - wanted @ wanted.T) ** 2).mean()), rel=1e-4)
