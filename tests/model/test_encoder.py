import functools
import operator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flmrec.errors import UsageError
from flmrec.model.encoder import DEFAULT_ENCODER, TuningOptions, encode_rows, length_batches, load_encoder, pool


def tokens(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several lengths, one without a token; right-padded with 0."""
    rng = np.random.default_rng(seed)
    n_tokens = np.array([5, 9, 0, 3, 12])
    ids = rng.integers(1000, 5000, (5, 12)) * (np.arange(12) < n_tokens[:, None])
    return ids, n_tokens


def automodel_vectors(folder: str, ids: np.ndarray, n_tokens: np.ndarray, pooling: str) -> np.ndarray:
    """What a reader of the model folder does, one text at a time, without padding."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for row, n in zip(ids, n_tokens, strict=True):
        if n == 0:
            rows.append(np.zeros(model.config.hidden_size))
            continue
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(row[None, :n])).last_hidden_state[0]
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling].numpy())
    return np.stack(rows)


def write_decoder(folder: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=5000, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    GPT2Model(settings).save_pretrained(folder)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_automodel_on_the_saved_folder(tmp_path: Path, pooling):
    encoder = load_encoder(DEFAULT_ENCODER, pooling)
    encoder.save(tmp_path)
    ids, n_tokens = tokens()
    vectors = encode_rows(encoder, ids, n_tokens, torch.device("cpu"), bf16=False)
    np.testing.assert_allclose(vectors, automodel_vectors(str(tmp_path), ids, n_tokens, pooling), atol=2e-5)


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_encoding_in_bfloat16_leaves_frozen_what_was(tuning):
    encoder = load_encoder(DEFAULT_ENCODER, "mean", tuning)
    before = {name: p.requires_grad for name, p in encoder.named_parameters()}
    ids, n_tokens = tokens()
    rough, exact = (encode_rows(encoder, ids, n_tokens, torch.device("cpu"), bf16=bf16) for bf16 in (True, False))
    assert {name: p.requires_grad for name, p in encoder.named_parameters()} == before
    assert all(p.grad is None for p in encoder.parameters())
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_rows_by_length_are_those_of_one_pass():
    encoder = load_encoder(DEFAULT_ENCODER, "mean").eval()
    ids, n_tokens = (torch.from_numpy(array[[0, 1, 3, 4, 0, 3]]) for array in tokens())
    for some in (slice(None), slice(2, 4), slice(1)):  # also fewer rows than groups
        torch.testing.assert_close(
            encoder.by_length(ids[some], n_tokens[some]), encoder(ids[some], n_tokens[some]), atol=2e-5, rtol=1e-4
        )


def test_a_decoder_pools_the_last_token_of_each_row(tmp_path: Path):
    write_decoder(tmp_path)
    ids, n_tokens = tokens()
    vectors = encode_rows(load_encoder(str(tmp_path), "last"), ids, n_tokens, torch.device("cpu"), bf16=False)
    np.testing.assert_allclose(vectors, automodel_vectors(str(tmp_path), ids, n_tokens, "last"), atol=2e-5)


def test_lora_trains_little_and_saves_a_whole_encoder(tmp_path: Path):
    torch.manual_seed(0)
    encoder = load_encoder(DEFAULT_ENCODER, "mean", "lora")
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trained) < 0.1 * sum(p.numel() for p in encoder.parameters())
    for parameter in trained:
        nn.init.normal_(parameter, std=0.02)
    ids, n_tokens = tokens()
    vectors = encode_rows(encoder, ids, n_tokens, torch.device("cpu"), bf16=False)
    encoder.save(tmp_path)
    np.testing.assert_allclose(vectors, automodel_vectors(str(tmp_path), ids, n_tokens, "mean"), atol=1e-4)
    frozen = load_encoder(DEFAULT_ENCODER, "mean", "frozen")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert np.abs(encode_rows(frozen, ids, n_tokens, torch.device("cpu"), bf16=False) - vectors).max() > 1e-3


def test_pooling_passes_over_the_padding():
    states = torch.arange(12.0).view(2, 3, 2)
    n_tokens = torch.tensor([2, 3])
    assert pool(states, n_tokens, "mean").tolist() == [[1, 2], [8, 9]]
    assert pool(states, n_tokens, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(states, n_tokens, "last").tolist() == [[2, 3], [10, 11]]


def test_batches_hold_every_row_once_within_the_budget_of_tokens():
    n_tokens = np.array([7, 1, 30, 2, 2, 7, 1])
    batches = [batch.tolist() for batch in length_batches(n_tokens, 8)]
    assert sorted(functools.reduce(operator.iadd, batches, [])) == list(range(7))
    assert all(len(batch) * n_tokens[batch].max() <= 8 or len(batch) == 1 for batch in batches)
    assert batches[0] == [1, 6, 3, 4]  # 4 rows of at most 2 tokens


def test_a_folder_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="model.encoder: .* is no model that AutoModel can load"):
        load_encoder(str(tmp_path), "mean")


def gradients(folder: Path, options: TuningOptions, tuning: str = "full") -> dict[str, torch.Tensor]:
    encoder = load_encoder(str(folder), "last", tuning, options).train()
    ids, n_tokens = tokens()
    encoder(torch.from_numpy(ids[:2]), torch.from_numpy(n_tokens[:2])).square().sum().backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def test_frozen_layers_keep_the_embeddings_and_the_first_layers(tmp_path: Path):
    write_decoder(tmp_path)
    whole, upper = gradients(tmp_path, TuningOptions()), gradients(tmp_path, TuningOptions(frozen_layers=1))
    assert {name for name in whole if not name.startswith(("model.wte", "model.wpe", "model.h.0."))} == set(upper)
    assert any(name.startswith("model.h.1.") for name in upper)
    adapters = gradients(tmp_path, TuningOptions(frozen_layers=1, lora_rank=4), "lora")
    assert adapters and all(".h.1." in name and "lora" in name for name in adapters)
    assert {grad.shape[0] for name, grad in adapters.items() if "lora_A" in name} == {4}
    with pytest.raises(UsageError, match="model.frozen_layers: the encoder has 2 layers, got 3"):
        gradients(tmp_path, TuningOptions(frozen_layers=3))


def test_checkpointing_changes_memory_not_gradients(tmp_path: Path):
    write_decoder(tmp_path)
    kept, again = gradients(tmp_path, TuningOptions()), gradients(tmp_path, TuningOptions(checkpointing=True))
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient)
