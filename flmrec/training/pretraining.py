"""Self-supervised pretraining of the encoder on one rank. Ships to executors: no pyspark in here.

Every epoch reads each window of the mixed training table once over all ranks; pretrainer.py has the steps.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from flmrec.columns import C
from flmrec.errors import TrainingError
from flmrec.model import artifact
from flmrec.training import checkpoint
from flmrec.training.checkpoint import Checkpoint
from flmrec.training.comm import Communicator
from flmrec.training.pretrainer import Corpus, Pretrainer, PretrainJob
from flmrec.training.reader import read_epoch, steps_per_epoch
from flmrec.training.worker import EpochRow

COLUMNS = [C.SOURCE, C.ITEM_IDX]


@dataclass
class PretrainResult:
    rows: list[EpochRow] = field(default_factory=list)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)  # epoch: mean of each loss on rank 0, nats


def train(job: PretrainJob, comm: Communicator, report: Callable[[str], None]) -> PretrainResult:
    """Trains on this rank; rank 0 leaves the encoder and its tokenizer in job.folder.

    Goes on from the folder's checkpoint where there is one. Raises TrainingError when the loss is no longer finite.
    """
    n_rows = sum(file.rows for file in job.windows)
    steps = steps_per_epoch(n_rows, job.plan.windows_per_step, comm.size)
    trainer = Pretrainer(job, Corpus.read(job.texts), comm, total_steps=steps * job.plan.epochs)
    result, folder, saved = PretrainResult(), Path(job.folder), time.monotonic()
    done = _resume(comm, folder, trainer, result)
    for epoch in range(done + 1, job.plan.epochs + 1):
        started = time.monotonic()
        rows, losses = 0, []
        for block in read_epoch(
            job.windows, COLUMNS, job.plan.windows_per_step, rank=comm.rank, size=comm.size, seed=job.seed, epoch=epoch,
            reader=job.reader,
        ):  # fmt: skip
            losses.append(trainer.step(block))
            rows += len(block[C.SOURCE])
        means = {name: float(np.mean([loss[name] for loss in losses])) for name in losses[0]}
        if not np.isfinite(means["loss"]):
            raise TrainingError(f"The loss of epoch {epoch} is {means['loss']}: lower pretrain.learning_rate.")
        result.losses[epoch] = means
        seconds = time.monotonic() - started
        result.rows.append(EpochRow(epoch, comm.rank, rows, len(losses), means["loss"], seconds))
        if comm.rank == 0:
            report(f"  epoch {epoch}/{job.plan.epochs}: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
        if comm.allgather(time.monotonic() - saved >= job.checkpoint_s)[0]:
            _save(comm, folder, trainer, result, epoch)
            saved = time.monotonic()
    if comm.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        trainer.finished().save(folder)
        artifact.save_tokenizer(folder, job.encoder)
    comm.barrier()
    return result


def _save(comm: Communicator, folder: Path, trainer: Pretrainer, result: PretrainResult, epoch: int) -> None:
    rows = [asdict(row) for of_rank in comm.allgather(result.rows) for row in of_rank]
    if comm.rank == 0:
        state = {"trainer": trainer.progress(), "rows": rows, "losses": result.losses}
        checkpoint.save(folder, Checkpoint(epoch, state))


def _resume(comm: Communicator, folder: Path, trainer: Pretrainer, result: PretrainResult) -> int:
    """The epochs that are done."""
    found = checkpoint.restore(comm, folder)
    if found is None:
        return 0
    trainer.resume(found.state["trainer"])
    result.rows = [EpochRow(**row) for row in found.state["rows"] if row["rank"] == comm.rank]
    result.losses = found.state["losses"]
    return found.epoch
