"""One line of text from outside, made safe to keep and show: names, regions, streets."""

from __future__ import annotations

import unicodedata

_KEPT_FORMATS = {"\u200d", "\ufe0f"}  # joiner and variation selector: emoji are built of them
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols by category, but nothing to see
_UNSEEN = ("Cf", "Mn", "Me", "Zs")


def clean_line(text: str) -> str:
    """NFC, without control, direction, surrogate and private characters; spaces single, ends trimmed.

    Direction overrides could turn a neighbour's text around; a lone surrogate cannot be stored. Where nothing
    would show, as of joiners alone, nothing is left: an invisible name is none.
    """
    kept = (
        " " if character.isspace() or character in _BLANKS else character
        for character in unicodedata.normalize("NFC", text)
        if character.isspace() or character in _KEPT_FORMATS or unicodedata.category(character)[0] != "C"
    )
    line = " ".join("".join(kept).split())
    return line if any(unicodedata.category(character) not in _UNSEEN for character in line) else ""
