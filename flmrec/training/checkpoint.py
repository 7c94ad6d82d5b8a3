"""Checkpoints of a training run, and the folder that becomes the published model.

A version is trained in `<models>/<version>.partial/`, which holds at most one checkpoint: one safetensors file, whose
header carries what is no tensor as JSON. It is written beside and renamed, so a crash leaves the previous one whole.
`publish` renames the finished folder to `<models>/<version>/`: a version is there completely or not at all.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flmrec.errors import TrainingError
from flmrec.training.comm import Communicator

_FILE = "checkpoint.safetensors"
_PARTIAL = ".partial"  # behind the name of a version in the making


@dataclass(frozen=True)
class Checkpoint:
    """State after a number of finished epochs: dicts with string or integer keys, lists, tensors, JSON's scalars."""

    epoch: int  # epochs finished
    state: Any


def working_folder(models: Path, version: str) -> Path:
    return models / f"{version}{_PARTIAL}"


def is_whole(folder: Path) -> bool:
    """Whether the folder was published, and is not what a crash has left."""
    return folder.suffix != _PARTIAL


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replaces the folder's checkpoint in one step. Called on rank 0."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f".{_FILE}"
    tensors: dict[str, Tensor] = {}
    header = {"epoch": str(checkpoint.epoch), "state": json.dumps(_take_out(checkpoint.state, tensors))}
    save_file(tensors, written, metadata=header)
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(folder / _FILE)


def load(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, on the CPU; None where there is none.

    Raises TrainingError when there is one that cannot be read: a resume that failed does not quietly start afresh.
    """
    found = _load(folder)
    return None if found is None else Checkpoint(found[0], _put_back(found[1], found[2]))


def restore(comm: Communicator, folder: Path) -> Checkpoint | None:
    """`load` on rank 0, the same checkpoint on every rank (on the CPU). Collective; only rank 0 touches the folder."""
    found = _load(folder) if comm.rank == 0 else None
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in found[2].items()} if found else {}
    about = comm.allgather((found[0], found[1], shapes) if found else None)[0]
    if about is None:
        return None
    epoch, state, shapes = about
    own = found[2] if found else {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    on_device = {name: tensor.to(comm.device) for name, tensor in own.items()}
    comm.broadcast_(list(on_device.values()))
    return Checkpoint(epoch, _put_back(state, {name: tensor.cpu() for name, tensor in on_device.items()}))


def publish(working: Path, final: Path) -> None:
    """Makes the finished folder the version, without its checkpoint. One rename: other processes see all or nothing."""
    for name in (_FILE, f".{_FILE}"):
        (working / name).unlink(missing_ok=True)
    _share(working)
    if final.exists():  # a version trained anew on purpose
        shutil.rmtree(final)
    working.rename(final)


def _share(folder: Path) -> None:
    """safetensors writes files that the owner alone can read; a published model is read by whom the umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


def _load(folder: Path) -> tuple[int, Any, dict[str, Tensor]] | None:
    """(epoch, state with names instead of tensors, tensors by name)."""
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return int(header["epoch"]), json.loads(header["state"]), tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {path} cannot be read ({error}): remove {folder} to train this version from the start."
        ) from error


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors go into `tensors`, copied, since those that share memory cannot be written."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _take_out(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_out(entry, tensors) for entry in value]
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_back(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _put_back(entry, tensors) for key, entry in value["dict"]}
