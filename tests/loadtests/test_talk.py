"""What a crowd says."""

from __future__ import annotations

import random

import pytest

from loadtests import talk

LINES_MAX = 200  # code points of a comment
MOODS = ("calm", "benefit", "flash", "poll")


def said(on_air: str, mood: str, count: int = 400) -> list[str]:
    chance = random.Random(7)
    return [talk.line(chance, on_air, mood) for _ in range(count)]


@pytest.mark.parametrize("mood", MOODS)
def test_every_line_can_be_posted(mood: str) -> None:
    for text in said("有机大米 5kg", mood):
        assert text == text.strip()
        assert 1 <= len(text) <= LINES_MAX


def test_half_of_what_is_said_is_about_what_happens() -> None:
    for mood, lines in (("benefit", talk.ON_BENEFIT), ("flash", talk.ON_FLASH), ("poll", talk.ON_POLL)):
        share = sum(text in lines for text in said("有机大米 5kg", mood)) / 400
        assert 0.4 < share < 0.6


@pytest.mark.parametrize("word", list(talk.BY_WORD))
def test_a_product_on_air_is_asked_about(word: str) -> None:
    assert set(said(f"好{word} 1kg", "calm")) & set(talk.BY_WORD[word])


def test_nobody_asks_about_a_product_that_is_not_on_air() -> None:
    about = {text for lines in talk.BY_WORD.values() for text in lines}
    assert not set(said("", "calm")) & about


def test_the_same_seed_says_the_same() -> None:
    assert said("酱油", "poll") == said("酱油", "poll")


def test_a_crowd_does_not_repeat_itself_much() -> None:
    assert len(set(said("有机大米 5kg", "calm"))) > 30
