import datetime as dt
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from flmrec.columns import C
from flmrec.report import page
from flmrec.report.facts import Facts


def metrics() -> pd.DataFrame:
    values = {
        ("flm", "all", "ndcg"): 0.1312, ("flm", "all", "ndcg_low"): 0.12, ("flm", "all", "ndcg_high"): 0.14,
        ("als", "all", "ndcg"): 0.0812, ("als", "all", "ndcg_low"): 0.07, ("als", "all", "ndcg_high"): 0.09,
        ("als", "all", "ndcg_lead_low"): 0.03, ("als", "all", "ndcg_lead_high"): 0.07,
        ("flm", "cold_item", "ndcg"): 0.05, ("flm", "cold_item", "ndcg_low"): 0.01,
        ("flm", "cold_item", "ndcg_high"): 0.2, ("flm", "gender=<f>", "ndcg"): 0.21, ("flm", "all", "coverage"): 0.5,
    }  # fmt: skip
    rows = [(model, name, metric, 10, value, 943) for (model, name, metric), value in values.items()]
    return pd.DataFrame(rows, columns=[C.MODEL, C.SLICE, C.METRIC, C.K, C.VALUE, C.N_USERS])


def ledger() -> pd.DataFrame:
    rows = [
        {C.STAGE: "score", C.TABLE: "recommendations", C.SECONDS: 5.0, C.ROWS_IN: 9430, C.ROWS_OUT: 9430},
        {C.STAGE: "ingest", C.TABLE: "interactions", C.SECONDS: 61.0, C.ROWS_IN: 100_007, C.ROWS_OUT: 100_000},
    ]
    others = {C.RUN_ID: "r1", C.ROWS_QUARANTINED: 3, C.ROWS_DUPLICATE: 4, C.ROWS_DROPPED: 0, C.DELTA_VERSION: 7}
    return pd.DataFrame([row | others for row in rows])


@pytest.fixture
def facts() -> Facts:
    training = [{"fit": "full", C.EPOCH: 1, "ranks": 2, C.ROWS_READ: 5000, C.STEPS: 40, C.LOSS: 3.25, C.SECONDS: 9.0}]
    return Facts(
        run_id="r1",
        run_date=dt.date(2024, 5, 1),
        protocol="leave_one_out",
        model_version="20240501-ab12",
        n_users=943,
        n_recommendations=9430,
        metrics=metrics(),
        ledger=ledger(),
        training=pd.DataFrame(training),
        samples=[(["Alien (1979)"], ["<script>alert(1)</script>", "三体"]), ([], ["Heat (1995)"])],
    )


def test_the_page_needs_nothing_from_outside_and_runs_nothing(facts: Facts) -> None:
    html = page.render(facts)
    assert "<script" not in html
    links = set(re.findall(r'(?:href|src)="([^"]*)"', html))
    assert all(link.startswith("#") for link in links)
    assert set(re.findall(r'https?://[^" ]*', html)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_titles_and_names_of_slices_are_escaped(facts: Facts) -> None:
    html = page.render(facts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "gender=&lt;f&gt;" in html
    assert "三体" in html and "nothing yet" in html


def test_the_headline_compares_with_the_best_baseline(facts: Facts) -> None:
    html = page.render(facts)
    assert "NDCG@10 is 0.1312; the best baseline, ALS (Spark), has 0.0812" in html
    assert "lead +0.0500" in html and "+0.0300 to +0.0700" in html


@pytest.mark.filterwarnings("error:No artists")  # of a chart that is drawn and not shown
def test_a_run_without_metrics_or_training_still_has_a_page(facts: Facts) -> None:
    html = page.render(replace(facts, metrics=facts.metrics.iloc[:0], training=facts.training.iloc[:0]))
    assert "This run was not measured" in html and "No training of this model is recorded" in html
    assert html.count("<figure") == 1  # the seconds of the stages


def test_stages_come_in_the_order_of_the_chain_and_the_ledger_is_whole(facts: Facts) -> None:
    assert facts.stage_seconds == {"ingest": 61.0, "score": 5.0}
    html = page.render(facts)
    assert "1 min 06 s" in html and "100,007" in html


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_tables_have_captions(facts: Facts) -> None:
    html = page.render(facts)
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    assert html.count("<table>") == html.count("<caption>") == 4
    ids = re.findall(r'\sid="([^"]*)"', re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL))
    assert len(ids) == len(set(ids))
