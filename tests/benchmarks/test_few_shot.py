"""The few-shot benchmark on a folder of a dozen rows, with and without ids."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import few_shot
from tests.small import write_encoder


def write_rows(folder: Path, n_rows: int, with_ids: bool) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = []
        for place in range(n_rows):
            titles = [f"film {t} ({1980 + t})" for t in rng.permutation(20)[:5]]
            row = {"label": int(place % 3 == 0), "target": titles[0], "liked": titles[1:3], "disliked": titles[3:]}
            if with_ids:
                row = {"user_id": place % 4, "target_title": row.pop("target")} | row
            lines.append(json.dumps(row))
        (folder / f"{split}.json").write_text("\n".join(lines))


@pytest.mark.parametrize("with_ids", [True, False])
def test_every_number_of_shots_has_all_draws_and_ablations(tmp_path: Path, with_ids: bool) -> None:
    write_rows(tmp_path, n_rows=30, with_ids=with_ids)
    encoder, out = write_encoder(tmp_path / "encoder"), tmp_path / "out.json"
    arguments = ["--data", str(tmp_path), "--shots", "4,16", "--seeds", "3", "--json", str(out)]
    few_shot.main([*arguments, "--encoder", str(encoder)])
    results = json.loads(out.read_text())
    assert list(results["shots"]) == ["4", "16"]
    for models in results["shots"].values():
        assert list(models) == ["text and year", "text", "neither"]
        assert all(m["draws"] == 3 and 0 <= m["auc_low"] <= m["auc"] <= m["auc_high"] <= 1 for m in models.values())


def test_a_pair_of_user_and_item_counts_once() -> None:
    rows = [
        {"user_id": 1, "label": 1, "target_title": "a", "liked_titles": ["b"], "disliked_titles": []},
        {"user_id": 1, "label": 0, "target_title": "c", "liked_titles": ["b", "a"], "disliked_titles": []},
    ]
    users, items, labels = few_shot._rows(rows, {"a": 1, "b": 2, "c": 3}).pairs()
    assert dict(zip(items, labels, strict=True)) == {1: 1.0, 2: 1.0, 3: 0.0}
    assert set(users) == {"1"}
