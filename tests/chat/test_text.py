"""What people type: counted by code points, one normal form, nothing invisible, markup left alone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.text import bounded, clean, visible
from membership.refusal import BadRequest

FAMILY = "👨\u200d👩\u200d👧"  # five code points, one picture


def test_two_hundred_code_points_pass_and_one_more_is_refused_with_both_numbers() -> None:
    assert bounded("米" * 200, 200, "A comment") == "米" * 200
    with pytest.raises(BadRequest) as caught:
        bounded("米" * 201, 200, "A comment")
    assert caught.value.details == {"limit": 200, "length": 201}


def test_an_emoji_of_five_code_points_counts_five() -> None:
    assert bounded(FAMILY * 40, 200, "A comment") == FAMILY * 40
    with pytest.raises(BadRequest):
        bounded(FAMILY * 40 + "a", 200, "A comment")


def test_length_is_counted_after_composing() -> None:
    assert bounded("e\u0301" * 200, 200, "A comment") == "é" * 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "\n\t",
        "\x00\x07",
        "\u200b\u200b",
        "\u200d",
        "\ufe0f",
        "\u3164",
        "\u2800",
        "\u202e",
        "\ud800",
    ],
)
def test_what_shows_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        bounded(text, 200, "A comment")


def test_controls_and_direction_overrides_are_dropped_and_breaks_become_a_space() -> None:
    assert clean("  好\x00吃\x1b[31m\r\n\n真\u202e的\u2066 \t吗\ufeff ") == "好吃[31m 真的 吗"


def test_markup_stays_plain_text() -> None:
    text = "<script>alert(1)</script> &amp; <img src=x onerror=alert(1)>"
    assert clean(text) == text


def test_flags_and_joined_emoji_stay_whole() -> None:
    scotland = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    assert clean(f"{FAMILY}{scotland}❤\ufe0f") == f"{FAMILY}{scotland}❤\ufe0f"


def test_an_emoji_newer_than_our_tables_stays_and_a_noncharacter_goes() -> None:
    assert clean("\U0001fae8\U0001fffe\ufdd0") == "\U0001fae8"


def test_a_very_long_text_is_refused_before_it_is_normalised() -> None:
    with pytest.raises(BadRequest):
        bounded("\u0000" * 1_000_000, 200, "A comment")


@given(st.text(alphabet=st.characters(), max_size=300))
def test_cleaning_is_stable_and_leaves_no_control(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Co", "Zl", "Zp") for char in cleaned)
    assert not visible(cleaned) or cleaned
    cleaned.encode()
