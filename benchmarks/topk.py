"""The kernel beside what a user would pick instead, on the same factors in one run, turn by turn.

    .venv/bin/python benchmarks/topk.py [--shapes 8192x100000x128x100 ...] [--turns 3] [--only faiss float32 matmul ...]
                                      [--factors random skewed trained] [--grow] [--threads 1]

Shapes are users x items x dimensions x k; 50 items a user are excluded by flmrec, the others look for k + 50 (numpy: k)
and leave the excluded ones for later. `random` factors are normal; `skewed` ones have items with Pareto lengths, as a
long-tailed catalogue gives; `trained` ones are those of ALS on such a log, as implicit makes them. Prints users/s, best
of the turns, and the ratio to FAISS IndexFlatIP, also of the CPU seconds, for machines that are not quiet; checks 100
lists against FAISS. `float32` is flmrec where the processor has no 8-bit products, `matmul` the float32 products of
torch without any selection.
--grow times users x1, x2, x4, x8, then items likewise. With --threads 1 nobody waits for another thread, so that CPU
seconds compare on a busy machine.
"""

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", str(os.cpu_count()))  # FAISS and numpy do best with all cores
import faiss
import implicit
import numpy as np
import scipy.sparse as sp
import torch
from implicit.cpu.topk import topk as implicit_topk
from threadpoolctl import threadpool_limits

from benchmarks import machine
from flmrec.scoring.items import prepare
from flmrec.scoring.topk import search, top_k

SHAPES = ("8192x100000x128x100", "100000x20000x64x20", "1000x1000000x128x100")
SEEN, SEED = 50, 7
Factors = tuple[np.ndarray, np.ndarray]
Contender = Callable[[], np.ndarray]


def random(n: int, m: int, dim: int) -> Factors:
    rng = np.random.default_rng(SEED)
    return rng.standard_normal((n, dim), dtype=np.float32), rng.standard_normal((m, dim), dtype=np.float32)


def skewed(n: int, m: int, dim: int) -> Factors:
    users, items = random(n, m, dim)
    return users, items * (np.random.default_rng(SEED).pareto(2.0, m).astype(np.float32) + 0.2)[:, None]


def trained(n: int, m: int, dim: int) -> Factors:
    """iALS of a log with 30 events a user, items by a Zipf law, users with a taste for one of 50 parts of them."""
    rng = np.random.default_rng(SEED)
    rows = np.repeat(np.arange(n), 30)
    items = np.minimum(rng.zipf(1.3, len(rows)) - 1 + (rows % 50) * (rng.random(len(rows)) < 0.7) * 37, m - 1)
    items = rng.permutation(m)[items]
    log = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, items)), shape=(n, m))
    model = implicit.als.AlternatingLeastSquares(factors=dim, iterations=5, random_state=SEED, use_gpu=False)
    with threadpool_limits(1, "blas"):  # implicit has threads of its own
        model.fit(log, show_progress=False)
    return np.ascontiguousarray(model.user_factors), np.ascontiguousarray(model.item_factors)


def contenders(users: np.ndarray, items: np.ndarray, k: int) -> dict[str, Contender]:
    n, m = len(users), len(items)
    indptr = np.arange(n + 1, dtype=np.int64) * SEEN
    seen = np.random.default_rng(SEED + 1).integers(0, m, n * SEEN).astype(np.int32)
    index = faiss.IndexFlatIP(users.shape[1])
    index.add(items)

    def numpy_argpartition() -> np.ndarray:
        best = np.empty((n, k), np.int64)
        for first in range(0, n, 1024):
            scores = users[first : first + 1024] @ items.T
            part = np.argpartition(scores, -k, axis=1)[:, -k:]
            order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1)
            best[first : first + 1024] = np.take_along_axis(part, order, 1)
        return best

    def float32() -> np.ndarray:  # what a processor without 8-bit products runs
        threads = torch.get_num_threads()
        prepared = prepare(items, allow=None, codes=False, threads=threads)
        return search(prepared, users, k, exclude=(indptr, seen), threads=threads)[0]

    def matmul() -> np.ndarray:  # the products alone, in the same blocks
        left, right = torch.from_numpy(users), torch.from_numpy(items)
        for first in range(0, n, 1024):
            for at in range(0, m, 8192):
                scores = left[first : first + 1024] @ right[at : at + 8192].T
        return scores.numpy()

    return {
        "float32": float32,
        "matmul": matmul,
        "flmrec": lambda: top_k(users, items, k, exclude=(indptr, seen))[0],
        "faiss": lambda: index.search(users, k + SEEN)[1],
        "implicit": lambda: implicit_topk(items, users, k + SEEN)[0],
        "numpy": numpy_argpartition,
    }


def check(users: np.ndarray, items: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    """The lists of 100 users, theirs without what was excluded from ours, have the same scores."""
    n, k = ours.shape
    seen = np.random.default_rng(SEED + 1).integers(0, len(items), n * SEEN).reshape(n, SEEN)
    for row in np.random.default_rng(0).choice(n, min(n, 100), replace=False):
        want = theirs[row][~np.isin(theirs[row], seen[row])][:k]
        a, b = items[ours[row]] @ users[row], items[want] @ users[row]
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4), f"the list of user {row} is not that of FAISS"


def compare(shape: str, kind: Callable[[int, int, int], Factors], turns: int, names: list[str]) -> None:
    n, m, dim, k = map(int, shape.split("x"))
    users, items = kind(n, m, dim)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    found: dict[str, np.ndarray] = {}
    runs = contenders(users, items, k)
    for _ in range(turns + 1):  # the first warms up
        for name in names:
            seconds[name].append(machine.timed(lambda: found.update({name: runs[name]()})))  # noqa: B023 (runs now)
    if "faiss" in names:
        check(users, items, found["flmrec"], found["faiss"])
    best = {name: min(times[1:])[0] for name, times in seconds.items()}
    cpu = {name: min(used for _, used in times[1:]) for name, times in seconds.items()}
    gflops = 2 * n * m * dim / 1e9
    for name in names:
        beside = ""
        if "faiss" in names:
            beside = f"{best['faiss'] / best[name]:6.2f} x faiss, {cpu['faiss'] / cpu[name]:6.2f} by CPU time"
        print(
            f"{shape:>24} {kind.__name__:>8} {name:>9}: {n / best[name]:10,.0f} users/s "
            f"{gflops / best[name]:6.0f} GFLOP/s {beside}",
            flush=True,
        )


def grow(turns: int) -> None:
    for factor in (1, 2, 4, 8):
        compare(f"{4096 * factor}x50000x128x100", random, turns, ["flmrec"])
    for factor in (1, 2, 4, 8):
        compare(f"4096x{50_000 * factor}x128x100", random, turns, ["flmrec"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["faiss", "implicit", "numpy"], help="compare with these only")
    parser.add_argument("--factors", nargs="*", default=["random", "skewed", "trained"])
    parser.add_argument("--grow", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every contender")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    print(machine.describe())
    if args.grow:
        return grow(args.turns)
    for shape in args.shapes:
        for kind in (random, skewed, trained):
            if kind.__name__ in args.factors:
                compare(shape, kind, args.turns, ["flmrec", *args.only])
    return None


if __name__ == "__main__":
    main()
