"""Collectives between the ranks of one training run, the same for every launcher.

A rank's algorithm gets a `Communicator` and knows nothing else of Horovod or torch.distributed. All calls are
collective: every rank makes the same calls in the same order with tensors of the same shapes and dtypes, unless said
otherwise. Tensors live on `comm.device`.
"""

import os
import pickle
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

_PATIENCE_S = 600  # how long a rank waits for another; Gloo's own 30 s are too short where a machine is busy
_CYCLE_MS = 5  # between Horovod's looks for work; at its own 1 ms the talk of two ranks makes a step a third longer
_BUCKET_BYTES = 32 * 2**20  # tensors travel in flat buckets of about this size


class Communicator(ABC):
    """One rank's end. `rank` in 0..size-1; `device` is the rank's own GPU where it has one, else the CPU."""

    rank: int
    size: int
    local_rank: int  # among the ranks of this machine, 0..local_size-1
    local_size: int
    device: torch.device

    @abstractmethod
    def sum_(self, tensor: Tensor) -> None:
        """Replaces a contiguous dense tensor by its sum over the ranks."""

    @abstractmethod
    def broadcast_one_(self, tensor: Tensor, root: int) -> None:
        """Replaces a contiguous dense tensor by that of rank `root`."""

    @abstractmethod
    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor, in rank order; the first dimension may differ between ranks."""

    def allreduce_mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces dense tensors of any shapes by their means over the ranks, in flat buckets."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = _flatten_dense_tensors(bucket)
            self.sum_(flat)
            _copy_back(flat.div_(self.size), bucket)

    def average_gradients_(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Averages the gradients over the ranks; a sparse one (`nn.Embedding(sparse=True)`) stays sparse.

        Only the rows that some rank touched travel then, so a table of millions of residuals costs what its batch
        costs. Parameters without a gradient are passed over: which they are has to be the same on every rank.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.grad is not None]
        self.allreduce_mean_([p.grad for p in trained if p.grad is not None and not p.grad.is_sparse])
        for p in trained:
            if p.grad is not None and p.grad.is_sparse:
                p.grad = self.mean_sparse(p.grad)

    def mean_sparse(self, gradient: Tensor) -> Tensor:
        """Mean over the ranks of sparse COO gradients (rows, ...) with one sparse dimension; coalesced."""
        gradient = gradient.coalesce()
        rows = torch.cat(self.gather(gradient.indices()[0])).unsqueeze(0)  # (1, touched by any rank)
        values = torch.cat(self.gather(gradient.values())) / self.size  # (touched, ...)
        return torch.sparse_coo_tensor(rows, values, gradient.shape, check_invariants=False).coalesce()

    def broadcast_(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Replaces dense tensors by those of rank `root`."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = _flatten_dense_tensors(bucket)
            self.broadcast_one_(flat, root)
            _copy_back(flat, bucket)

    def allgather_rows(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors (n_r, ...) one after the other in rank order: (sum of n_r, ...)."""
        return tensor if self.size == 1 else torch.cat(self.gather(tensor.contiguous()))

    def allgather(self, value: Any) -> list[Any]:
        """Each rank's picklable value, in rank order. For small things: counts, metrics, names."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self.device)
        return [pickle.loads(part.cpu().numpy().tobytes()) for part in self.gather(data)]

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.allgather(None)

    @abstractmethod
    def close(self) -> None:
        """Leaves the group; no collective call may follow."""

    def _settle(self) -> None:
        """Finds the ranks of this machine, and with them the device. First collective call of a new communicator."""
        self.device = torch.device("cpu")
        hosts = self.allgather(socket.gethostname())
        self.local_rank = hosts[: self.rank].count(hosts[self.rank])
        self.local_size = hosts.count(hosts[self.rank])


class SingleCommunicator(Communicator):
    """The only rank there is."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._settle()
        self.device = own_device(self.local_rank)

    def sum_(self, tensor: Tensor) -> None:
        pass

    def broadcast_one_(self, tensor: Tensor, root: int) -> None:
        pass

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def close(self) -> None:
        pass


class HorovodCommunicator(Communicator):
    """Horovod, over NCCL between GPUs where it was built with it, else over Gloo by way of the CPU's memory."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        os.environ.setdefault("HOROVOD_GLOO_TIMEOUT_SECONDS", str(_PATIENCE_S))
        if not hvd.nccl_built():  # steps of a GPU are too short to wait for it
            os.environ.setdefault("HOROVOD_CYCLE_TIME", str(_CYCLE_MS))
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self._settle()
        self.device = own_device(self.local_rank)

    def sum_(self, tensor: Tensor) -> None:
        sent = self._sendable(tensor)
        tensor.copy_(self._hvd.allreduce_(sent, op=self._hvd.Sum))

    def broadcast_one_(self, tensor: Tensor, root: int) -> None:
        sent = self._sendable(tensor)
        tensor.copy_(self._hvd.broadcast_(sent, root_rank=root))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        lengths = self._hvd.allgather(torch.tensor([len(tensor)])).tolist()
        return list(self._hvd.allgather(self._sendable(tensor)).to(tensor.device).split(lengths))

    def _sendable(self, tensor: Tensor) -> Tensor:
        return tensor if self._hvd.nccl_built() else tensor.cpu()

    def close(self) -> None:
        self._hvd.shutdown()


class TorchCommunicator(Communicator):
    """torch.distributed, whose addresses the launcher has put into the environment: Gloo or NCCL."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._settle()
        self.device = own_device(self.local_rank)

    def sum_(self, tensor: Tensor) -> None:
        self._dist.all_reduce(tensor)

    def broadcast_one_(self, tensor: Tensor, root: int) -> None:
        self._dist.broadcast(tensor, src=root)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        own = torch.tensor([len(tensor)], device=tensor.device)
        lengths = [torch.zeros_like(own) for _ in range(self.size)]
        self._dist.all_gather(lengths, own)
        counts = [int(n) for n in lengths]
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._dist.all_gather(parts, padded)
        return [part[:n] for part, n in zip(parts, counts, strict=True)]

    def close(self) -> None:
        self._dist.destroy_process_group()


def own_device(local_rank: int) -> torch.device:
    """The GPU of this rank: one rank a GPU. The CPU where the machine has none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def task_device() -> torch.device:
    """The GPU of this Spark task, by the number of its partition; the CPU where the machine has none."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return own_device(context.partitionId() if context is not None else 0)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of one dtype and about _BUCKET_BYTES (a larger tensor alone), the same on every rank."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        bucket: list[Tensor] = []
        filled = 0
        for tensor in group:
            if bucket and filled + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket, filled = [], 0
            bucket.append(tensor)
            filled += tensor.nbytes
        yield bucket


def _copy_back(flat: Tensor, bucket: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, mean in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            tensor.copy_(mean)
