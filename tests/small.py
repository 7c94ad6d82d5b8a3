"""A small shop whose users have a taste: real words, odd ids, a few holes. Made by seed, checkable by eye."""

import csv
import json
from pathlib import Path

import numpy as np

KINDS = {
    "garden": ["watering can", "rose seeds", "pruning shears", "flower pot", "garden hose", "wheelbarrow"],
    "kitchen": ["frying pan", "bread knife", "tea pot", "mixing bowl", "whisk", "cutting board"],
    "music": ["guitar strings", "drum sticks", "piano stool", "violin bow", "music stand", "flute case"],
    "camping": ["sleeping bag", "tent pegs", "camp stove", "head lamp", "rain poncho", "water filter"],
    "书店": ["麦田里的守望者", "三体", "红楼梦", "平凡的世界", "活着", "围城"],
}
ODD_USERS = ["ann smith", 'o"neil', "a/b\\c", "张三", "x" * 1000]
COLOURS = ["red", "blue", "green"]


def write_shop(folder: Path, n_users: int = 80, seed: int = 7) -> None:
    """log.csv (user, item, ts, stars), items.json (item, title, kind, price) and users.csv (user, town) in `folder`."""
    rng = np.random.default_rng(seed)
    items = [
        {"item": f"{kind}/{i}-{colour}", "title": f"{colour} {name}", "kind": kind, "price": float(5 + 3 * i)}
        for kind, names in KINDS.items()
        for i, name in enumerate(names)
        for colour in COLOURS
    ]
    items[4]["title"] = None  # an item without text
    del items[11]["price"]
    (folder / "items.json").write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    users = ODD_USERS + [f"u{i}" for i in range(n_users - len(ODD_USERS))]
    _write(folder / "users.csv", ["user", "town"], [[u, f"town {i % 7}"] for i, u in enumerate([*users, "newcomer"])])
    log = []
    for place, user in enumerate(users):
        taste = list(KINDS)[place % len(KINDS)]
        weights = np.array([8.0 if item["kind"] == taste else 1.0 for item in items[:-1]])  # nobody bought the last
        bought = rng.choice(len(items) - 1, size=int(rng.integers(5, 16)), replace=False, p=weights / weights.sum())
        log += [[user, items[i]["item"], 1_700_000_000 + 3600 * n + 7 * place, 3 + n % 3] for n, i in enumerate(bought)]
    _write(folder / "log.csv", ["user", "item", "ts", "stars"], log)


def write_conf(folder: Path, shop: Path, **sections: dict) -> Path:
    """A configuration of the shop's tables with its lake in `folder`."""
    options = {"escape": '"'}
    tree = {
        "source": {
            "interactions": {
                "path": str(shop / "log.csv"),
                "options": options,
                "columns": {"user_id": "user", "item_id": "item", "event_ts": "ts", "value": "stars"},
            },
            "items": {
                "path": str(shop / "items.json"),
                "columns": {"item_id": "item"},
                "text": ["title"],
                "numeric": ["price"],
                "categorical": ["kind"],
            },
            "users": {
                "path": str(shop / "users.csv"),
                "options": options,
                "columns": {"user_id": "user"},
                "text": ["town"],
            },
        },
        "lake": {"root": str(folder / "lake")},
    }
    path = folder / "shop.yaml"
    path.write_text(json.dumps(tree | sections, ensure_ascii=False))  # JSON is YAML
    return path


def _write(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_encoder(folder: Path, width: int = 32) -> Path:
    """An untrained BERT of one layer with the default encoder's tokenizer: trains in milliseconds."""
    import torch
    from transformers import BertConfig, BertModel

    from flmrec.model.artifact import save_tokenizer
    from flmrec.model.encoder import DEFAULT_ENCODER

    torch.manual_seed(1)
    shape = BertConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=width)
    BertModel(shape).save_pretrained(folder)
    save_tokenizer(folder, DEFAULT_ENCODER)
    return folder
