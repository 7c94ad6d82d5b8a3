"""The tables of benchmarks/RESULTS.md, from the cells of benchmarks/pretraining.py."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent.parent / "RESULTS.md"
BEGIN, END = "<!-- pretraining: begin -->", "<!-- pretraining: end -->"


def write(results: dict[str, dict[str, Any]], parts: Iterable[str]) -> None:
    """One table a part, between two marks of RESULTS.md."""
    lines = [BEGIN, "## Pretraining and compression", "", "```", machine.describe(), "```", ""]
    for part in parts:
        cells = {key.split("|")[1]: cell for key, cell in results.items() if key.startswith(f"{part}|")}
        if not cells:
            continue
        more = ["texts_per_s", "mib"] if part == "compression" else []
        more += ["validation"] if part in ("zero_shot", "objectives", "text_objectives") else []
        names = [part, "plain", "this", "lead [95 %]", "users", "steps", *more]
        lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        for key, cell in cells.items():
            lead = f"{cell['lead']:+.1%} [{cell['low']:+.1%}, {cell['high']:+.1%}]"
            row = [key, f"{cell['plain']:.4f}", f"{cell['ours']:.4f}", lead, cell["n_users"], cell["steps"]]
            row += [f"{cell[name]:+.1%}" if name == "validation" else cell[name] for name in more]
            lines.append(f"| {' | '.join(map(str, row))} |")
        lines.append("")
    text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    RESULTS.write_text(before.rstrip() + "\n\n" + "\n".join(lines) + END + (after or "\n"))
