"""The cross-encoder: one text of what a user did last and what is offered, one score. No Spark in here.

    [CLS] newest event ... older event [SEP] item [SEP]  ->  pooled vector, log of the item's events  ->  z

P(y = 1) = sigma(z) (Devlin et al., "BERT", NAACL 2019, as a classifier of pairs). Unlike the published vectors it sees
both texts at once, and costs a pass of the language model for every pair: it is for the best few of a list.
The folder holds the encoder as `save_pretrained` writes it, and the head in cross.safetensors.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from flmrec.errors import UsageError
from flmrec.model.encoder import TextEncoder, bf16_is_fast, length_batches, load_encoder

if TYPE_CHECKING:
    from flmrec.training.inputs import Texts

HEAD = "cross.safetensors"
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
_TOKENS_AT_ONCE = 8_192


@dataclass(frozen=True)
class PairLayout:
    """How the tokens of two texts become one row."""

    prefix: tuple[int, ...]  # what the tokenizer puts before a text, as [CLS]
    suffix: tuple[int, ...]  # and behind it, as [SEP]
    event_tokens: int  # of each event of the history, at most
    item_tokens: int  # of the item that is judged, at most

    @classmethod
    def of(cls, tokenizer: str, event_tokens: int, item_tokens: int) -> "PairLayout":
        """tokenizer: tokenizer.json."""
        special = Tokenizer.from_str(tokenizer).encode("").ids
        half = (len(special) + 1) // 2
        return cls(tuple(special[:half]), tuple(special[half:]), event_tokens, item_tokens)

    def rows(self, texts: "Texts", histories: Ints, targets: Ints) -> tuple[Ints, Ints]:
        """(ids (n, L), padded with 0 on the right; real tokens of each row (n,)).

        histories: (n, H) item numbers, oldest first, 0 where there was no event; targets: (n,).
        """
        n = len(targets)
        blocks = [self._special(self.prefix, n)]
        blocks += [
            self._body(texts, histories[:, place], self.event_tokens)
            for place in range(-1, -1 - histories.shape[1], -1)
        ]
        blocks += [self._special(self.suffix, n), self._body(texts, targets, self.item_tokens)]
        blocks += [self._special(self.suffix, n)]
        ids = np.concatenate([ids for ids, _ in blocks], axis=1)
        real = np.concatenate([real for _, real in blocks], axis=1)
        together = np.argsort(~real, axis=1, kind="stable")
        lengths = real.sum(axis=1)
        longest = max(int(lengths.max(initial=1)), 1)
        packed = np.take_along_axis(np.where(real, ids, 0), together, axis=1)[:, :longest]
        return packed, np.asarray(lengths, dtype=np.int64)

    def _body(self, texts: "Texts", items: Ints, most: int) -> tuple[Ints, np.ndarray]:
        """The items' own tokens, without what the tokenizer put around them."""
        rows = texts.of_item[items]
        first = len(self.prefix)
        ids = texts.input_ids[rows, first : first + most].astype(np.int64)
        own = np.clip(texts.n_tokens[rows] - first - len(self.suffix), 0, most)
        return ids, np.arange(ids.shape[1]) < own[:, None]

    @staticmethod
    def _special(ids: tuple[int, ...], n: int) -> tuple[Ints, np.ndarray]:
        return np.tile(np.array(ids, dtype=np.int64), (n, 1)), np.ones((n, len(ids)), dtype=bool)


class CrossEncoder(nn.Module):
    """Rows of tokens (B, L), their lengths (B,) and the items' logs of events (B,) to z (B,)."""

    log_counts: Tensor

    def __init__(self, encoder: TextEncoder, log_counts: Tensor, layout: PairLayout) -> None:
        """log_counts: (n + 1,) log(1 + events) of the items, centred; 0 for items without events."""
        super().__init__()
        self.encoder, self.layout = encoder, layout
        self.head = nn.Linear(encoder.width + 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("log_counts", log_counts)

    def forward(self, ids: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        pooled = self.encoder(ids, lengths)
        known = targets.clamp(max=len(self.log_counts) - 1)  # later items had no events either
        counts = self.log_counts[known] * (targets < len(self.log_counts))
        return self.head(torch.cat([pooled, counts[:, None]], 1))[:, 0].float()

    @torch.no_grad()
    def score(self, texts: "Texts", histories: Ints, targets: Ints) -> Floats:
        """(n,) z of pairs, as PairLayout.rows takes them; dropout is off."""
        self.eval()
        device = self.log_counts.device
        ids, lengths = self.layout.rows(texts, histories, targets)
        found = np.zeros(len(targets), dtype=np.float32)
        for rows in length_batches(lengths, _TOKENS_AT_ONCE):
            longest = int(lengths[rows].max())
            batch = (torch.from_numpy(a).to(device) for a in (ids[rows, :longest], lengths[rows], targets[rows]))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
                found[rows] = self(*batch).cpu().numpy()
        return found

    def save(self, folder: Path) -> None:
        self.encoder.save(folder)
        tensors = {"weight": self.head.weight, "bias": self.head.bias, "log_counts": self.log_counts}
        header = {"pooling": self.encoder.pooling, "layout": json.dumps(vars(self.layout))}
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / HEAD, metadata=header)


def load(folder: Path) -> CrossEncoder:
    """In evaluation mode. Raises UsageError where the folder holds no cross-encoder."""
    header = _header(folder)
    tensors, layout = load_file(folder / HEAD), json.loads(header["layout"])
    pairs = PairLayout(
        tuple(layout["prefix"]), tuple(layout["suffix"]), int(layout["event_tokens"]), int(layout["item_tokens"])
    )
    model = CrossEncoder(load_encoder(str(folder), header["pooling"]), tensors["log_counts"], pairs)  # type: ignore[arg-type]
    model.head.load_state_dict({name: tensors[name] for name in ("weight", "bias")})
    return model.eval()


def _header(folder: Path) -> dict[str, str]:
    if not (folder / HEAD).is_file():
        raise UsageError(f"{folder} holds no cross-encoder ({HEAD} is missing): run jobs/rerank.py.")
    with safe_open(folder / HEAD, framework="pt") as file:
        return dict(file.metadata())
