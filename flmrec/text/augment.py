"""Other ways to say an item's text: views for contrastive pretraining, all drawn by the generator that is given.

Words are left out, exchanged, masked or cropped; attributes (the parts behind the first one) are left out; templates
put the text into other words; a translator, where one is configured, takes it into another language and back. A view
has at least one word of the text, and none of its own but those of the mask, the templates and the translator.
"""

import re
from collections.abc import Callable
from importlib import import_module

import numpy as np

from flmrec.config import TextAugmentConfig
from flmrec.errors import UsageError

Translator = Callable[[list[str]], list[str]]
SLOT = "{text}"
_PART = ". "  # between the columns of an item's text
_WORDS = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|[^\s\u3040-\u30ff\u4e00-\u9fff]+")  # signs of scripts without blanks


def words(text: str) -> list[str]:
    """Between blanks; in scripts that know none each sign is one."""
    return _WORDS.findall(text)


def view(text: str, cfg: TextAugmentConfig, mask: str, rng: np.random.Generator) -> str:
    """One view of a text. mask: what stands for a masked word, "" where the tokenizer has no mask: it is left out."""
    kept = words(_without_attributes(text, cfg.attributes, rng))
    kept = _cropped(kept, cfg.crop, rng)
    kept = _dropped(kept, cfg.drop, rng)
    kept = _swapped(kept, cfg.swap, rng)
    said = " ".join(_masked(kept, cfg.mask, mask, rng)) if kept else text
    if not cfg.templates:
        return said
    return cfg.templates[rng.integers(len(cfg.templates))].replace(SLOT, said)


def translator(name: str | None) -> Translator | None:
    """`module:function`, which takes texts and returns as many; None where none is configured.

    Raises UsageError where it cannot be imported.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found: Translator = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"pretrain.text.translator: {name} cannot be imported ({error}); write module:function of a function that "
            "takes a list of texts and returns them translated there and back."
        ) from None
    return found


def _without_attributes(text: str, share: float, rng: np.random.Generator) -> str:
    """Each part behind the first one is left out with probability `share`."""
    first, *rest = text.split(_PART)
    if not share or not words(first):
        return text
    return _PART.join([first, *(part for part in rest if rng.random() >= share)])


def _cropped(some: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """A run of words, shorter by `share`, rounded down."""
    n = len(some) - int(share * len(some))
    start = rng.integers(len(some) - n + 1)
    return some[start : start + n]


def _dropped(some: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Without each word with probability `share`; one stays."""
    stays = rng.random(len(some)) >= share
    if len(some) and not stays.any():
        stays[rng.integers(len(some))] = True
    return [word for word, kept in zip(some, stays, strict=True) if kept]


def _swapped(some: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Neighbours change places, each pair with probability `share`."""
    out = list(some)
    for i in np.flatnonzero(rng.random(max(len(out) - 1, 0)) < share):
        out[i], out[i + 1] = out[i + 1], out[i]
    return out


def _masked(some: list[str], share: float, mask: str, rng: np.random.Generator) -> list[str]:
    """Words become `mask` with probability `share`; one stays as it is."""
    if not mask:
        return _dropped(some, share, rng)
    hidden = rng.random(len(some)) < share
    if len(some) and hidden.all():
        hidden[rng.integers(len(some))] = False
    return [mask if gone else word for word, gone in zip(some, hidden, strict=True)]
