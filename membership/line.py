"""One line of text from outside, made safe to keep and show: names, regions, streets."""

from __future__ import annotations

import unicodedata

_KEPT_FORMATS = {"\u200d", "\ufe0f"}  # joiner and variation selector: emoji are built of them


def clean_line(text: str) -> str:
    """NFC, without control, direction, surrogate and private characters; spaces single, ends trimmed.

    Direction overrides could turn a neighbour's text around; a lone surrogate cannot be stored.
    """
    kept = (
        " " if character.isspace() else character
        for character in unicodedata.normalize("NFC", text)
        if character.isspace() or character in _KEPT_FORMATS or unicodedata.category(character)[0] != "C"
    )
    return " ".join("".join(kept).split())
