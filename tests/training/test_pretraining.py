"""Pretraining on one rank with a tiny encoder: pools, masks, all objectives, a break and its resumption."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flmrec.columns import C
from flmrec.config import HistoryAugmentConfig, PretrainConfig, PretrainLosses, TextAugmentConfig
from flmrec.errors import UsageError
from flmrec.model.encoder import load_encoder
from flmrec.model.pretraining import IGNORED
from flmrec.text.tokenization import tokenizer_ref
from flmrec.training import checkpoint, pretrainer, pretraining, reader
from flmrec.training.comm import SingleCommunicator
from flmrec.training.pretrainer import Corpus, Pretrainer, PretrainJob
from tests.small import KINDS, write_encoder

TEXTS = [f"{kind} {name}" for kind in ("garden", "kitchen", "music") for name in KINDS[kind]]  # 6 of a kind
EVERYTHING = PretrainConfig(
    losses=PretrainLosses(next_item=1, masked_item=1, history_contrast=0.5, text_contrast=0.5, mlm=0.5, moments=0.1, distil=0.1, words=0.5),
    text=TextAugmentConfig(drop=0.2, mask=0.2, templates=["{text}", "they sell {text}"]),
    history=HistoryAugmentConfig(crop=0.2, reorder=0.3, substitute=0.2, drop=0.1, mask=0.1),
    prefixes=[8], behaviour_texts=2, epochs=2, window_events=5, windows_per_step=8, texts_per_step=12, negatives=4, learning_rate=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For tensors as small as these, threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> PretrainJob:
    """40 histories within one kind each, source 0, and the texts of source 1 in bags."""
    folder = tmp_path_factory.mktemp("pretraining")
    rng = np.random.default_rng(5)
    windows = [[0, *(1 + 6 * (u % 3) + rng.permutation(6)[:4])] for u in range(40)]
    bags = [[19, 20, 21, 0, 0], [22, 23, 24, 0, 0]]
    rows = pa.table({
        C.SOURCE: pa.array([0] * 40 + [1] * 2, pa.int32()),
        C.ITEM_IDX: pa.array([[int(i) for i in row] for row in windows + bags], pa.list_(pa.int32())),
    })  # fmt: skip
    texts = [*TEXTS, *KINDS["camping"]]
    order = rng.permutation(len(texts))
    table = pa.table({
        C.IDX: pa.array(order + 1, pa.int32()),
        C.SOURCE: pa.array((order >= len(TEXTS)).astype(np.int32)),
        C.TEXT: pa.array([texts[i] for i in order]),
    })  # fmt: skip
    pq.write_table(rows, folder / "windows.parquet")
    pq.write_table(table, folder / "texts.parquet")
    encoder = str(write_encoder(folder / "tiny"))
    return PretrainJob(
        windows=reader.scan([str(folder / "windows.parquet")]), texts=reader.scan([str(folder / "texts.parquet")]),
        with_events=[True, False], domains=[0, 1], own_domain=None, tokenizer=tokenizer_ref(encoder, 16), encoder=encoder, pooling="mean", tuning="full",
        folder=str(folder / "model"), plan=EVERYTHING, reader="arrow", seed=3, checkpoint_s=0.0,
    )  # fmt: skip


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_encoder(str(folder), "mean").state_dict()


@pytest.mark.parametrize("adapter_rank", [0, 4])
def test_every_objective_trains_and_a_broken_run_ends_as_an_unbroken_one(
    job: PretrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter_rank: int
) -> None:
    lines: list[str] = []
    plan = dataclasses.replace(job.plan, adapter_rank=adapter_rank)
    job = dataclasses.replace(job, plan=plan, own_domain=1 if adapter_rank else None, folder=str(tmp_path / "whole"))
    whole = pretraining.train(job, SingleCommunicator(), lines.append)
    assert [row.rows_read for row in whole.rows] == [42, 42] and len(lines) == 2
    assert set(whole.losses[1]) == {"loss", *vars(EVERYTHING.losses)}
    assert all(np.isfinite(list(of.values())).all() for of in whole.losses.values())
    trained = weights(job.folder)
    assert any(not torch.equal(trained[name], before) for name, before in weights(job.encoder).items())

    other = dataclasses.replace(job, folder=str(tmp_path / "broken"))
    save = checkpoint.save

    def save_and_break(folder: Path, state: checkpoint.Checkpoint) -> None:
        save(folder, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_break)
    with pytest.raises(KeyboardInterrupt):
        pretraining.train(other, SingleCommunicator(), lines.append)
    monkeypatch.setattr(checkpoint, "save", save)
    resumed = pretraining.train(other, SingleCommunicator(), lines.append)
    assert [row.epoch for row in resumed.rows] == [1, 2] and resumed.losses == whole.losses
    for name, tensor in weights(other.folder).items():
        torch.testing.assert_close(tensor, trained[name])


def test_next_item_brings_the_texts_of_a_taste_together(job: PretrainJob, tmp_path: Path) -> None:
    plan = dataclasses.replace(EVERYTHING, losses=PretrainLosses(words=0), epochs=6, learning_rate=1e-2)
    pretraining.train(dataclasses.replace(job, plan=plan, folder=str(tmp_path)), SingleCommunicator(), lambda _: None)

    def apart(folder: str | Path) -> float:
        """Mean cosine within a kind less that between kinds, of unit vectors less their mean."""
        encoder = load_encoder(str(folder), "mean")
        corpus = Corpus.read(job.texts)
        trainer = Pretrainer(job, corpus, SingleCommunicator(), total_steps=1)
        with torch.no_grad():
            found = torch.nn.functional.normalize(encoder(*trainer._tokens(TEXTS)), dim=1)
        cosines = torch.nn.functional.normalize(found - found.mean(0), dim=1)
        cosines = cosines @ cosines.T
        same = torch.arange(18) // 6 == (torch.arange(18) // 6)[:, None]
        return float(cosines[same].mean() - cosines[~same].mean())

    assert apart(tmp_path) > apart(job.encoder) + 0.2


def test_words_are_compared_within_a_source_and_bring_texts_that_share_them_together(
    job: PretrainJob, tmp_path: Path
) -> None:
    corpus = Corpus.read(job.texts)
    trainer = Pretrainer(job, corpus, SingleCommunicator(), total_steps=1)
    everything = np.arange(1, len(corpus.texts))
    shared, of = trainer._shared(everything), corpus.sources[everything]
    assert not shared[of[:, None] != of[None, :]].any() and shared.max() <= 1 + 1e-6
    kinds = np.array([corpus.texts[i].split()[0] for i in everything])
    same = (kinds[:, None] == kinds[None, :]) & (of == 0)[:, None] & ~np.eye(len(kinds), dtype=bool)
    other = ~same & (of == 0)[:, None] & (of == 0) & ~np.eye(len(kinds), dtype=bool)
    assert shared[same].mean() > 3 * shared[other].mean()

    plan = dataclasses.replace(EVERYTHING, losses=PretrainLosses(next_item=0), epochs=6, learning_rate=1e-2)
    pretraining.train(dataclasses.replace(job, plan=plan, folder=str(tmp_path)), SingleCommunicator(), lambda _: None)

    def agreement(folder: str | Path) -> float:
        """Correlation of the texts' cosines with those of their words, source 0."""
        ids = trainer._tokens([corpus.texts[i] for i in everything[of == 0]])
        with torch.no_grad():
            found = torch.nn.functional.normalize(load_encoder(str(folder), "mean")(*ids), dim=1).numpy()
        cosines = np.corrcoef(found - found.mean(0))
        between = np.triu_indices(len(cosines), 1)
        return float(np.corrcoef(cosines[between], shared[np.ix_(of == 0, of == 0)][between])[0, 1])

    assert agreement(tmp_path) > agreement(job.encoder) + 0.2


def test_pool_holds_texts_of_the_windows_and_each_once() -> None:
    windows = np.array([[0, 5, 9, 9], [9, 2, 7, 0]])
    pool, placed = pretrainer.draw_pool(windows, 3, np.random.default_rng(0))
    assert len(pool) == 3 and set(pool) <= {2, 5, 7, 9}
    assert [[pool[p - 1] if p else 0 for p in row] for row in placed] == np.where(
        np.isin(windows, pool), windows, 0
    ).tolist()
    everything, placed = pretrainer.draw_pool(windows, 99, np.random.default_rng(0))
    assert everything.tolist() == [2, 5, 7, 9] and (placed > 0).tolist() == (windows > 0).tolist()


def test_negatives_are_texts_of_the_histories_sources_outside_the_pool(job: PretrainJob) -> None:
    trainer = Pretrainer(job, Corpus.read(job.texts), SingleCommunicator(), total_steps=1)
    pool, rng = np.array([1, 2, 3]), np.random.default_rng(0)
    found = {int(i) for _ in range(20) for i in trainer._negatives(pool, np.array([0, 0, 1]), rng)}
    assert found == set(range(4, 19))
    assert not len(trainer._negatives(pool, np.array([1, 1]), rng))


def test_masks_spare_special_tokens_and_label_what_they_change() -> None:
    ids = torch.tensor([[101, 7, 8, 9, 102, 0], [101, 5, 102, 0, 0, 0]]).repeat(50, 1)
    lengths = torch.tensor([5, 3]).repeat(50)
    special = np.array([101, 102, 0])
    out, labels = pretrainer.mask_tokens(ids, lengths, special, 103, 30_000, 0.5, np.random.default_rng(1))
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(out[~chosen], ids[~chosen])
    assert not np.isin(ids[chosen].numpy(), special).any()
    assert 0.4 < float(chosen.sum()) / 200 < 0.6
    assert 0.65 < float((out[chosen] == 103).float().mean()) < 0.95
    _, labels = pretrainer.mask_tokens(ids, lengths, special, 103, 30_000, 1e-9, np.random.default_rng(1))
    assert int((labels != IGNORED).sum()) == 1


def test_without_a_mask_token_there_is_no_masked_language_modelling(job: PretrainJob) -> None:
    blind = dataclasses.replace(job.tokenizer, rust=job.tokenizer.rust.replace("[MASK]", "[GAP]"))
    corpus = Corpus.read(job.texts)
    with pytest.raises(UsageError, match="has no mask token; set the weight to 0"):
        Pretrainer(dataclasses.replace(job, tokenizer=blind), corpus, SingleCommunicator(), total_steps=1)
