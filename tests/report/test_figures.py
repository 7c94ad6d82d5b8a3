import xml.etree.ElementTree as ET

from flmrec.report import figures


def texts(svg: str) -> str:
    return " ".join(element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text"))


def test_loss_curve_names_its_fits_and_takes_the_pages_colours() -> None:
    svg = figures.loss_curve({"holdout fit": [(1, 4.0), (2, 3.0)], "full fit": [(1, 4.1), (2, 3.1)]})
    assert "holdout fit" in texts(svg) and "full fit" in texts(svg)
    assert "var(--series-0)" in svg and "var(--ink)" in svg
    assert "#0" not in svg.replace("#m", "").replace("#p", "")  # no colour of our stand-ins is left
    assert "<style" not in svg and "<metadata" not in svg


def test_a_figure_is_the_same_every_time() -> None:
    assert figures.stage_bars({"ingest": 3.0, "score": 12.0}) == figures.stage_bars({"ingest": 3.0, "score": 12.0})


def test_bars_show_every_slice_and_model_also_where_one_is_missing() -> None:
    values = {
        "all users": {"flmrec": (0.13, 0.12, 0.14), "ALS": (0.08, 0.07, 0.09)},
        "cold": {"flmrec": (0.1, 0.0, 0.3)},
    }
    found = texts(figures.bars_by_slice(values, "NDCG@10"))
    assert all(name in found for name in ("all users", "cold", "flmrec", "ALS", "NDCG@10"))


def test_stage_bars_say_the_seconds() -> None:
    assert "12 s" in texts(figures.stage_bars({"ingest": 3.0, "score": 12.2}))
