"""Writes the pages that the code knows best: docs/settings.md and docs/refusals.md. `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

from live.problem import WORDS
from live.settings import describe

DOCS = Path(__file__).resolve().parent

SETTINGS = """# Settings

Environment variables, read once when a command starts. An unknown `COMPANION_*` is reported, a wrong value
is refused in one line that names it. This page is made from `live/settings.py` by `make docs`.

"""

REFUSALS = """# Refusals

A refusal is an answer, not an error: the command was understood and declined. The word is the same on the
socket (`{"type":"refused","id":7,"code":"sold_out","message":"…","retry_ms":null}`) and over HTTP
(`application/problem+json`, member `code`). Where trying again helps, `retry_ms` says when. This page is
made from `live/problem.py` by `make docs`.

"""


def pages() -> dict[str, str]:
    """File name to text."""
    rows = [
        "| word | HTTP | meaning |",
        "| --- | --- | --- |",
        *(f"| `{word}` | {status} | {meaning} |" for word, (status, meaning) in sorted(WORDS.items())),
    ]
    return {"settings.md": SETTINGS + describe(), "refusals.md": REFUSALS + "\n".join(rows) + "\n"}


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
        print(f"docs/{name}")
