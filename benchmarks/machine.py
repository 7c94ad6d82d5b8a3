"""What a figure needs beside it: the machine, the libraries, the commit, the load of others."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
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
