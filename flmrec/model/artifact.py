"""The model folder: the encoder as `save_pretrained` writes it, flm.safetensors, config.yaml; pretrained: README.md.

Beside them lie what factors are made of (attributes.json, linear.safetensors, factors.safetensors) and choices.json,
what validation chose. Nothing in a folder is run when it is loaded.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from flmrec.errors import UsageError
from flmrec.model.encoder import Pooling, TextEncoder, resolve_encoder
from flmrec.model.flm import Flm
from flmrec.model.recipe import TowerRecipe

FLM, CONFIG, CARD, CHOICES = "flm.safetensors", "config.yaml", "README.md", "choices.json"
FORMAT = 6  # of what a folder holds and how it is made; another one is another version of the model
_NEEDED = ("config.json", FLM, CONFIG)
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "added_tokens.json",
)  # fmt: skip


def save_parts(folder: Path, encoder: TextEncoder, origin: str, flm: Flm) -> None:
    """Writes encoder, tokenizer and FLM head into the folder. origin: what the encoder was loaded from."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.save(folder)
    save_tokenizer(folder, origin)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in flm.state_dict().items()}
    save_file(tensors, folder / FLM, metadata=about(flm, encoder.pooling))


def about(flm: Flm, pooling: str) -> dict[str, str]:
    """The header of flm.safetensors: all that is needed to make the modules before their weights are read."""
    return {"pooling": pooling, "recipe": json.dumps(asdict(flm.recipe)), "shape": json.dumps(flm.shape)}


def load_flm(folder: Path) -> Flm:
    """The FLM head of a model folder, in evaluation mode. Raises UsageError where the folder is none."""
    check(folder)
    try:
        with safe_open(folder / FLM, framework="pt") as file:
            header = file.metadata()
        recipe, shape = TowerRecipe(**json.loads(header["recipe"])), json.loads(header["shape"])
        flm = Flm(shape[0], shape[1], shape[2], recipe)
        flm.load_state_dict(load_file(folder / FLM))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{folder / FLM} is no FLM head ({str(error).splitlines()[0]}): name another model, or train one with "
            "jobs/finetune.py."
        ) from None
    return flm.eval()


def pooling_of(folder: Path) -> Pooling:
    """How the encoder of a model folder was trained to make one vector of a text."""
    check(folder)
    with safe_open(folder / FLM, framework="pt") as file:
        pooling: Pooling = file.metadata()["pooling"]
    return pooling


def check(folder: Path) -> None:
    """Raises UsageError, naming what is missing, where the folder is no model folder."""
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder} is no model folder, it lacks {', '.join(missing)}: name the folder of a model that "
            "jobs/finetune.py has written."
        )


def save_choices(folder: Path, choices: dict[str, Any]) -> None:
    """Adds to what validation chose; a name again replaces it."""
    (folder / CHOICES).write_text(json.dumps(load_choices(folder) | choices, indent=1), encoding="utf-8")


def load_choices(folder: Path) -> dict[str, Any]:
    path = folder / CHOICES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def save_tokenizer(folder: Path, origin: str) -> None:
    """The tokenizer's own files where the encoder came from a folder, else as transformers writes them."""
    source = Path(resolve_encoder(origin))
    if source.is_dir():
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(origin, trust_remote_code=False).save_pretrained(folder)
