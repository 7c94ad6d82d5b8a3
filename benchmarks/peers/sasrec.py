"""SASRec (Kang & McAuley, ICDM 2018) with a full softmax over the catalogue: 2 blocks, 2 heads, 64 dimensions, Adam at
1e-3, 64 users a batch, windows at random offsets."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.logs import Log, Task
from benchmarks.peers.scoring import Scorer, ndcg

DIM, BLOCKS, HEADS, RATE, BATCH = 64, 2, 2, 1e-3, 64
CHUNK = 512  # states whose scores are held at a time
CHECK_EVERY, PATIENCE, MAX_EPOCHS = 5, 4, 200  # epochs; checks without a gain
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class SasRec(nn.Module):
    """Items are 1..n_items, 0 is padding on the right."""

    def __init__(self, n_items: int, length: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.items = nn.Embedding(n_items + 1, DIM, padding_idx=0)
        self.positions = nn.Embedding(length, DIM)  # 0 is the newest
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(DIM, HEADS, DIM, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(DIM), enable_nested_tensor=False)

    def forward(self, history: Tensor) -> Tensor:
        """history (B, L) int64 -> (B, L, DIM), the state after each event."""
        width = history.shape[1]
        steps = torch.arange(width, device=history.device)
        places = ((history > 0).sum(1, keepdim=True) - 1 - steps).clamp(min=0)
        x = self.dropout(self.items(history) * DIM**0.5 + self.positions(places))
        later = torch.ones(width, width, dtype=torch.bool, device=history.device).triu(1)
        return self.blocks(x, mask=later, is_causal=True)  # padding lies behind the events, which do not see it


def epochs_by_validation(task: Task, *, length: int, dropout: float, seed: int) -> tuple[float, int]:
    """The best NDCG on validation and the number of epochs that gave it; stops PATIENCE checks after it."""
    best, best_epochs, checks_since = -1.0, CHECK_EVERY, 0
    for epoch, model in enumerate(_epochs(task.train, length, dropout, seed), start=1):
        if epoch % CHECK_EVERY:
            continue
        value = ndcg(task, _scorer(model, task.train))
        print(f"  windows of {length}, epoch {epoch}: NDCG@10 on validation {value:.4f}", flush=True)
        checks_since = 0 if value > best else checks_since + 1
        if value > best:
            best, best_epochs = value, epoch
        if checks_since == PATIENCE or epoch >= MAX_EPOCHS:
            break
    return best, best_epochs


def fit(log: Log, *, length: int, dropout: float, epochs: int, seed: int) -> Scorer:
    model = next(islice(_epochs(log, length, dropout, seed), epochs - 1, None))
    return _scorer(model, log)


def _epochs(log: Log, length: int, dropout: float, seed: int) -> Iterator[SasRec]:
    """The same model after each epoch, without end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SasRec(log.n_items, length, dropout).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.9, 0.98))
    histories = [h for h in _histories(log) if len(h) > 1]
    while True:
        model.train()
        windows = [_window(h, length + 1, rng) for h in histories]
        for batch in _batches(windows, rng):
            rows = _padded([windows[i] for i in batch])
            targets = rows[:, 1:]
            states = model(rows[:, :-1] * (targets > 0))[targets > 0]
            optimizer.zero_grad()
            _backward(states, model.items.weight, targets[targets > 0] - 1)
            optimizer.step()
        yield model


def _backward(states: Tensor, items: Tensor, targets: Tensor) -> None:
    """Gradients of the mean cross-entropy, some states at a time: their scores stay in the processor's cache."""
    parts = [part.detach().requires_grad_() for part in states.split(CHUNK)]
    for part, target in zip(parts, targets.split(CHUNK), strict=True):
        (F.cross_entropy(part @ items[1:].T, target, reduction="sum") / len(targets)).backward()
    states.backward(torch.cat([part.grad for part in parts if part.grad is not None]))


def _histories(log: Log) -> list[np.ndarray]:
    counts = np.bincount(log.users, minlength=log.n_users)
    return np.split(log.items + 1, np.cumsum(counts)[:-1])


def _window(history: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    if len(history) <= width:
        return history
    end = rng.integers(width, len(history) + 1)
    return history[end - width : end]


def _batches(windows: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of windows of about one length, in random order."""
    lengths = np.array([len(w) for w in windows]) + rng.random(len(windows))
    order = np.argsort(lengths)
    batches = np.array_split(order, -(-len(order) // BATCH))
    rng.shuffle(batches)
    return batches


def _padded(rows: list[np.ndarray]) -> Tensor:
    width = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(row, (0, width - len(row))) for row in rows])).to(DEVICE)


def _scorer(model: SasRec, log: Log) -> Scorer:
    histories = _histories(log)

    @torch.no_grad()
    def score(users: np.ndarray) -> np.ndarray:
        model.eval()
        recent = _padded([histories[u][-model.length :] if len(histories[u]) else np.zeros(1, np.int64) for u in users])
        newest = (recent > 0).sum(1).sub(1).clamp(min=0)
        states = model(recent)[torch.arange(len(recent), device=DEVICE), newest]
        return (states @ model.items.weight[1:].T).cpu().numpy()

    return score
