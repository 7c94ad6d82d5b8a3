"""Views of a text keep what they must keep, and each kind of noise is there when it is switched on."""

import numpy as np
import pytest

from flmrec.config import TextAugmentConfig
from flmrec.errors import UsageError
from flmrec.text import augment
from flmrec.text.titles import key

TEXT = "the quick brown fox jumps over one lazy dog. Animals, Comedy. 1999"
NOISE = [{"crop": 0.5}, {"drop": 0.5}, {"swap": 0.5}, {"mask": 0.5}, {"attributes": 0.7}]


def views(text: str = TEXT, n: int = 50, **settings: object) -> list[str]:
    cfg = TextAugmentConfig(**settings)  # type: ignore[arg-type]
    return [augment.view(text, cfg, "[MASK]", np.random.default_rng(seed)) for seed in range(n)]


def test_nothing_is_switched_on_by_default() -> None:
    assert set(views()) == {TEXT}


@pytest.mark.parametrize("noise", NOISE)
def test_views_differ_are_seeded_and_invent_no_word(noise: dict[str, float]) -> None:
    found = views(**noise)
    assert len(set(found)) > 5 or "attributes" in noise
    assert found == views(**noise)
    for view in found:
        words = augment.words(view.replace("[MASK]", " "))
        assert words and not {w.strip(".") for w in words} - {w.strip(".") for w in TEXT.split()}


def test_crop_keeps_a_run_and_swap_keeps_all_words() -> None:
    assert all(view in TEXT and len(view.split()) == 6 for view in views(crop=0.5))
    assert all(sorted(view.split()) == sorted(TEXT.split()) for view in views(swap=0.9))


def test_drop_keeps_the_order_and_mask_keeps_the_places() -> None:
    words = TEXT.split()
    for view in views(drop=0.5):
        places = [words.index(word) for word in view.split()]
        assert places == sorted(places)
    for view in views(mask=0.5):
        assert all(word in ("[MASK]", own) for word, own in zip(view.split(), words, strict=True))


def test_attributes_leave_the_title_alone() -> None:
    found = set(views(attributes=0.5, n=200))
    title = "the quick brown fox jumps over one lazy dog"
    assert found == {TEXT, f"{title}. Animals, Comedy", f"{title}. 1999", title}


@pytest.mark.parametrize("text", ["cat", "三体", "…", " "])
def test_short_texts_keep_a_word(text: str) -> None:
    heavy = {"crop": 0.9, "drop": 0.9, "mask": 0.9, "swap": 0.9, "attributes": 0.9}
    for view in views(text, **heavy):
        assert view == text or set(augment.words(view)) - {"[MASK]"} <= set(augment.words(text))
        assert view.strip() or not text.strip()


def test_chinese_signs_are_words() -> None:
    assert augment.words("麦田里 2nd 三体") == ["麦", "田", "里", "2nd", "三", "体"]
    assert any(len(augment.words(view)) == 3 for view in views("平凡的世界", crop=0.5))


def test_templates_say_the_text_in_other_words() -> None:
    found = set(views("tea pot", templates=["{text}", "a user bought {text} last week"]))
    assert found == {"tea pot", "a user bought tea pot last week"}


def shout(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


def test_a_translator_is_named_and_wrong_names_are_refused() -> None:
    assert augment.translator(None) is None
    found = augment.translator(f"{__name__}:shout")
    assert found is not None and found(["tea"]) == ["TEA"]
    for wrong in ("no.such.module:f", f"{__name__}:nothing", "json"):
        with pytest.raises(UsageError, match=r"pretrain.text.translator"):
            augment.translator(wrong)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Matrix, The (1999)", "the matrix"),
        ("Toy Story (1995). Animation, Children", "Toy Story (1995)"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (Se7en) (1995)"),
        ("Amélie", "AMELIE!"),
        ("三体（2008）", "三体"),
        ("活着。类别：图书音像。标签：小说", "活着"),
    ],
)
def test_the_same_title_has_one_key(one: str, other: str) -> None:
    assert key(one) == key(other) != ""


def test_other_titles_have_other_keys() -> None:
    titles = ["Toy Story", "Toy Story 2", "Toys", "(500) Days of Summer", "(1999)", "三体"]
    assert len({key(title) for title in titles}) == len(titles)
