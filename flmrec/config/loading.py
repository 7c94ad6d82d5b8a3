"""From a YAML file and overrides to a checked configuration, and back."""

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from flmrec.config.schema import Config, check
from flmrec.errors import UsageError


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Configuration from a YAML file and `section.key=value` overrides. Raises UsageError naming every fault.

    A file that says `extends: other.yaml` (beside it) has the keys of the other file where it names none itself.
    """
    tree = _read(Path(path))
    for override in overrides:
        _apply(tree, override)
    now = dt.datetime.now(dt.UTC)
    run = tree.setdefault("run", {})
    if isinstance(run, dict):
        run["id"] = run.get("id") or now.strftime("%Y%m%dT%H%M%SZ")
        run["date"] = run.get("date") or now.date()
    return parse(tree, where=str(path))


def overridden(config: Config, values: dict[str, Any]) -> Config:
    """The configuration with other values, by section.key. Raises UsageError naming every fault."""
    tree = json.loads(json.dumps(asdict(config), default=str))
    for name, value in values.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.get(section)
            if not isinstance(node, dict):
                raise UsageError(f"There is no key {name} in the configuration.")
        node[key] = value
    return parse(tree)


def parse(tree: dict[str, Any], where: str = "configuration") -> Config:
    """A checked Config from nested dictionaries. Raises UsageError naming every fault."""
    try:
        config = TypeAdapter(Config).validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        faults = "; ".join(_describe(e) for e in error.errors(include_url=False))
        raise UsageError(f"{where}: {faults}. Correct the file or the override and run again.") from None
    check(config, where)
    return config


def dump(config: Config) -> str:
    """The resolved configuration as YAML, as it is stored beside a model. `parse(yaml)` gives it back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config), default=str)), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"There is no configuration file {path}: give an existing YAML file with --config.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not readable YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} must hold sections such as source: and lake:, got {type(tree).__name__}.")
    base = tree.pop("extends", None)
    return tree if base is None else _merged(_read(path.parent / str(base)), tree)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both trees; what `above` says wins."""
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        both[key] = _merged(below[key], value) if nested else value
    return both


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    keys = name.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UsageError(f"'{override}' is no override: write section.key=value, for example scoring.k=20.")
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise UsageError(f"'{override}': {key} holds a value, not keys, in the configuration file.")
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"'{override}': the value is not readable YAML; put it in quotes.") from None


def _describe(error: Any) -> str:
    names = [str(part) for part in error["loc"] if not (isinstance(part, str) and part[:1].isupper())]
    key = ".".join(names)
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key {key}"
        case "missing":
            return f"{key} is missing"
        case _:
            return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"
