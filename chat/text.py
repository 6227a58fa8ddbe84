"""What people type: one normal form, one way of counting, nothing invisible.

Text stays text: nothing is escaped or stripped of markup here; pages put it in as text, never as HTML.
"""

from __future__ import annotations

import unicodedata

from membership.refusal import BadRequest

# Format characters that emoji and scripts need: joiners, and the tags that flags are spelt with.
_KEPT_FORMATS = frozenset({0x200C, 0x200D, *range(0xE0020, 0xE0080)})
# Letters and symbols by category, but blank on screen.
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Composing shrinks at most three code points to one (Hangul); eight times is junk, not worth normalising.
_RAW_FACTOR = 8


def clean(text: str) -> str:
    """NFC; line breaks, tabs and runs of space become one space; other controls are dropped; trimmed.

    Dropped are also lone surrogates, private use, and format characters such as direction overrides,
    which would turn round the line of the next speaker. Joiners stay, so a family emoji is whole.
    """
    kept: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        category = unicodedata.category(char)
        if category[0] == "Z" or char in "\t\n\r\v\f\x85":
            if kept and kept[-1] != " ":
                kept.append(" ")
        elif category[0] != "C" or ord(char) in _KEPT_FORMATS or (category == "Cn" and not _is_hole(char)):
            kept.append(char)
    return "".join(kept).strip(" ")


def _is_hole(char: str) -> bool:
    """A code point that will never be a character; other unassigned ones may be newer emoji than ours."""
    return ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF


def visible(text: str) -> bool:
    """Whether anything of it shows: not only joiners, marks and blanks."""
    return any(
        char not in _BLANKS and unicodedata.category(char) not in ("Cf", "Mn", "Me", "Zs") for char in text
    )


def bounded(text: str, most: int, what: str) -> str:
    """`text` cleaned, 1 to `most` code points. Raises BadRequest; `what` names it ("A comment")."""
    if len(text) > most * _RAW_FACTOR:
        raise BadRequest(f"{what} has at most {most} characters.", limit=most)
    cleaned = clean(text)
    if not visible(cleaned):
        raise BadRequest(f"{what} needs at least one visible character.", limit=most)
    if len(cleaned) > most:
        raise BadRequest(
            f"{what} has at most {most} characters; this one has {len(cleaned)}.",
            limit=most,
            length=len(cleaned),
        )
    return cleaned
