"""One rank's training of one model version. Ships to executors: no pyspark in here.

Every epoch reads each window of `sequences` once over all ranks. A step is a next-item step of the FLM head and its
tower; in the first epochs it also aligns the encoder: texts of the step are scored against the batch's users and pulled
towards what the linear teacher gives them. The language model runs once per text of a step; histories and candidates
take the texts' vectors from a cache, which the ranks refresh together after every epoch that changed the encoder.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmrec.columns import C
from flmrec.errors import TrainingError
from flmrec.evaluation.gain import CHOOSING_K
from flmrec.model import artifact
from flmrec.model.flm import Flm
from flmrec.model.recipe import Recipe
from flmrec.training import checkpoint, inputs
from flmrec.training.alignment import Aligner
from flmrec.training.averaging import RunningMean
from flmrec.training.checkpoint import Checkpoint
from flmrec.training.comm import Communicator
from flmrec.training.inputs import Texts
from flmrec.training.next_item import NextItem
from flmrec.training.reader import Block, DataFile, read_epoch, steps_per_epoch

_STEPS_OF_A_MEAN = 20  # where residuals are sparse


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """What the ranks of one training need; picklable. Paths have to be readable on every executor."""

    sequences: list[DataFile]
    weighted: bool  # whether they say how much each event counts
    ratings: tuple[float, float] | None = None  # mean and standard deviation of the events' ratings; None: not learned
    item_tokens: list[DataFile]
    encoder: str  # folder or hub name to start from
    head: str | None = None  # folder of a finished model whose FLM head is gone on from; None: a new one
    folder: str  # of the model in the making: holds what stages/preparation.py wrote, gets encoder and flm.safetensors
    recipe: Recipe
    n_items: int
    reader: str
    seed: int
    epochs: int | None = None  # at most; validation, where there is one, may like fewer best. None: the recipe's
    aligned_epochs: int | None = None  # likewise for the encoder
    checkpoint_s: float = 60.0  # seconds between checkpoints at least


@dataclass(frozen=True)
class EpochRow:
    """A row of the table `training`. loss: mean of the next-item loss, nats."""

    epoch: int
    rank: int
    rows_read: int
    steps: int
    loss: float
    seconds: float


@dataclass
class FitResult:
    """What a rank brings home. Choices and validation are the same on every rank."""

    rows: list[EpochRow] = field(default_factory=list)
    epochs: int = 0  # chosen
    aligned_epochs: int = 0  # chosen
    linear: dict[str, Any] = field(default_factory=dict)  # settings of the linear models, as prepared
    validation: dict[int, float] = field(default_factory=dict)  # epoch: NDCG@100 of the tower
    cold_validation: dict[int, float] = field(default_factory=dict)  # epochs of alignment: NDCG@10 of pseudo-cold items
    alignment_loss: dict[int, float] = field(default_factory=dict)  # epoch: mean KL to the teacher, nats


def train(job: FitJob, comm: Communicator, report: Callable[[str], None]) -> FitResult:
    """Trains on this rank; rank 0 leaves the encoder and flm.safetensors in job.folder.

    Goes on from the folder's checkpoint where there is one, and ends as a run without a break does.
    Raises TrainingError when the loss is no longer finite.
    """
    run = _Run(job, comm)
    done = run.resume()
    if comm.rank == 0 and done:
        report(f"  going on after epoch {done}, from the checkpoint in {job.folder}")
    elif comm.rank == 0 and run.result.cold_validation:
        report(f"  encoder as it was: cold NDCG@10 {run.result.cold_validation[0]:.4f}")
    for epoch in range(done + 1, run.n_epochs + 1):
        note = run.epoch(epoch)
        if comm.rank == 0:
            report(f"  epoch {epoch}/{run.n_epochs}: {note}")
        run.save(epoch)
        if run.is_over(epoch):
            break
    return run.finish()


class _Best:
    """The state with the best measure so far; of equal ones the first."""

    def __init__(self) -> None:
        self.epoch: int | None = None
        self.measure = -np.inf
        self.state: dict[str, Tensor] = {}

    def offer(self, epoch: int, measure: float, state: Callable[[], dict[str, Tensor]]) -> None:
        if measure > self.measure:
            self.epoch, self.measure, self.state = epoch, measure, state()

    def progress(self) -> list[Any]:
        return [self.epoch, self.measure if self.epoch is not None else 0.0, self.state]

    def resume(self, progress: list[Any]) -> None:
        epoch, measure, state = progress
        if epoch is not None:
            self.epoch, self.measure, self.state = epoch, measure, state


class _Run:
    """The state of one training between epochs."""

    def __init__(self, job: FitJob, comm: Communicator) -> None:
        torch.manual_seed(job.seed)  # the same start on every rank
        begun = None if job.head is None else artifact.load_flm(Path(job.head))
        if begun is not None:
            job = replace(job, recipe=replace(job.recipe, tower=begun.recipe))
        self.job, self.comm, self.folder = job, comm, Path(job.folder)
        recipe = job.recipe
        texts, attributes = Texts.read(job.item_tokens, job.n_items), inputs.attributes(self.folder)
        teacher = inputs.teacher(self.folder)
        self.n_aligned = recipe.alignment.max_epochs if job.aligned_epochs is None else job.aligned_epochs
        self.n_epochs = max(recipe.tower.max_epochs if job.epochs is None else job.epochs, self.n_aligned)
        self.aligner = Aligner(
            job.encoder, recipe, texts, attributes, teacher, comm, n_epochs=self.n_aligned, seed=job.seed
        )
        flm = begun or Flm(job.n_items, self.aligner.encoder.width, attributes.shape[1], recipe.tower)
        flm = flm.to(comm.device)
        comm.broadcast_(list(flm.state_dict().values()))
        counts = inputs.item_counts(self.folder)
        self.trainer = NextItem(flm, recipe.tower, attributes, counts, comm, seed=job.seed)
        self.trainer.set_texts(self.aligner.vectors)
        self.mean = RunningMean(flm, recipe.tower.averaging, every=_STEPS_OF_A_MEAN if recipe.tower.sparse else 1)
        self.warm, self.cold = inputs.validation(self.folder), inputs.cold_validation(self.folder)
        self.best_warm, self.best_cold = _Best(), _Best()
        self.result = FitResult(linear=asdict(recipe.linear))
        self._judge_texts(0)
        self.saved = time.monotonic()

    def resume(self) -> int:
        """Takes over the state of the checkpoint, if there is one; returns the epochs that are done."""
        found = checkpoint.restore(self.comm, self.folder)
        if found is None:
            return 0
        state = found.state
        self.aligner.resume(state["aligner"])
        self.trainer.resume(state["trainer"])
        self.trainer.set_texts(self.aligner.vectors)
        self.mean.resume(state["mean"])
        self.best_warm.resume(state["best_warm"])
        self.best_cold.resume(state["best_cold"])
        rows = [EpochRow(**row) for row in state["rows"] if row["rank"] == self.comm.rank]
        self.result = FitResult(**state["result"] | {"rows": rows})
        return found.epoch

    def save(self, epoch: int) -> None:
        """A checkpoint, when the last one is old enough by rank 0's clock."""
        due = self.comm.allgather(time.monotonic() - self.saved >= self.job.checkpoint_s)[0]
        if not due:
            return
        rows = [asdict(row) for of_rank in self.comm.allgather(self.result.rows) for row in of_rank]
        if self.comm.rank == 0:
            state = {
                "aligner": self.aligner.progress(),
                "trainer": self.trainer.progress(),
                "mean": self.mean.progress(),
                "best_warm": self.best_warm.progress(),
                "best_cold": self.best_cold.progress(),
                "rows": rows,
                "result": asdict(self.result) | {"rows": []},
            }
            checkpoint.save(self.folder, Checkpoint(epoch, state))
        self.saved = time.monotonic()

    def epoch(self, epoch: int) -> str:
        """One pass over the windows; returns what to tell the person who waits."""
        started = time.monotonic()
        aligning = epoch <= self.n_aligned
        self.trainer.start_epoch(epoch)
        if aligning:
            self.aligner.start_epoch(epoch, self._steps())
        rows, losses = 0, []
        for block in self._batches(epoch):
            windows, times = (torch.from_numpy(block[name].astype(np.int64)) for name in (C.ITEM_IDX, C.EVENT_TS))
            weights = torch.from_numpy(block[C.WEIGHT].astype(np.float32)) if self.job.weighted else None
            losses.append(self.trainer.step(windows, times, weights, self._ratings(block)))
            self.mean.update()
            if aligning:
                self.aligner.step(windows)
            rows += len(windows)
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise TrainingError(f"The loss of epoch {epoch} is {loss}: lower the learning rate of the recipe.")
        note = f"loss {loss:.4f}{self._end_alignment(epoch) if aligning else ''}{self._judge(epoch)}"
        self.result.rows.append(EpochRow(epoch, self.comm.rank, rows, len(losses), loss, time.monotonic() - started))
        return note

    def is_over(self, epoch: int) -> bool:
        """Whether validation has not gained for as long as the recipe waits; the same on every rank."""
        best, recipe = self.best_warm.epoch, self.job.recipe.tower
        return best is not None and epoch - best >= recipe.patience * recipe.evaluate_every

    def finish(self) -> FitResult:
        """Keeps the best weights, or the last where nothing was judged, and saves them."""
        self.mean.apply()
        if self.best_warm.epoch is not None:
            self.trainer.restore(self.best_warm.state)
        self.result.epochs = self.n_epochs if self.best_warm.epoch is None else self.best_warm.epoch
        self.result.aligned_epochs = self.n_aligned if self.best_cold.epoch is None else self.best_cold.epoch
        if self.comm.rank == 0:
            artifact.save_parts(self.folder, self.aligner.encoder, self.job.encoder, self.trainer.flm)
        self.comm.barrier()
        return self.result

    def _end_alignment(self, epoch: int) -> str:
        """New text vectors; after the last epoch of alignment those of the best one."""
        loss = self.aligner.finish_epoch()
        self.result.alignment_loss[epoch] = loss
        note = f", alignment {loss:.4f}{self._judge_texts(epoch)}"
        if epoch == self.n_aligned and self.best_cold.epoch is not None:
            self.aligner.restore(self.best_cold.state)
        self.trainer.set_texts(self.aligner.vectors)
        return note

    def _judge_texts(self, epochs: int) -> str:
        if self.cold is None or not self.n_aligned:
            return ""
        ndcg = self.aligner.cold_ndcg(self.cold)
        self.result.cold_validation[epochs] = ndcg
        if epochs:  # the encoder is tuned at least once
            self.best_cold.offer(epochs, ndcg, self.aligner.state)
        return f", cold NDCG@10 {ndcg:.4f}"

    def _judge(self, epoch: int) -> str:
        due = epoch % self.job.recipe.tower.evaluate_every == 0 or epoch == self.n_epochs
        if self.warm is None or not due or epoch < self.n_aligned:
            return ""
        with self.mean.applied():
            ndcg = self.trainer.ndcg(self.warm)
            self.result.validation[epoch] = ndcg
            self.best_warm.offer(epoch, ndcg, self.trainer.state)
        return f", NDCG@{CHOOSING_K} {ndcg:.4f}"

    def _batches(self, epoch: int) -> Iterator[Block]:
        job, comm = self.job, self.comm
        more = [*([C.WEIGHT] if job.weighted else []), *([C.RATING] if job.ratings else [])]
        columns = [C.ITEM_IDX, C.EVENT_TS, *more]
        return read_epoch(
            job.sequences, columns, self._batch_size(), rank=comm.rank, size=comm.size, seed=job.seed, epoch=epoch,
            reader=job.reader,
        )  # fmt: skip

    def _ratings(self, block: Block) -> Tensor | None:
        if self.job.ratings is None:
            return None
        mean, deviation = self.job.ratings
        return torch.from_numpy(((block[C.RATING] - mean) / deviation).astype(np.float32))

    def _steps(self) -> int:
        """Steps of each rank in an epoch."""
        n_rows = sum(file.rows for file in self.job.sequences)
        return steps_per_epoch(n_rows, self._batch_size(), self.comm.size)

    def _batch_size(self) -> int:
        """Windows a step and rank."""
        return max(1, self.job.recipe.tower.batch_size // self.comm.size)
