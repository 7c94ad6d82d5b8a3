"""Checkpoints of a training run, and the folder that becomes the published model.

A version is trained in `<models>/<version>.partial/`, which holds at most one checkpoint: one safetensors file, whose
header carries the state that is no tensor as JSON. It is written beside and renamed, so a crash leaves the previous one
whole. `publish` renames the finished folder to `<models>/<version>/`: a version is there completely or not at all.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flmrec.errors import TrainingError
from flmrec.training.comm import Communicator

_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """State after a number of finished epochs. `state` is JSON; `tensors` may live on any device."""

    epoch: int  # epochs finished
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def working_folder(models: Path, version: str) -> Path:
    return models / f"{version}.partial"


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Replaces the folder's checkpoint in one step. Called on rank 0."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f".{_FILE}"
    header = {"epoch": str(checkpoint.epoch), "state": json.dumps(checkpoint.state)}
    # clones: tensors that share memory, such as tied weights, cannot be written as they are
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, written, metadata=header)
    with written.open("rb") as file:
        os.fsync(file.fileno())
    written.replace(folder / _FILE)


def load(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, on the CPU; None where training has not finished an epoch.

    Raises TrainingError when there is one that cannot be read: a resume that failed does not quietly start afresh.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return Checkpoint(int(header["epoch"]), tensors, json.loads(header["state"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The checkpoint {path} cannot be read ({error}): remove {folder} to train this version from the start."
        ) from error


def restore(comm: Communicator, folder: Path) -> Checkpoint | None:
    """`load` on rank 0, the same checkpoint on every rank (on the CPU). Collective; only rank 0 touches the folder."""
    found = load(folder) if comm.rank == 0 else None
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in found.tensors.items()} if found else {}
    about = comm.allgather((found.epoch, found.state, shapes) if found else None)[0]
    if about is None:
        return None
    epoch, state, shapes = about
    own = dict(found.tensors) if found else {}
    tensors = {name: own[name] if own else torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    on_device = [tensor.to(comm.device) for tensor in tensors.values()]
    comm.broadcast_(on_device)
    return Checkpoint(epoch, {name: t.cpu() for name, t in zip(tensors, on_device, strict=True)}, state)


def publish(working: Path, final: Path) -> None:
    """Makes the finished folder the version, without its checkpoint. One rename: other processes see all or nothing."""
    (working / _FILE).unlink(missing_ok=True)
    if final.exists():  # a version trained anew on purpose
        shutil.rmtree(final)
    working.rename(final)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON state) of an optimizer, for a Checkpoint; `unpack_optimizer` puts them back."""
    saved = optimizer.state_dict()
    tensors, plain = {}, {}
    for index, values in saved["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                plain[f"optimizer.{index}.{name}"] = value
    return tensors, {"param_groups": saved["param_groups"], "values": plain}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Loads what `pack_optimizer` gave; `tensors` may hold others beside."""
    loaded: dict[int, dict[str, Any]] = {}
    for key, value in chain(tensors.items(), state["values"].items()):
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            loaded.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": loaded, "param_groups": state["param_groups"]})
