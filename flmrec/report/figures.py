"""The figures of the report as SVG text that takes its colours and its font from the page it stands in."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that `_svg` turns into the page's CSS variables, so that one figure suits light and dark pages.
INK, GRID = "#010101", "#020202"
SERIES = ["#030301", "#030302", "#030303", "#030304", "#030305", "#030306"]
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "flmrec",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
_TIDY = [
    (r' width="[^"]*" height="[^"]*" viewBox', " viewBox"),  # the page sets the size
    (r"<metadata>.*?</metadata>|<style.*?</style>", ""),
    (r'<g id="[^"]*">', "<g>"),  # the same in every figure
    (r"font-family: [^;]*;", "font-family: inherit;"),
]
Interval = tuple[float, float, float]  # value, low, high


def loss_curve(losses: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Training loss by epoch, one line a fit. losses: fit: (epoch, loss) in order of epoch."""

    def draw(axes: Axes) -> None:
        for colour, (fit, points) in zip(SERIES, losses.items(), strict=False):
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, marker="o", markersize=4, linewidth=1.8, color=colour, label=fit)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right")

    return _svg(draw, width=7.2, height=3.0)


def bars_by_slice(values: Mapping[str, Mapping[str, Interval]], label: str) -> str:
    """Grouped bars with intervals. values: slice: model: (value, low, high)."""
    models = list(dict.fromkeys(model for of_slice in values.values() for model in of_slice))
    width = 0.8 / max(len(models), 1)

    def draw(axes: Axes) -> None:
        for place, model in enumerate(models):
            points = [
                (i + (place - (len(models) - 1) / 2) * width, v[model])
                for i, v in enumerate(values.values())
                if model in v
            ]
            x = [at for at, _ in points]
            heights = [value for _, (value, _, _) in points]
            whiskers = [
                [max(v - low, 0) for _, (v, low, _) in points],
                [max(high - v, 0) for _, (v, _, high) in points],
            ]
            axes.bar(x, heights, width * 0.92, color=SERIES[place % len(SERIES)], label=model)
            axes.errorbar(x, heights, yerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axes.set_xticks(range(len(values)), [textwrap.fill(name, 14) for name in values])
        axes.set_ylabel(label)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="best")

    return _svg(draw, width=7.2, height=3.2)


def stage_bars(seconds: Mapping[str, float]) -> str:
    """Horizontal bars of the seconds of each stage, in the order given."""

    def draw(axes: Axes) -> None:
        names = list(seconds)[::-1]
        bars = axes.barh(names, [seconds[name] for name in names], height=0.7, color=SERIES[0])
        axes.bar_label(bars, fmt="{:.0f} s", padding=4, color=INK)
        axes.set_xlabel("seconds")
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")

    return _svg(draw, width=7.2, height=0.6 + 0.3 * len(seconds))


def _svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    """The <svg> element alone; width and height in inches set its proportions, the page its size."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    for pattern, text_instead in _TIDY:
        svg = re.sub(pattern, text_instead, svg, flags=re.DOTALL)
    return svg
