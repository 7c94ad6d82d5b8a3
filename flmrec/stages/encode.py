"""Vectors of all texts by the fine-tuned encoder, as AutoModel on the saved folder gives them, in bfloat16 where the
processor is fast at it, as in training. `model.user_encoder` encodes what users say in its place.

    item_tokens, (holdout_)user_tokens, model folder  ->  (holdout_)item_vectors, (holdout_)user_vectors

The language model runs once per distinct text. Items and users without text have no row.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import lake as lakes
from flmrec.columns import HOLDOUT, C, Tables, table_of
from flmrec.config import Config
from flmrec.lake import Lake, LedgerRow
from flmrec.model import artifact
from flmrec.model.encoder import Pooling, resolve_encoder
from flmrec.stages import versions

_HASHED = f"{C.CONTENT_HASH} STRING, {C.VECTOR} ARRAY<FLOAT>"


@dataclass(frozen=True)
class EncoderRef:
    """An encoder as executors find it."""

    folder: str  # or hub name
    pooling: Pooling


def run(spark: SparkSession, cfg: Config, fit: str) -> None:
    started = time.monotonic()
    lake = Lake(spark, cfg.lake)
    folder = versions.folder_of(lake, cfg, fit)
    written = []
    tuned = EncoderRef(str(folder), artifact.pooling_of(folder))
    own = cfg.model.user_encoder
    of_users = tuned if own is None else EncoderRef(resolve_encoder(own), cfg.model.pooling)
    user_tokens = table_of(Tables.USER_TOKENS, fit)
    for tokens, vectors, ref in (
        (Tables.ITEM_TOKENS, Tables.ITEM_VECTORS, tuned),
        (user_tokens, Tables.USER_VECTORS, of_users),
    ):
        rows = encoded(lake.read(tokens), ref, _tasks(spark), int8=cfg.model.int8)
        name = table_of(vectors, fit)
        version = lake.write(name, rows.withColumn(C.MODEL_VERSION, F.lit(folder.name)))
        n_rows = lake.rows_written(name, version)
        written.append(LedgerRow(table=name, rows_in=n_rows, rows_out=n_rows, delta_version=version))
    stage = f"encode {fit}" if fit == HOLDOUT else "encode"
    lakes.record(lake, cfg.run.id, stage, written, time.monotonic() - started)


def encoded(tokens: DataFrame, ref: EncoderRef, n_tasks: int, *, int8: bool = False) -> DataFrame:
    """(id, vector) of the rows of TOKENS that have text; equal texts, by their hash, are encoded once."""
    with_text = tokens.where(F.col(C.N_TOKENS) > 0)
    distinct = with_text.dropDuplicates([C.CONTENT_HASH]).select(C.CONTENT_HASH, C.N_TOKENS, C.INPUT_IDS)
    # every task gets texts of all lengths, in one Arrow batch after the other, and sorts them by length itself
    dealt = distinct.repartition(n_tasks, C.CONTENT_HASH)
    vectors = dealt.mapInArrow(partial(encode_partition, ref=ref, int8=int8), _HASHED)
    return with_text.select(C.ID, C.CONTENT_HASH).join(vectors, C.CONTENT_HASH).select(C.ID, C.VECTOR)


def encode_partition(
    batches: Iterator[pa.RecordBatch], ref: EncoderRef, int8: bool = False
) -> Iterator[pa.RecordBatch]:
    """For mapInArrow: (content_hash, n_tokens, input_ids) to (content_hash, vector); the encoder is loaded once."""
    import torch

    from flmrec.model.compression import quantized
    from flmrec.model.encoder import bf16_is_fast, encode_rows, load_encoder
    from flmrec.training.comm import task_device
    from flmrec.training.reader import padded

    torch.set_num_threads(1)  # a task has one core
    encoder = None
    device = task_device()
    int8 = int8 and device.type == "cpu"
    bf16 = bf16_is_fast(device) and not int8
    for batch in batches:
        if encoder is None:
            encoder = load_encoder(ref.folder, ref.pooling).eval().to(device)
            if int8:
                encoder = quantized(encoder)
        n_tokens = batch.column(C.N_TOKENS).to_numpy()
        vectors = encode_rows(encoder, padded(batch.column(C.INPUT_IDS)), n_tokens, device, bf16=bf16)
        values = pa.ListArray.from_arrays(
            pa.array(np.arange(len(vectors) + 1) * vectors.shape[1], pa.int32()), pa.array(vectors.ravel())
        )
        yield pa.RecordBatch.from_arrays([batch.column(C.CONTENT_HASH), values], [C.CONTENT_HASH, C.VECTOR])


def _tasks(spark: SparkSession) -> int:
    return spark.sparkContext.defaultParallelism
