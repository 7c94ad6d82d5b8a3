"""The steps of the self-supervised pretraining on one rank. Ships to executors: no pyspark in here.

A step draws a pool of distinct texts from the events of its windows, adds some of all texts alike, and encodes each
once; all objectives work on these vectors and on the windows as far as the pool reaches. Where texts are contrasted or
words are to be guessed, the pool's views are encoded as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from flmrec.columns import C
from flmrec.config import PretrainConfig
from flmrec.errors import UsageError
from flmrec.factorization.words import word_rows
from flmrec.model import augment as histories
from flmrec.model import compression, pretraining
from flmrec.model.adapters import DomainAdapters
from flmrec.model.encoder import Pooling, TextEncoder, Tuning, bf16_is_fast, load_encoder
from flmrec.model.losses import words_loss
from flmrec.model.pretraining import IGNORED, MaskedLanguageHead
from flmrec.text import augment as texts
from flmrec.text.tokenization import TokenizerRef
from flmrec.training.comm import Communicator
from flmrec.training.reader import Block, DataFile, read_table
from flmrec.training.schedule import rise_and_fall

_WEIGHT_DECAY, _MAX_GRADIENT_NORM = 0.01, 1.0
_TOKENIZED = 8192  # texts at a time, since a tokenizer's own records of a text are large
_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """What the ranks need; picklable. Paths have to be readable on every executor."""

    windows: list[DataFile]
    texts: list[DataFile]
    with_events: list[bool]  # source: its windows are histories, else bags of texts
    domains: list[int]  # source: number of its lake
    own_domain: int | None  # the lake that the encoder is for; None: it is no source
    tokenizer: TokenizerRef
    encoder: str  # folder or hub name to start from
    pooling: Pooling
    tuning: Tuning
    folder: str  # of the model in the making
    plan: PretrainConfig
    reader: str
    seed: int
    checkpoint_s: float = 60.0


@dataclass(frozen=True)
class Corpus:
    """All texts by number, from 1."""

    texts: list[str]  # texts[0]: ""
    sources: np.ndarray  # (n + 1,)

    @classmethod
    def read(cls, files: list[DataFile]) -> "Corpus":
        table = read_table(files, [C.IDX, C.SOURCE, C.TEXT])
        order = np.argsort(table[C.IDX])
        return cls(["", *table[C.TEXT][order]], np.concatenate([[-1], table[C.SOURCE][order]]).astype(np.int64))


class Pretrainer:
    """The encoder, its optimizer and the steps."""

    def __init__(self, job: PretrainJob, corpus: Corpus, comm: Communicator, *, total_steps: int) -> None:
        torch.manual_seed(job.seed)  # the same start on every rank
        self.job, self.plan, self.corpus, self.comm = job, job.plan, corpus, comm
        self.tokenizer = Tokenizer.from_str(job.tokenizer.rust)
        self.tokenizer.enable_truncation(job.tokenizer.max_tokens)
        self.mask = next((sign for sign in _MASKS if self.tokenizer.token_to_id(sign) is not None), "")
        self.translate = texts.translator(job.plan.text.translator)
        self.with_events = np.array(job.with_events)
        self.texts_of = [np.flatnonzero(corpus.sources == source) for source in range(len(job.with_events))]
        self.words = self._words() if self.plan.losses.words else []
        self.encoder = load_encoder(job.encoder, job.pooling, job.tuning)
        self.teacher = load_encoder(job.encoder, job.pooling).to(comm.device) if self.plan.losses.distil else None
        if self.plan.layers is not None:
            compression.shorten(self.encoder, self.plan.layers)
        self.domains, rank = np.array(job.domains), self.plan.adapter_rank
        self.adapters = DomainAdapters(self.encoder, max(job.domains) + 1, rank) if rank else None
        self.encoder.to(comm.device)
        self.bf16 = bf16_is_fast(comm.device)
        self.head = self._language_head()
        self.trained = [p for p in self.encoder.parameters() if p.requires_grad]
        self.trained += list(self.head.parameters()) if self.head is not None else []
        comm.broadcast_([p.data for p in self.trained])
        self._start_optimizer(total_steps)
        self.done = 0

    def _start_optimizer(self, total_steps: int) -> None:
        rate = self.plan.learning_rate
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=_WEIGHT_DECAY, fused=True)
        self.schedule = rise_and_fall(self.optimizer, total_steps)

    def _language_head(self) -> MaskedLanguageHead | None:
        if not self.plan.losses.mlm:
            return None
        if not self.mask:
            raise UsageError(
                f"pretrain.losses.mlm: the tokenizer of {self.job.encoder} has no mask token; set the weight to 0."
            )
        return MaskedLanguageHead(self._embeddings()).to(self.comm.device)

    def _embeddings(self) -> nn.Embedding:
        return self.encoder.model.get_input_embeddings()  # type: ignore[operator]

    def step(self, block: Block) -> dict[str, float]:
        """One update; returns the losses, nats, `loss` being their weighted sum."""
        rng = np.random.default_rng([self.job.seed, self.done, self.comm.rank])
        self.done += 1
        torch.manual_seed(int(rng.integers(2**31)))  # dropout, so that a resumed run goes on as an unbroken one
        pool, windows = draw_pool(block[C.ITEM_IDX], self.plan.texts_per_step, rng)
        own = block[C.SOURCE].astype(np.int64)
        pool = np.concatenate([pool, self._negatives(pool, own, rng)])
        self.encoder.train()
        with torch.autocast(self.comm.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self._losses(pool, windows, own, rng)
        weights = vars(self.plan.losses)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        self.optimizer.zero_grad()
        total.backward()
        if self.adapters is not None:
            self.adapters.fill_gradients()
        self.comm.average_gradients_(self.trained)
        nn.utils.clip_grad_norm_(self.trained, _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        return {"loss": float(total.detach())} | {name: float(loss.detach()) for name, loss in losses.items()}

    def _losses(
        self, pool: np.ndarray, windows: np.ndarray, own: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        plan, device = self.plan, self.comm.device
        weights = plan.losses
        vectors = F.normalize(self._encoded(pool), dim=1)
        groups = torch.from_numpy(self.corpus.sources[pool]).to(device)
        table = torch.cat([torch.zeros_like(vectors[:1]), pretraining.centred(vectors, groups)])  # (P + 1, H)
        sources = torch.cat([groups.new_full((1,), -1), groups])
        histories_of = np.flatnonzero(self.with_events[own])
        rows = torch.from_numpy(windows[histories_of]).to(device)
        owners = torch.from_numpy(own[histories_of]).to(device)
        temperature = plan.similarity_temperature
        losses: dict[str, Tensor] = {}
        if weights.next_item:
            losses["next_item"] = pretraining.next_item_loss(table, rows, sources, owners, plan.half_life, temperature)
        if weights.masked_item:
            hidden = torch.from_numpy(rng.random(rows.shape) < plan.masked_share).to(device)
            losses["masked_item"] = pretraining.masked_item_loss(table, rows, hidden, sources, owners, temperature)
        if weights.history_contrast:
            losses["history_contrast"] = self._history_contrast(table, windows[histories_of], owners, groups, rng)
        if weights.words:
            shared = torch.from_numpy(self._shared(pool)).to(device)
            losses["words"] = words_loss(table[1:], shared, temperature, groups)
        if weights.moments:
            losses["moments"] = pretraining.moment_loss(vectors, groups)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher.by_length(*self._tokens([self.corpus.texts[i] for i in pool]))
            losses["distil"] = compression.distillation_loss(vectors, wanted, plan.prefixes)
        if weights.text_contrast or weights.mlm:
            losses |= self._view_losses(pool, vectors, groups, windows[histories_of], own[histories_of], rng)
        return losses

    def _encoded(self, pool: np.ndarray) -> Tensor:
        """(P, H)."""
        ids, lengths = self._tokens([self.corpus.texts[i] for i in pool])
        return self._of_domains(
            self.corpus.sources[pool], lambda rows: self.encoder.by_length(ids[rows], lengths[rows])
        )

    def _of_domains(self, sources: np.ndarray, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of the rows (n,), each with the adapter of its source's lake where there are adapters."""
        if self.adapters is None:
            return encode(torch.arange(len(sources)))
        return self.adapters.encode(self.domains[sources], encode)

    def _words(self) -> list[sp.csr_matrix]:
        """A source's texts by the rarity of their words within the source, a row each; no rows where it has none."""
        corpus, width = self.corpus.texts, self.job.tokenizer.max_tokens
        ids, lengths = np.zeros((len(corpus), width), dtype=np.int32), np.zeros(len(corpus), dtype=np.int64)
        for start in range(0, len(corpus), _TOKENIZED):
            own = slice(start, start + _TOKENIZED)
            rows, lengths[own] = self._ids(corpus[own])
            ids[own, : rows.shape[1]] = rows
        return [word_rows(ids[own], lengths[own], np.arange(len(own))) for own in self.texts_of]

    def _shared(self, pool: np.ndarray) -> np.ndarray:
        """(P, P) cosines of the words of the pool's texts, 0 between sources."""
        out = np.zeros((len(pool), len(pool)), dtype=np.float32)
        for source, (of_source, words) in enumerate(zip(self.texts_of, self.words, strict=True)):
            own = np.flatnonzero(self.corpus.sources[pool] == source)
            rows = words[np.searchsorted(of_source, pool[own])]
            out[np.ix_(own, own)] = (rows @ rows.T).toarray()
        return out

    def _negatives(self, pool: np.ndarray, own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Texts outside the pool, of the sources of the windows that are histories, in their shares. Without them the
        softmax is over popular texts alone, and says nothing of what makes a text popular."""
        asked = own[self.with_events[own]]
        if not len(asked) or not self.plan.negatives:
            return pool[:0]
        of_source = np.bincount(rng.choice(asked, self.plan.negatives))
        drawn = [rng.choice(self.texts_of[source], n) for source, n in enumerate(of_source) if n]
        return np.setdiff1d(np.concatenate(drawn), pool)

    def _history_contrast(
        self, table: Tensor, windows: np.ndarray, owners: Tensor, groups: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """Two views of each history in the pool that has two events or more."""
        long = np.flatnonzero((windows != 0).sum(1) > 1)
        if not len(long):
            return table.sum() * 0
        similar = _most_similar(table.detach(), groups)
        views = [
            _padded([histories.view(windows[i][windows[i] != 0], self.plan.history, similar, rng) for i in long])
            for _ in range(2)
        ]
        left, right = (
            pretraining.pooled(table, torch.from_numpy(view).to(table.device), self.plan.half_life) for view in views
        )
        return pretraining.contrastive_loss(
            left, right, owners[torch.from_numpy(long)], self.plan.similarity_temperature
        )

    def _view_losses(
        self, pool: np.ndarray, vectors: Tensor, groups: Tensor, windows: np.ndarray, own: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The pool's views are encoded once, some of their tokens masked: for the contrast and for the guesses."""
        weights, plan = self.plan.losses, self.plan
        views = [texts.view(self.corpus.texts[i], plan.text, self.mask, rng) for i in pool]
        if self.translate is not None:
            views = self.translate(views)
        behaviour, of = self._behaviour_texts(pool, windows, rng) if weights.mlm else ([], np.arange(0))
        ids, lengths = self._tokens(views + behaviour)
        sources = np.concatenate([self.corpus.sources[pool], own[of]])
        labels = None
        if self.head is not None:
            ids, labels = mask_tokens(ids, lengths, self._special(), self._mask_id(),
                                      self.tokenizer.get_vocab_size(), plan.masked_share, rng)  # fmt: skip
        states = self._of_domains(sources, lambda rows: self.encoder.states(ids[rows], lengths[rows]))
        losses = {}
        if weights.text_contrast:
            seen = self.encoder.pooled(states, lengths)[: len(pool)]
            losses["text_contrast"] = pretraining.contrastive_loss(vectors, seen, groups, plan.similarity_temperature)
        if self.head is not None and labels is not None:
            losses["mlm"] = self.head.loss(states, labels, self._embeddings().weight)
        return losses

    def _behaviour_texts(
        self, pool: np.ndarray, windows: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[str], np.ndarray]:
        """Some histories, each as one text, oldest event first, and the rows of `windows` that they are of."""
        chosen = rng.permutation(np.flatnonzero(windows.any(1)))[: self.plan.behaviour_texts]
        listed = [windows[i][windows[i] != 0] - 1 for i in chosen]
        return [". ".join(self.corpus.texts[i] for i in pool[own]) for own in listed], chosen

    def _mask_id(self) -> int:
        found = self.tokenizer.token_to_id(self.mask)
        assert found is not None  # _language_head has looked
        return found

    def _special(self) -> np.ndarray:
        """Ids that are never guessed: those that the tokenizer puts around a text, and padding."""
        encoding = self.tokenizer.encode("")
        return np.array([*encoding.ids, self.job.tokenizer.pad_id])

    def _tokens(self, some: list[str]) -> tuple[Tensor, Tensor]:
        """(B, L) ids, padded on the right, and (B,) lengths."""
        ids, lengths = self._ids(some)
        return torch.from_numpy(ids).to(self.comm.device), torch.from_numpy(lengths).to(self.comm.device)

    def _ids(self, some: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(some)]
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), lengths.max()), self.job.tokenizer.pad_id)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(rows)
        return ids, lengths

    def finished(self) -> TextEncoder:
        """The encoder, with the adapter of the lake that it is for; nothing can be trained after this."""
        if self.adapters is not None:
            self.adapters.merge(self.job.own_domain)
        return self.encoder

    def progress(self) -> dict[str, Any]:
        """All that a checkpoint needs; `resume` takes it."""
        return {
            "done": self.done,
            "weights": [p.detach() for p in self.trained],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict()["last_epoch"],
        }

    def resume(self, progress: dict[str, Any]) -> None:
        self.done = progress["done"]
        with torch.no_grad():
            for own, kept in zip(self.trained, progress["weights"], strict=True):
                own.copy_(kept)
        self.optimizer.load_state_dict(progress["optimizer"])
        self.schedule.last_epoch = progress["schedule"]


def draw_pool(windows: np.ndarray, n_texts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(P,) distinct texts of the events, P <= n_texts, those of more events more likely; and the (B, W) windows in
    places of the pool from 1, 0 where an event is outside."""
    events = windows[windows != 0]
    found, first = np.unique(rng.permutation(events), return_index=True)
    pool = np.sort(found[np.argsort(first)[:n_texts]])
    place = np.searchsorted(pool, windows).clip(max=len(pool) - 1)
    return pool.astype(np.int64), np.where(pool[place] == windows, place + 1, 0)


def mask_tokens(
    ids: Tensor, lengths: Tensor, special: np.ndarray, mask_id: int, n_vocabulary: int, share: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The ids with `share` of the real tokens chosen, at least one of the batch: of those 80 % masked, 10 % exchanged
    (Devlin et al., 2019); and the labels, IGNORED where nothing is to be guessed."""
    plain = ids.cpu().numpy()
    real = (np.arange(plain.shape[1]) < lengths.cpu().numpy()[:, None]) & ~np.isin(plain, special)
    chosen = real & (rng.random(plain.shape) < share)
    if not chosen.any():
        chosen[tuple(places[0] for places in np.nonzero(real))] = True
    kind = rng.random(plain.shape)
    out = np.where(chosen & (kind < 0.8), mask_id, plain)
    out = np.where(chosen & (kind >= 0.9), rng.integers(n_vocabulary, size=plain.shape), out)
    labels = np.where(chosen, plain, IGNORED)
    return torch.from_numpy(out).to(ids.device), torch.from_numpy(labels).to(ids.device)


def _most_similar(table: Tensor, groups: Tensor) -> np.ndarray:
    """(P + 1,) the place of the nearest other text of the same source; itself where it is alone. 0 stays 0."""
    cosines = (table[1:] @ table[1:].T).float()
    cosines.masked_fill_(groups[:, None] != groups[None, :], -2.0)
    cosines.fill_diagonal_(-1.5)
    return np.concatenate([[0], 1 + cosines.argmax(1).cpu().numpy()])


def _padded(some: list[np.ndarray]) -> np.ndarray:
    """(n, longest), zeros on the left: the newest event is the last."""
    out = np.zeros((len(some), max(map(len, some))), dtype=np.int64)
    for row, values in zip(out, some, strict=True):
        row[len(row) - len(values) :] = values
    return out
