"""Writes the report of a published night: one HTML file, <reports>/<run.date>.html."""

from pathlib import Path

from pyspark.sql import SparkSession

from flmrec import progress
from flmrec.config import Config
from flmrec.errors import UsageError
from flmrec.lake import Lake
from flmrec.report import facts, page


def run(spark: SparkSession, cfg: Config) -> Path:
    """Returns the page's path. Raises UsageError where run.date has nothing published or the page cannot be written."""
    lake = Lake(spark, cfg.lake)
    html = page.render(facts.read(lake, cfg))
    path = report_path(lake, cfg)
    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(html, encoding="utf-8")
        unfinished.replace(path)  # a reader sees the old page or the new one
    except OSError as error:
        raise UsageError(f"The report {path} cannot be written ({error.strerror}): give a lake that can be.") from None
    progress.console.print(f"  report: {path}", markup=False)
    return path


def report_path(lake: Lake, cfg: Config) -> Path:
    """In `reports`, beside the models: <lake.root>/reports, or the folder next to lake.models where that is given."""
    return lake.models_folder().parent / "reports" / f"{cfg.run.date}.html"
