"""Files that Spark hands to its executors, needed for a part of a session only."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pyspark import SparkContext, SparkFiles


@contextmanager
def items_prefix() -> Iterator[Path]:
    """How the names of files begin that are written to be given to `SparkContext.addFile`. Leaving empties them.

    They stay, empty: an executor that comes later fetches every file ever added before its first task, and fails where
    one is gone; Spark cannot take one back. It removes their folder, its own, when it stops, and copies none within it.
    """
    prefix = Path(SparkFiles.getRootDirectory()) / f"items-{uuid.uuid4().hex}"  # addFile refuses a name twice
    try:
        yield prefix
    finally:
        for path in sorted(prefix.parent.glob(f"{prefix.name}*")):
            empty = path.with_name(f"{path.name}.empty")
            empty.touch()
            empty.replace(path)  # instead of truncating it: who has it mapped keeps what was there


@contextmanager
def array(context: SparkContext, values: np.ndarray) -> Iterator[str]:
    """The name by which executors find the array, with `SparkFiles.get`; all workers of a machine share one copy."""
    with items_prefix() as prefix:
        file = prefix.with_suffix(".npy")
        np.save(file, values)
        context.addFile(str(file))
        yield file.name
