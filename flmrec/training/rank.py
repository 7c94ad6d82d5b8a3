"""What runs around a worker in a rank's own process: communicator, threads, and the way its failure takes home.

Shipped to executors; imports no pyspark.
"""

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from flmrec.training.channel import Address, Post
from flmrec.training.comm import Communicator, HorovodCommunicator, SingleCommunicator, TorchCommunicator

Worker = Callable[[Any, Communicator, Callable[[str], None]], Any]  # worker(job, comm, report) -> result

COMMUNICATORS: dict[str, tuple[str, type[Communicator]]] = {  # launcher: (variable that holds the rank, class)
    "horovod": ("HOROVOD_RANK", HorovodCommunicator),
    "torch_distributor": ("RANK", TorchCommunicator),
    "inline": ("", SingleCommunicator),
}


@dataclass(frozen=True)
class RankTask:
    """Everything one rank needs; picklable. Called in the rank's process, it returns the results of all ranks."""

    launcher: str
    worker: Worker
    job: Any
    address: Address
    threads: int | None  # None: the cores of the machine over its ranks

    def __call__(self) -> list[Any]:
        variable, communicator = COMMUNICATORS[self.launcher]
        post = Post(self.address, int(os.environ.get(variable, "0")))
        try:
            comm = communicator()
            torch.set_num_threads(self.threads or default_threads(comm.local_size))
            results = comm.allgather(self.worker(self.job, comm, post.line))
            comm.close()
        except BaseException as error:
            post.failed(type(error).__name__, str(error), traceback.format_exc())
            raise
        post.done()
        return results


def default_threads(ranks_here: int) -> int:
    """Torch threads of a rank: the cores that this process may use, over the ranks of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)
