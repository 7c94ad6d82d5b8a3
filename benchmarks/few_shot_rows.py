"""Ratings to the rows that few_shot.py reads.

    .venv/bin/python benchmarks/few_shot_rows.py --data FOLDER --liked 5 --out ROWS

FOLDER holds ratings.csv.gz (user_id, item_id, rating, timestamp) and items.json.gz (item_id, title). A row is a rating
of a user, with up to ten ratings before it, three at least; liked is a rating of --liked or more. Users are dealt by a
hash, eight in ten to train, one to valid, one to test. Equal times are ordered by a hash.
"""

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

import pandas as pd

_FEWEST, _MOST = 3, 10  # ratings before a row's
_PARTS = ["train"] * 8 + ["valid", "test"]


def main() -> int:
    args = _arguments()
    folder, out = Path(args.data), Path(args.out)
    titles = pd.read_json(folder / "items.json.gz", lines=True).set_index("item_id").title
    ratings = pd.read_csv(folder / "ratings.csv.gz")
    ratings["tie"] = [_hash(f"{row.user_id} {row.item_id}") for row in ratings.itertuples()]
    rows: dict[str, list[str]] = {part: [] for part in _PARTS}
    for user, own in ratings.sort_values(["timestamp", "tie"]).groupby("user_id"):
        names, liked = titles.loc[own.item_id].tolist(), (own.rating >= args.liked).tolist()
        for place in range(_FEWEST, len(own)):
            before = list(zip(names, liked, strict=True))[max(0, place - _MOST) : place]
            row = {
                "user_id": int(user),
                "label": int(liked[place]),
                "target_title": names[place],
                "liked_titles": [name for name, yes in before if yes],
                "disliked_titles": [name for name, yes in before if not yes],
            }
            rows[_PARTS[_hash(str(user)) % len(_PARTS)]].append(json.dumps(row, ensure_ascii=False))
    out.mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        (out / f"{part}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        print(f"{part}: {len(lines)} rows")
    return 0


def _hash(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:8], 16)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder")
    parser.add_argument("--liked", type=float, required=True, help="ratings of at least that are likes")
    parser.add_argument("--out", required=True, help="folder of the rows")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
