"""Peers for cold items: what the text of an item says, by the frozen default encoder, brought to users' histories."""

import re
from functools import cache, lru_cache

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.peers import linear
from benchmarks.peers.logs import Log
from benchmarks.peers.scoring import Model, Scorer
from flmrec.model.encoder import resolve_encoder

_BATCH, _TOKENS = 64, 64
_ease_weights = lru_cache(1)(linear.ease_weights)  # a grid goes through all `l2` of one `ease_l2`


def chance(log: Log, *, seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return lambda _: lambda users: rng.random((len(users), log.n_items), dtype=np.float32)


def centroid(log: Log) -> Model:
    """Inner product of an item's text vector with the mean of the user's, the mean of the known items taken off."""
    text = text_vectors(log)
    text = text - text[_known(log)].mean(axis=0)

    def model(half_life: float | None) -> Scorer:
        history = log.matrix(half_life)
        return lambda users: (history[users] @ text) @ text.T

    return model


def ridge(log: Log, *, tags: bool, l2: float, ease_l2: float) -> Model:
    """A ridge regression from features (text vector, with `tags` also genres and decade) to the columns of EASE."""
    known = _known(log)
    features = text_vectors(log)
    if tags:
        features = np.hstack([features, _tags(log)])
    features = features - features[known].mean(axis=0)
    x = features[known]
    weights = _ease_weights(log, ease_l2)  # (n_items, n_items), column = how histories score that item
    solved = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ weights[:, known].T)  # (F, n_items)
    return linear.from_history(log, (features @ solved).T.astype(np.float32))


def text_vectors(log: Log) -> np.ndarray:
    """(n_items, 384) unit mean-pooled vectors of the titles; zero where there is none."""
    return _encode(tuple(log.items_table.title.where(log.items_table.title.notna(), None)))


@cache
@torch.no_grad()
def _encode(titles: tuple[str | None, ...]) -> np.ndarray:
    folder = resolve_encoder("all-MiniLM-L6-v2")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
    )
    rows = np.array([row for row, title in enumerate(titles) if title])
    vectors = np.zeros((len(titles), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        tokens = tokenizer(
            [titles[row] for row in batch], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        mask = tokens["attention_mask"][:, :, None]
        mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        vectors[batch] = torch.nn.functional.normalize(mean).numpy()
    return vectors


def _known(log: Log) -> np.ndarray:
    return np.unique(log.items)


def _tags(log: Log) -> np.ndarray:
    """(n_items, tags) 0 or 1: genres, and the decade of a year in parentheses at the end of the title."""
    table = log.items_table
    years = [re.search(r"\((\d{3})\d\)\s*$", title or "") for title in table.title.where(table.title.notna(), None)]
    labels = [[*genres, *([f"{year[1]}0s"] if year else [])] for genres, year in zip(table.genres, years, strict=True)]
    names = {name: i for i, name in enumerate(sorted({name for row in labels for name in row}))}
    found = np.zeros((len(labels), len(names)), dtype=np.float32)
    for row, of_item in enumerate(labels):
        found[row, [names[name] for name in of_item]] = 1.0
    return found
