"""Pretrains the encoder on the texts and histories of one or many lakes, without any label.

    items, interactions of each of pretrain.sources  ->  pretrain_texts, pretrain_windows, training
                                                     ->  <models>/pretrained-<date>-<hash>/

The folder holds an encoder and its tokenizer, for `jobs/finetune.py model.encoder=<folder>`, and a card that says what
it has seen. Of `lake.root` itself only the training part of the evaluation's split is used; titles of the lakes in
pretrain.exclude_items_of are taken out of every source that brings events.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec import config, progress
from flmrec import lake as lakes
from flmrec.columns import HOLDOUT, C, Tables
from flmrec.config import Config, LakeConfig, PretrainSource
from flmrec.data import mixing, split
from flmrec.data.index import dense_index
from flmrec.errors import DataContractError, UsageError
from flmrec.lake import Lake, LedgerRow
from flmrec.model import artifact, onnx
from flmrec.model.encoder import resolve_encoder
from flmrec.stages import finetune
from flmrec.text import augment
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training import checkpoint, reader
from flmrec.training.driver import check_slots, launch
from flmrec.training.pretrainer import PretrainJob
from flmrec.training.pretraining import PretrainResult, train
from flmrec.training.worker import EpochRow

STAGE = "pretrain"
SUMMARY = "pretraining.json"  # sources, losses and the rows of all ranks
Losses = dict[int, dict[str, float]]  # epoch: loss: mean, nats
_SETTINGS = ("pretrain", "model", "text", "evaluation")  # what changes the encoder
_FILES_PER_RANK = 4
_KEYED = "keyed"


@dataclass(frozen=True)
class Source:
    """One domain: its texts (item_id, text) and the events that may be used, None where its texts alone are."""

    settings: PretrainSource
    texts: DataFrame
    events: DataFrame | None


def run(spark: SparkSession, cfg: Config) -> Path:
    """The folder of the pretrained encoder. Raises UsageError, DataContractError or TrainingError."""
    started = time.monotonic()
    _check(spark, cfg)
    lake = Lake(spark, cfg.lake)
    stores = [Lake(spark, LakeConfig(root=source.root)) for source in cfg.pretrain.sources]
    targets = [Lake(spark, LakeConfig(root=root)) for root in cfg.pretrain.exclude_items_of]
    version = version_name(cfg, stores, targets)
    final = lake.models_folder() / version
    if (final / SUMMARY).exists():
        progress.console.print(f"  encoder {final} is there already")
        return final
    barred = _barred(targets)
    sources = [
        _source(cfg, store, settings, barred) for store, settings in zip(stores, cfg.pretrain.sources, strict=True)
    ]
    written = [_write_texts(lake, sources), _write_windows(lake, cfg, sources)]
    working = checkpoint.working_folder(lake.models_folder(), version)
    finetune.make_folder(working)
    results: list[PretrainResult] = launch(spark, cfg.training, train, _job(lake, cfg, working))
    rows = [row for result in results for row in result.rows]
    finetune.check_rows(rows, written[1].rows_out, lake.name(Tables.PRETRAIN_WINDOWS))
    _describe(working, cfg, lake, results[0].losses, rows)
    if cfg.model.onnx:
        onnx.export(working, cfg.model.pooling)
    checkpoint.publish(working, final)
    written.append(finetune.record_epochs(lake, cfg.run.id, version, [dataclasses.asdict(row) for row in rows]))
    lakes.record(lake, cfg.run.id, STAGE, written, time.monotonic() - started)
    progress.console.print(f"  encoder: {final} (jobs/finetune.py model.encoder={final})")
    return final


def version_name(cfg: Config, stores: list[Lake], targets: list[Lake]) -> str:
    """pretrained-<run.date>-<hash of settings, seed, ranks, versions of what is read and which source is lake.root>.

    Lakes may share a folder of models, and the encoder of one has seen what is held out of another.
    """
    inputs = [store.identity(table) for store in stores for table in (Tables.ITEMS, Tables.INTERACTIONS)]
    inputs += [store.identity(Tables.ITEMS) for store in targets]
    made_of = {
        "settings": {name: dataclasses.asdict(getattr(cfg, name)) for name in _SETTINGS},
        "ranks": cfg.training.ranks,
        "seed": cfg.run.seed,
        "inputs": inputs,
        "own": _domains(cfg)[1],
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"pretrained-{cfg.run.date:%Y%m%d}-{digest}"


def _check(spark: SparkSession, cfg: Config) -> None:
    if not cfg.pretrain.sources:
        raise UsageError("pretrain.sources names no lake: give a list of {root: <lake.root of an ingested lake>}.")
    if cfg.model.tuning == "frozen":
        raise UsageError("model.tuning=frozen leaves jobs/pretrain.py nothing to train: use full or lora.")
    augment.translator(cfg.pretrain.text.translator)
    if cfg.model.onnx:
        onnx.check_packages()
    check_slots(spark, cfg.training)


def _barred(targets: list[Lake]) -> DataFrame | None:
    keys = [mixing.keys_of(target.read(Tables.ITEMS)) for target in targets]
    if not keys:
        return None
    together = keys[0]
    for more in keys[1:]:
        together = together.union(more)
    return together.distinct()


def _source(cfg: Config, store: Lake, settings: PretrainSource, barred: DataFrame | None) -> Source:
    """Titles are barred where there are events: texts without events tell nothing of who chose what."""
    items = store.read(Tables.ITEMS)
    if not settings.interactions:
        return Source(settings, mixing.texts_of(items, None), None)
    events = store.read(Tables.INTERACTIONS)
    if _place(settings.root) == _place(cfg.lake.root):
        events = split.training_events(events, cfg.evaluation, HOLDOUT)
    return Source(settings, mixing.texts_of(items, barred), events)


def _place(root: str) -> str:
    """Alike for all ways to write the same folder, or the same schema of a catalog."""
    root = root.removeprefix("file://")
    if LakeConfig(root=root).in_catalog:
        return root.lower()
    return root.rstrip("/") if "://" in root else str(Path(root).resolve())


def _domains(cfg: Config) -> tuple[list[int], int | None]:
    """The number of each source's lake, and that of lake.root, None where it is no source."""
    places = [_place(source.root) for source in cfg.pretrain.sources]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    return [numbers[place] for place in places], numbers.get(_place(cfg.lake.root))


def _write_texts(lake: Lake, sources: list[Source]) -> LedgerRow:
    """Each text of a source once, numbered over all sources from 1."""
    keyed = None
    for number, source in enumerate(sources):
        texts = source.texts.select(F.lit(number).alias(C.SOURCE), C.TEXT).distinct()
        keyed = texts if keyed is None else keyed.union(texts)
    assert keyed is not None
    keyed = keyed.withColumn(_KEYED, F.concat_ws(":", C.SOURCE, C.TEXT))
    index, _ = dense_index(keyed.select(_KEYED), _KEYED, C.IDX, 1)
    rows = keyed.join(index, _KEYED).select(C.IDX, C.SOURCE, C.TEXT)
    return _written(lake, Tables.PRETRAIN_TEXTS, rows)


def _write_windows(lake: Lake, cfg: Config, sources: list[Source]) -> LedgerRow:
    """The sources' windows, each as often as the temperature says, in files for the ranks."""
    plan, seed = cfg.pretrain, cfg.run.seed
    texts = lake.read(Tables.PRETRAIN_TEXTS)
    windows = []
    for number, source in enumerate(sources):
        own = texts.where(F.col(C.SOURCE) == number)
        if source.events is None:
            windows.append(mixing.bags(own, plan.window_events, seed).persist())
            continue
        index = source.texts.join(own, C.TEXT).select(C.ITEM, F.col(C.IDX).alias(C.ITEM_IDX))
        windows.append(mixing.histories(source.events, index, plan.window_events).persist())
    counts = [rows.count() for rows in windows]
    for source, count in zip(sources, counts, strict=True):
        if not count:
            raise DataContractError(
                f"The source {source.settings.root} has nothing to learn from: no item with text is left, or no user "
                "had two of them; leave it out of pretrain.sources."
            )
    mixed = None
    ratios = mixing.ratios(counts, [source.settings.weight for source in sources], plan.temperature)
    for number, (rows, ratio) in enumerate(zip(windows, ratios, strict=True)):
        labelled = mixing.repeated(rows, ratio, seed).withColumn(C.SOURCE, F.lit(number))
        mixed = labelled if mixed is None else mixed.union(labelled)
    assert mixed is not None
    dealt = mixed.repartition(cfg.training.num_proc * _FILES_PER_RANK, C.SOURCE, C.USER_IDX, C.WINDOW, "copy")
    # in an order of their own, since they arrive in any, and a run that goes on writes them again
    ordered = dealt.select(C.SOURCE, C.ITEM_IDX).sortWithinPartitions(F.xxhash64(C.SOURCE, C.ITEM_IDX))
    row = _written(lake, Tables.PRETRAIN_WINDOWS, ordered)
    for rows in windows:
        rows.unpersist()
    return row


def _written(lake: Lake, table: str, rows: DataFrame) -> LedgerRow:
    version = lake.write(table, rows)
    lake.pinned[table] = version  # what comes after reads what was just written
    n_rows = lake.rows_written(table, version)
    return LedgerRow(table=table, rows_in=n_rows, rows_out=n_rows, delta_version=version)


def _job(lake: Lake, cfg: Config, folder: Path) -> PretrainJob:
    encoder = resolve_encoder(cfg.model.encoder)
    domains, own_domain = _domains(cfg)
    return PretrainJob(
        windows=reader.scan(lake.live_files(Tables.PRETRAIN_WINDOWS)),
        texts=reader.scan(lake.live_files(Tables.PRETRAIN_TEXTS)),
        with_events=[source.interactions for source in cfg.pretrain.sources],
        domains=domains,
        own_domain=own_domain,
        tokenizer=tokenizer_ref(encoder, cfg.text.max_tokens),
        encoder=encoder,
        pooling=cfg.model.pooling,
        tuning="lora" if cfg.model.tuning == "lora" else "full",
        folder=str(folder),
        plan=cfg.pretrain,
        reader=cfg.training.reader,
        seed=cfg.run.seed,
        checkpoint_s=cfg.training.checkpoint_s,
    )


def _describe(folder: Path, cfg: Config, lake: Lake, losses: Losses, rows: list[EpochRow]) -> None:
    """Card, summary and configuration beside the encoder."""
    texts, windows = (_counts(lake, table) for table in (Tables.PRETRAIN_TEXTS, Tables.PRETRAIN_WINDOWS))
    sources = [
        {"root": s.root, "texts": texts[i], "windows": windows[i], "seen": "histories" if s.interactions else "texts"}
        for i, s in enumerate(cfg.pretrain.sources)
    ]
    summary = {"sources": sources, "losses": losses, "rows": [dataclasses.asdict(row) for row in rows]}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    (folder / artifact.CONFIG).write_text(config.dump(cfg), encoding="utf-8")
    (folder / artifact.CARD).write_text(_card(cfg, sources, losses), encoding="utf-8")


def _counts(lake: Lake, table: str) -> dict[int, int]:
    """Rows of each source."""
    return {row[C.SOURCE]: row["count"] for row in lake.read(table).groupBy(C.SOURCE).count().collect()}


def _adapters(cfg: Config) -> list[str]:
    if not cfg.pretrain.adapter_rank:
        return []
    own = _domains(cfg)[1] is not None
    merged = f"that of {cfg.lake.root} is merged into this encoder" if own else "none of them is in this encoder"
    return [f"Each lake had an adapter of rank {cfg.pretrain.adapter_rank} beside the shared weights: {merged}."]


def _card(cfg: Config, sources: list[dict[str, Any]], losses: Losses) -> str:
    """README.md of the folder: what the encoder is and what it has seen."""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in vars(cfg.pretrain.losses).items() if weight)
    excluded = ", ".join(cfg.pretrain.exclude_items_of)
    names = list(next(iter(losses.values())))
    lines = [
        f"# Encoder pretrained on {cfg.run.date}",
        "",
        f"Made by `jobs/pretrain.py` from {cfg.model.encoder}; tuning {cfg.model.tuning}, pooling {cfg.model.pooling}.",
        "Use it as `model.encoder=<this folder>`.",
        "",
        "| source | what was seen | texts | windows an epoch |",
        "|---|---|---|---|",
        *(f"| {s['root']} | {s['seen']} | {s['texts']} | {s['windows']} |" for s in sources),
        "",
        f"Titles of {excluded} were left out of histories." if excluded else "No titles were left out.",
        *_adapters(cfg),
        f"Weights of the losses: {weights}. Means of the epochs, nats:",
        "",
        f"| epoch | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        *(f"| {epoch} | {' | '.join(f'{values[name]:.4f}' for name in names)} |" for epoch, values in losses.items()),
    ]
    return "\n".join(lines) + "\n"
