"""Files that Spark hands to its executors, needed for a part of a session only."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark import SparkFiles


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
