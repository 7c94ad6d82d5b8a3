"""Fine-tuning of the encoder on one rank: item texts learn to score users as the linear teacher does.

Texts that share rare words stay alike besides: names and brands say what a teacher of few events does not.
The head starts as ridge regression from the frozen encoder's vectors (and the attributes) to the teacher's item
factors; then encoder and head follow the teacher's scores of the batch's users over the texts of the step.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmrec.errors import TrainingError
from flmrec.factorization import prior
from flmrec.factorization.prior import Content, Features, PriorSettings
from flmrec.factorization.words import word_rows
from flmrec.model.encoder import bf16_is_fast, encode_rows, load_encoder
from flmrec.model.losses import alignment_loss, words_loss
from flmrec.model.recipe import Recipe
from flmrec.training.comm import Communicator
from flmrec.training.inputs import ColdValidation, Teacher, Texts

_RIDGE = 5.0
_SCALING = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # power of the number of ranks in the learning rates


class Aligner:
    """Holds the encoder and the cache of text vectors, `vectors` (n_items + 1, H), zero for items without text."""

    def __init__(
        self, encoder: str, recipe: Recipe, texts: Texts, attributes: np.ndarray, teacher: Teacher, comm: Communicator,
        *, n_epochs: int, seed: int,
    ) -> None:  # fmt: skip
        self.recipe, self.texts, self.attributes, self.teacher, self.comm = recipe, texts, attributes, teacher, comm
        self.encoder = load_encoder(encoder, recipe.pooling, recipe.tuning, recipe.options).to(comm.device)
        self.bf16 = bf16_is_fast(comm.device)
        self.n_epochs, self.seed = n_epochs, seed
        comm.broadcast_([p.data for p in self._trained()])
        self.vectors = self._encode_all()
        if n_epochs:
            self._start_head()
            self._start_optimizer()

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.encoder.parameters() if p.requires_grad]

    def _encode_all(self) -> Tensor:
        """Each distinct text once, the ranks share the work."""
        order = np.argsort(self.texts.n_tokens, kind="stable")
        own = order[self.comm.rank :: self.comm.size]
        vectors = encode_rows(
            self.encoder, self.texts.input_ids[own], self.texts.n_tokens[own], self.comm.device, bf16=self.bf16
        )
        gathered = self.comm.allgather_rows(torch.from_numpy(vectors).to(self.comm.device)).cpu()
        distinct = torch.empty_like(gathered)
        places = np.concatenate([order[rank :: self.comm.size] for rank in range(self.comm.size)])
        distinct[torch.from_numpy(places)] = gathered
        return distinct[torch.from_numpy(self.texts.of_item)]

    def _features(self) -> Features:
        return Content(self.vectors.numpy(), self.attributes).features(self.teacher.known, PriorSettings())

    def _start_head(self) -> None:
        """Ridge from features to the teacher's outputs, in units of the spread of the teacher's scores."""
        known = self.teacher.known
        outputs = torch.from_numpy(self.teacher.factors.outputs)
        inputs = torch.from_numpy(self.teacher.factors.inputs)
        spread = spread_of_scores(inputs[torch.from_numpy(known)], outputs[torch.from_numpy(known)])
        self.outputs = (outputs / spread.clamp(min=1e-9)).to(self.comm.device)
        self.inputs = inputs.to(self.comm.device)
        features = torch.from_numpy(self._features().dense)
        x, y = features[torch.from_numpy(known)], self.outputs.cpu()[torch.from_numpy(known)]
        gram = x.T @ x
        gram.diagonal().add_(_RIDGE)
        weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))  # (H + A, R)
        self.head = nn.Parameter(weights.to(self.comm.device))
        self.head_bias = y.mean(0).to(self.comm.device)
        with_text = self.texts.has_text[known]
        self.candidates = known[with_text]
        counted = np.unique(self.texts.of_item[self.candidates])
        self.words = word_rows(self.texts.input_ids, self.texts.n_tokens, counted)  # a row a distinct text
        width = self.vectors.shape[1]
        self.text_mean = self.vectors[torch.from_numpy(self.candidates)].mean(0).to(self.comm.device)
        self.fixed = features[:, width:].to(self.comm.device)  # attributes, centred and scaled
        self.comm.broadcast_([self.head.data, self.head_bias])  # machines round differently

    def _start_optimizer(self) -> None:
        recipe = self.recipe.alignment
        scale = self.comm.size ** _SCALING[recipe.scaling]  # each rank adds texts to a step
        groups = [
            {"params": self._trained(), "lr": recipe.learning_rate * scale},
            {"params": [self.head], "lr": recipe.head_learning_rate * scale},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, fused=True)
        total = max(1, self.n_epochs * -(-self._updates() // recipe.accumulate))
        rise = recipe.warmup * total

        def rate(done: int) -> float:
            return min((done + 1) / (rise + 1), max(0.0, 1 - done / total))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def _updates(self) -> int:
        """Updates an epoch; none where a rank would have less than two texts to choose among."""
        recipe = self.recipe.alignment
        n_texts = min(len(self.candidates), recipe.max_texts_per_epoch)
        if n_texts < 2 * self.comm.size:
            return 0
        return -(-n_texts // (recipe.texts_per_step * self.comm.size))

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Plans which texts each of the epoch's `steps` steps takes, the same plan on every rank."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.candidates)
        order = order[: self.recipe.alignment.max_texts_per_epoch]
        parts = np.array_split(order, max(1, self._updates()) * self.comm.size)[self.comm.rank :: self.comm.size]
        self.chunks = parts if self._updates() else []
        self.epoch, self.steps, self.done_steps = epoch, steps, 0
        self.losses: list[float] = []

    def step(self, windows: Tensor) -> None:
        """The updates that fall to this step, with the users of (B, W) windows."""
        first, last = (len(self.chunks) * s // self.steps for s in (self.done_steps, self.done_steps + 1))
        self.done_steps += 1
        for place in range(first, last):
            due = (place + 1) % self.recipe.alignment.accumulate == 0 or place + 1 == len(self.chunks)
            rng = np.random.default_rng([self.seed, self.epoch, self.comm.rank, place])
            share = self.recipe.alignment.share_of_histories
            items = mixed_texts(self.chunks[place], np.intersect1d(windows.numpy(), self.candidates), share, rng)
            self._update(windows.to(self.comm.device), items, due=due)

    def _update(self, windows: Tensor, items: np.ndarray, *, due: bool) -> None:
        """Adds the gradients of these texts; takes the step where it is due."""
        users = self.inputs[windows].sum(1)  # (B, R)
        # the teacher's unit is a typical item's spread; a user's scores grow with the history, so each gets its own
        teacher = users @ self.outputs[torch.from_numpy(items).to(users.device)].T
        scale = teacher.std(1, keepdim=True, correction=min(1, len(items) - 1)).clamp(min=1e-6)
        recipe = self.recipe.alignment
        rows, place = np.unique(self.texts.of_item[items], return_inverse=True)
        vectors = self._encode(rows)
        student = users @ self._item_factors(items, vectors[torch.from_numpy(place).to(users.device)]).T
        loss = alignment_loss(student / scale, teacher / scale, recipe.temperature)
        if recipe.words:
            shared = (self.words[rows] @ self.words[rows].T).toarray()
            unit = F.normalize(vectors, dim=1)
            likeness = words_loss(
                unit - unit.mean(0), torch.from_numpy(shared).to(users.device), recipe.words_temperature
            )
            loss = loss + recipe.words * likeness
        (loss / recipe.accumulate).backward()
        self.losses.append(float(loss.detach()))
        if not due:
            return
        parameters = [*self._trained(), self.head]
        self.comm.average_gradients_(parameters)
        if recipe.max_gradient_norm:
            nn.utils.clip_grad_norm_(parameters, recipe.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def _encode(self, rows: np.ndarray) -> Tensor:
        """(n, H) of the distinct texts `rows`, as the encoder reads them now."""
        device = self.comm.device
        ids = torch.from_numpy(self.texts.input_ids[rows].astype(np.int64)).to(device)
        lengths = torch.from_numpy(self.texts.n_tokens[rows].astype(np.int64)).to(device)
        self.encoder.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            vectors: Tensor = self.encoder.by_length(ids, lengths)
        return vectors

    def _item_factors(self, items: np.ndarray, vectors: Tensor) -> Tensor:
        """(n, R) of the items, whose texts have the vectors (n, H)."""
        unit = F.normalize(vectors - self.text_mean, dim=1)
        features = torch.cat([unit, self.fixed[torch.from_numpy(items).to(unit.device)]], 1)
        return features @ self.head + self.head_bias

    def finish_epoch(self) -> float:
        """Refreshes the cache; returns the mean loss over all ranks, nats. Raises TrainingError if it is not finite."""
        self.vectors = self._encode_all()
        sums = self.comm.allgather((sum(self.losses), len(self.losses)))
        mean = sum(s for s, _ in sums) / max(1, sum(n for _, n in sums))
        if not np.isfinite(mean):
            raise TrainingError(f"The encoder's loss is {mean}: lower training.encoder_learning_rate.")
        return mean

    def cold_ndcg(self, cold: ColdValidation) -> float:
        """How well the texts place items that the teacher has not seen. Rank 0 works it out for all."""
        value = 0.0
        if self.comm.rank == 0:
            known = self.teacher.known
            features = self._features()
            outputs = self.teacher.factors.outputs[known]
            model = prior.fit(features.rows(known), outputs, ridge=PriorSettings().ridge, seed=self.seed)
            value = cold.ndcg(model(features.rows(cold.cold)))
        return float(self.comm.allgather(value)[0])

    def state(self) -> dict[str, Tensor]:
        """The trained weights of the encoder and the cache that they gave."""
        weights = {name: p.detach().clone() for name, p in self.encoder.named_parameters() if p.requires_grad}
        return weights | {"vectors": self.vectors}

    def progress(self) -> dict[str, Any]:
        """All that a checkpoint needs; `resume` takes it."""
        training = (
            [self.head, self.optimizer.state_dict(), self.schedule.state_dict()["last_epoch"]] if self.n_epochs else []
        )
        return {"encoder": self.state(), "training": training}

    def resume(self, progress: dict[str, Any]) -> None:
        self.restore(progress["encoder"])
        if self.n_epochs:
            head, optimizer, done = progress["training"]
            self.head.data.copy_(head)
            self.optimizer.load_state_dict(optimizer)
            self.schedule.last_epoch = done

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.encoder.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(state[name])
        self.vectors = state["vectors"]


def spread_of_scores(inputs: Tensor, outputs: Tensor) -> Tensor:
    """The mean over the rows of (n, R) inputs of the standard deviation of their scores of all (n, R) outputs, without
    the n x n scores."""
    return torch.einsum("nr,rs,ns->n", inputs, torch.cov(outputs.T), inputs).clamp(min=0).sqrt().mean()


def mixed_texts(planned: np.ndarray, own: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """As many items as `planned` at most, of which up to `share` are some of `own`, the items that the users had.

    In a large catalogue a user likes hardly one of a few random items: the teacher's scores of these are noise.
    """
    n_own = min(len(own), round(share * len(planned)))
    return np.union1d(planned[: len(planned) - n_own], rng.permutation(own)[:n_own])
