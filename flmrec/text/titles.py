"""Whether two texts name the same thing, however two catalogues write it. Errs on the side of the same."""

import re
import unicodedata

_BRACKETS = re.compile(r"[(\[][^)\]]*[)\]]")  # years, other titles
_END = re.compile(r"\. |。")
_SIGNS = re.compile(r"[\W_]+")


def key(text: str) -> str:
    """The distinct words of the title in one order: without case, accents, signs and what stands in brackets.

    The title is what stands before the first ". " or "。" (attributes follow it). "Matrix, The (1999). Action" and
    "the matrix" have the same key.
    """
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(sign for sign in plain if not unicodedata.combining(sign))
    return _key(_BRACKETS.sub(" ", plain)) or _key(plain)


def _key(plain: str) -> str:
    return " ".join(sorted(set(_SIGNS.sub(" ", _END.split(plain)[0]).split())))
