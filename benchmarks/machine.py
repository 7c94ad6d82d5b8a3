"""What a figure needs beside it: the machine, the libraries, the commit, the load of others."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # it has no stubs

CHECKOUT = Path(__file__).resolve().parent.parent


def describe() -> str:
    """Two lines: hardware and load; libraries and commit."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    blas = ", ".join(
        f"{Path(lib['filepath']).name.split('.so')[0]} {lib.get('architecture', '')} x{lib['num_threads']}"
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    )
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return (
        f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before\n"
        f"torch {torch.__version__}, numpy {np.__version__}, {blas}, commit {commit.stdout.strip()}"
    )


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, CPU seconds of this process and all below it): the second says little of what others ran meanwhile."""
    started, used = time.perf_counter(), _cpu_seconds()
    work()
    return time.perf_counter() - started, _cpu_seconds() - used


def _cpu_seconds() -> float:
    """Of all live processes of the tree, and of those that have ended and were waited for."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])  # user, system, and both of children that have ended
        except psutil.NoSuchProcess:
            continue
    return total
