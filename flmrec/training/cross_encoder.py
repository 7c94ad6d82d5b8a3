"""Training of the cross-encoder on one rank. Ships to executors: no pyspark in here.

Every epoch reads each labelled pair once over all ranks; a step is one update by binary cross-entropy.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from flmrec.columns import C
from flmrec.config import RerankConfig
from flmrec.errors import TrainingError
from flmrec.model import artifact
from flmrec.model.cross_encoder import CrossEncoder, PairLayout
from flmrec.model.encoder import Pooling, Tuning, bf16_is_fast, load_encoder
from flmrec.text.tokenization import TokenizerRef
from flmrec.training.comm import Communicator
from flmrec.training.inputs import Texts
from flmrec.training.reader import Block, DataFile, read_epoch, steps_per_epoch
from flmrec.training.schedule import rise_and_fall
from flmrec.training.worker import EpochRow

COLUMNS = [C.ITEM_IDX, C.LABEL]
_WEIGHT_DECAY, _MAX_GRADIENT_NORM = 0.01, 1.0
_HEAD_RATE = 10.0  # times the encoder's learning rate


@dataclass(frozen=True, kw_only=True)
class CrossJob:
    """What the ranks need; picklable. Paths have to be readable on every executor."""

    pairs: list[DataFile]  # C.ITEM_IDX: history, oldest first, and the item that is judged; C.LABEL
    item_tokens: list[DataFile]
    n_items: int
    log_counts: np.ndarray  # (n + 1,) float32
    tokenizer: TokenizerRef
    encoder: str  # folder to start from
    pooling: Pooling
    tuning: Tuning
    folder: str  # of the model in the making
    plan: RerankConfig
    reader: str
    seed: int


def train(job: CrossJob, comm: Communicator, report: Callable[[str], None]) -> list[EpochRow]:
    """Trains on this rank; rank 0 leaves the cross-encoder in job.folder. Raises TrainingError where the loss is no
    longer finite."""
    torch.manual_seed(job.seed)  # the same start on every rank
    trainer = _Trainer(job, comm)
    rows = []
    for epoch in range(1, job.plan.epochs + 1):
        started, n_rows, losses = time.monotonic(), 0, []
        torch.manual_seed(int(np.random.SeedSequence([job.seed, epoch, comm.rank]).generate_state(1)[0]))  # dropout
        for block in read_epoch(
            job.pairs, COLUMNS, job.plan.pairs_per_step, rank=comm.rank, size=comm.size, seed=job.seed, epoch=epoch,
            reader=job.reader,
        ):  # fmt: skip
            losses.append(trainer.step(block))
            n_rows += len(block[C.LABEL])
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise TrainingError(f"The loss of epoch {epoch} is {loss}: lower rerank.learning_rate.")
        rows.append(EpochRow(epoch, comm.rank, n_rows, len(losses), loss, time.monotonic() - started))
        if comm.rank == 0:
            report(f"  epoch {epoch}/{job.plan.epochs}: loss {loss:.4f}")
    if comm.rank == 0:
        trainer.model.save(Path(job.folder))
        artifact.save_tokenizer(Path(job.folder), job.encoder)
    comm.barrier()
    return rows


class _Trainer:
    def __init__(self, job: CrossJob, comm: Communicator) -> None:
        self.comm, self.texts = comm, Texts.read(job.item_tokens, job.n_items)
        layout = PairLayout.of(job.tokenizer.rust, job.plan.event_tokens, job.plan.item_tokens)
        encoder = load_encoder(job.encoder, job.pooling, job.tuning)
        self.model = CrossEncoder(encoder, torch.from_numpy(job.log_counts), layout).to(comm.device)
        trained = [p for p in self.model.encoder.parameters() if p.requires_grad]
        head = list(self.model.head.parameters())
        comm.broadcast_([p.data for p in trained + head])
        groups = [
            {"params": trained, "lr": job.plan.learning_rate},
            {"params": head, "lr": job.plan.learning_rate * _HEAD_RATE},
        ]
        self.trained = trained + head
        self.optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY, fused=True)
        n_rows = sum(file.rows for file in job.pairs)
        steps = steps_per_epoch(n_rows, job.plan.pairs_per_step, comm.size)
        self.schedule = rise_and_fall(self.optimizer, job.plan.epochs * steps)
        self.bf16 = bf16_is_fast(comm.device)

    def step(self, block: Block) -> float:
        """One update; returns this rank's loss, nats."""
        self.model.train()
        items = block[C.ITEM_IDX].astype(np.int64)
        ids, lengths = self.model.layout.rows(self.texts, items[:, :-1], items[:, -1])
        device = self.comm.device
        batch = (torch.from_numpy(a).to(device) for a in (ids, lengths, items[:, -1].copy()))
        labels = torch.from_numpy(block[C.LABEL].astype(np.float32)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            scores = self.model(*batch)
        loss = F.binary_cross_entropy_with_logits(scores.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.comm.average_gradients_(self.trained)
        torch.nn.utils.clip_grad_norm_(self.trained, _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())
