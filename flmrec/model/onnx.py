"""The encoder as one ONNX graph, for servers without torch. Runs where the model is published, not on executors."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from flmrec.errors import UsageError
from flmrec.model.encoder import Pooling, TextEncoder, load_encoder

FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxscript")


class _Graph(nn.Module):
    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.encoder.pooled(states, attention_mask.sum(1))


def check_packages() -> None:
    """Raises UsageError where a package that the export needs is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"model.onnx=true needs {' and '.join(missing)} on the driver: pip install onnx onnxscript.")


def export(folder: Path, pooling: Pooling) -> None:
    """Writes model.onnx into a folder that holds an encoder: the encoder's vectors, unscaled, as jobs/encode.py gives
    them. Inputs input_ids and attention_mask (B, L) int64, padded on the right; output vector (B, H) float32."""
    graph = _Graph(load_encoder(str(folder), pooling)).eval()
    example = torch.ones(2, 8, dtype=torch.long)  # 2 and 8 stand for any number
    mask = example.clone()
    mask[1, 4:] = 0  # without padding the model would be traced without a mask
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        graph,
        (example, mask),
        folder / FILE,
        input_names=["input_ids", "attention_mask"],
        output_names=["vector"],
        dynamic_shapes={"input_ids": any_size, "attention_mask": any_size},
        external_data=False,
        verbose=False,
    )
