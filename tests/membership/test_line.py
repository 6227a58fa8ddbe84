from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from membership.line import clean_line


def test_spaces_are_single_and_ends_trimmed() -> None:
    assert clean_line("  王\u3000 小\n明\t") == "王 小 明"


def test_direction_overrides_and_zero_width_characters_go() -> None:
    assert clean_line("a\u202eb\u200bc\ufeff") == "abc"


def test_emoji_built_with_joiners_stay_whole() -> None:
    family = "👨\u200d👩\u200d👧"
    assert clean_line(family) == family


def test_what_nobody_can_see_is_nothing() -> None:
    for blank in ("\u3164", "\u115f\u1160", "\u2800 \uffa0", "\u200d\u200d", "\ufe0f", "\u0301"):
        assert clean_line(blank) == ""
    assert clean_line("小\u3164米") == "小 米"


def test_markup_is_left_as_text() -> None:
    assert clean_line("<b>x</b>") == "<b>x</b>"


@given(st.text(alphabet=st.characters(), max_size=60))
def test_a_clean_line_stays_as_it_is_and_can_be_stored(text: str) -> None:
    line = clean_line(text)
    assert clean_line(line) == line
    line.encode()
    assert "\0" not in line
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in line)
