"""What the pages say, by key, in both languages: so that one test reads in either."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Literal

from tests.browser.stage import ROOT

Lang = Literal["zh-CN", "en-GB"]
TEXT = r'"(?:[^"\\]|\\.)*"'
LINE = re.compile(rf'^    "?([\w.]+)"?: (?:({TEXT})|\{{ one: ({TEXT}), other: ({TEXT}) \}}),$', re.M)


@cache
def _words(file: str, lang: Lang) -> dict[str, tuple[str, str]]:
    """key → (the form for one, the form for others)."""
    chinese, english = (ROOT / "live" / "static" / file).read_text("utf-8").split("\n  en: {")
    found: dict[str, tuple[str, str]] = {}
    for key, plain, one, other in LINE.findall(chinese if lang == "zh-CN" else english):
        found[key] = (json.loads(plain), json.loads(plain)) if plain else (json.loads(one), json.loads(other))
    return found


class Words:
    """The viewer's page, or with `panel` the panel, in one language."""

    def __init__(self, lang: Lang, *, panel: bool = False) -> None:
        self._words = _words("panel-texts.js" if panel else "texts.js", lang)

    def __call__(self, key: str, **values: object) -> str:
        text = self._words[key][values.get("n") != 1]
        return re.sub(r"\{(\w+)\}", lambda place: str(values.get(place[1], place[0])), text)
