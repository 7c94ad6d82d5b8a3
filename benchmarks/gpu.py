"""What one rank does on a GPU: encode all texts, score users, and train one fit, beside sentence-transformers on the
same device.

    .venv/bin/python jobs/ingest.py --config CONF lake.root=LAKE ; .venv/bin/python jobs/tokenize.py ... (the same)
    .venv/bin/python benchmarks/gpu.py pack --config CONF --out FOLDER lake.root=LAKE
    python benchmarks/gpu.py run FOLDER

`pack` needs Spark and leaves in FOLDER all that the holdout fit's ranks read. `run` needs no Spark and no Java: torch,
transformers, pyarrow, safetensors, tokenizers, pydantic, numba; sentence-transformers where it is installed. It trains
by the inline launcher's communicator and the Arrow reader, on the GPU where there is one, and prints seconds and what
validation gives after each epoch. Texts are decoded from the tokens for the peer, which tokenizes them inside its time.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout

from benchmarks import machine
from flmrec.model import encoder as encoders
from flmrec.model.encoder import DEFAULT_ENCODER, TuningOptions, encode_rows, load_encoder, resolve_encoder
from flmrec.model.recipe import AlignmentRecipe, LinearRecipe, Recipe, TowerRecipe
from flmrec.scoring import gpu
from flmrec.scoring.items import prepare
from flmrec.scoring.topk import has_fast_int8, search
from flmrec.training import reader
from flmrec.training.comm import SingleCommunicator, own_device
from flmrec.training.inputs import Texts
from flmrec.training.worker import FitJob, train

JOB, MAX_TOKENS = "job.json", 64
N_TEXTS, N_PEER = 65_536, 12_288  # to encode


def main() -> None:
    args = _arguments()
    if args.verb == "pack":
        pack(args.config, args.overrides, Path(args.out))
    else:
        print(machine.describe(), torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", flush=True)
        run(Path(args.folder))


def pack(conf: str, overrides: list[str], out: Path) -> None:
    from flmrec import config
    from flmrec.columns import HOLDOUT
    from flmrec.lake import Lake
    from flmrec.stages import preparation
    from jobs.common import open_session

    cfg = config.load(conf, overrides)
    spark = open_session(cfg, "flmrec-benchmark")
    out.mkdir(parents=True)
    job = preparation.prepare(Lake(spark, cfg.lake), cfg, HOLDOUT, out, None)
    for name in ("sequences", "item_tokens"):
        (out / name).mkdir()
        for place, file in enumerate(getattr(job, name)):
            shutil.copy(file.path.removeprefix("file:"), out / name / f"{place:04d}.parquet")
    kept = {
        "n_items": job.n_items,
        "weighted": job.weighted,
        "seed": job.seed,
        "recipe": dataclasses.asdict(job.recipe),
    }
    (out / preparation.LINEAR).unlink()  # of no use to the ranks, and large
    (out / JOB).write_text(json.dumps(kept, indent=1))
    spark.stop()


def run(folder: Path) -> None:
    kept = json.loads((folder / JOB).read_text())
    sequences, tokens = (
        reader.scan([str(path) for path in sorted((folder / name).glob("*.parquet"))])
        for name in ("sequences", "item_tokens")
    )
    texts, device = Texts.read(tokens, kept["n_items"]), own_device(0)
    own_rates(texts, device)
    scoring_rates(device)
    made = kept["recipe"]
    plan = Recipe(
        tower=TowerRecipe(**made["tower"]), alignment=AlignmentRecipe(**made["alignment"]),
        linear=LinearRecipe.of(made["linear"]), pooling=made["pooling"], tuning=made["tuning"],
        options=TuningOptions(**made["options"]),
    )  # fmt: skip
    job = FitJob(
        sequences=sequences, weighted=kept["weighted"], item_tokens=tokens, encoder=resolve_encoder(DEFAULT_ENCODER),
        folder=str(folder), recipe=plan, n_items=kept["n_items"], reader="arrow", seed=kept["seed"],
        checkpoint_s=float("inf"),
    )  # fmt: skip
    seconds, found = timed(lambda: train(job, SingleCommunicator(), lambda line: print(line, flush=True)))
    epochs = " ".join(f"{row.seconds:.1f}" for row in found.rows)
    print(f"fit: {seconds:.1f} s, {len(found.rows)} epochs ({epochs} s), {found.epochs} kept", flush=True)
    if find_spec("sentence_transformers"):
        peer_rates(texts, device)


def own_rates(texts: Texts, device: torch.device) -> None:
    """Texts a second from tokens, by batch and precision; the second of two passes, since kernels load in the first."""
    encoder = load_encoder(DEFAULT_ENCODER, "mean").to(device)
    ids, lengths = many(texts)
    kept = encoders._BATCH_TOKENS[device.type]
    for tokens, bf16 in itertools.product((2048, 8192, 32_768, 131_072), (False, True)):
        encoders._BATCH_TOKENS[device.type] = tokens
        for _ in range(2):
            seconds, _ = timed(lambda bf16=bf16: encode_rows(encoder, ids, lengths, device, bf16=bf16))  # type: ignore[misc]
        name = "bf16" if bf16 else "float32"
        print(f"encode, {tokens} tokens a batch, {name}: {len(ids) / seconds:,.0f} texts/s", flush=True)
    encoders._BATCH_TOKENS[device.type] = kept


def scoring_rates(device: torch.device) -> None:
    """Users a second of the scoring kernel by the products of the device and by those of the processor, k = 100; the
    second of two passes."""
    rng = np.random.default_rng(0)
    for n_users, n_items in ((8_192, 100_000), (1_024, 1_000_000)):
        users, factors = (rng.standard_normal((n, 128), dtype=np.float32) for n in (n_users, n_items))
        items = prepare(factors, allow=None, codes=has_fast_int8(), threads=torch.get_num_threads())
        for name, those in (("processor", items), (device.type, gpu.placed(items, device))):
            for _ in range(2):
                seconds, found = timed(lambda i=those, u=users: search(i, u, 100, threads=torch.get_num_threads()))  # type: ignore[misc]
            print(f"score, {n_items:,} items, {name}: {n_users / seconds:,.0f} users/s, {found[0].sum()}", flush=True)


def peer_rates(texts: Texts, device: torch.device) -> None:
    """Texts a second of sentence-transformers, which tokenizes them inside its time."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{resolve_encoder(DEFAULT_ENCODER)}/tokenizer.json")
    words = [tokenizer.decode(row[:n].tolist()) for row, n in zip(*many(texts), strict=True)][:N_PEER]
    for (name, dtype), batch in itertools.product((("float32", torch.float32), ("bf16", torch.bfloat16)), (32, 512)):
        peer = SentenceTransformer(resolve_encoder(DEFAULT_ENCODER), device=str(device)).to(dtype)
        peer.max_seq_length = MAX_TOKENS
        peer.encode(words[:4096], batch_size=batch, show_progress_bar=False)
        seconds, _ = timed(lambda p=peer, b=batch: p.encode(words, batch_size=b, show_progress_bar=False))  # type: ignore[misc]
        print(f"SentenceTransformer.encode, {name}, batch {batch}: {len(words) / seconds:,.0f} texts/s", flush=True)


def many(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """(N_TEXTS, L) token ids and their lengths: the texts that there are, over and over."""
    real = np.resize(np.flatnonzero(texts.n_tokens), N_TEXTS)
    return texts.input_ids[real], texts.n_tokens[real]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing, running = verbs.add_parser("pack"), verbs.add_parser("run")
    packing.add_argument("--config", required=True)
    packing.add_argument("--out", required=True)
    packing.add_argument("overrides", nargs="*")
    running.add_argument("folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
