"""Chinese texts have Chinese signs: ，：；？！（） and not their ASCII likenesses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("live", "chat", "commerce", "membership", "loadtests", "docs")
HAN = "\u3400-\u9fff"
HALF = re.compile(rf"[{HAN}\u3001-\u303f][ ]?[,:;?!()]|[,:;?!()][ ]?[{HAN}\u300c-\u300f]")
# In a Chinese text a name or a number stands in a hole: {name}:{text} is Chinese punctuation too.
BESIDE_HOLE = re.compile(r"\}[,:;?!](?=$|[{ ])")
QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


def half_width(text: str) -> list[str]:
    """Each ASCII sign that stands beside Chinese, with its surroundings."""
    if not re.search(rf"[{HAN}]", text):
        return []
    found = [*HALF.finditer(text), *BESIDE_HOLE.finditer(text)]
    return [text[max(0, sign.start() - 8) : sign.end() + 8] for sign in found]


def python_texts(path: Path) -> Iterator[str]:
    """The string literals of a module, without docstrings (they are English) and patterns (raw strings)."""
    source = path.read_text("utf-8")
    lines, tree = source.split("\n"), ast.parse(source)
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            line = lines[node.lineno - 1].encode()[node.col_offset :]
            if not line.startswith((b"r", b"R")):
                yield node.value


def texts() -> Iterator[tuple[str, str]]:
    """(file, text): what a person may read."""
    for folder in PYTHON:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for text in python_texts(path):
                yield str(path.relative_to(ROOT)), text
    static = ROOT / "live" / "static"
    for path in sorted(static.rglob("*.js")):
        if "vendor" not in path.relative_to(static).parts:
            for text in QUOTED.findall(path.read_text("utf-8")):
                yield str(path.relative_to(ROOT)), text
    for path in sorted((ROOT / "live").rglob("*.html")):
        for text in re.split(r"<[^>]*>|\{[{%].*?[}%]\}", path.read_text("utf-8")):
            yield str(path.relative_to(ROOT)), text


def test_no_chinese_text_has_a_half_width_sign() -> None:
    found = [f"{name}: {shown}" for name, text in texts() for shown in half_width(text)]
    assert not found, "\n".join(found)


def test_the_texts_are_found() -> None:
    chinese = [name for name, text in texts() if re.search(rf"[{HAN}]", text)]
    for name in ("live/static/texts.js", "live/static/panel-texts.js", "loadtests/talk.py", "live/brand.py"):
        assert chinese.count(name) > 20, name


@pytest.mark.parametrize(
    "text",
    [
        "好吗?",
        "今晚, 全场",
        "共 {n} 份:{left}",
        "开通会员,省 {sum}",
        "收银台(沙箱)",
        "价格 (元)",
        "到手了!",
        "先停;再开",
    ],
)
def test_a_half_width_sign_is_noticed(text: str) -> None:
    assert half_width(text)


@pytest.mark.parametrize(
    "text",
    [
        "明天 16:00 前发出",
        "请填以 http(s):// 开头的地址",
        "快捷键（?）",
        "1,024 人在看",
        "Are you in? (yes)",
        "第 {n} 位 · {of}",
    ],
)
def test_times_numbers_addresses_and_english_are_left_alone(text: str) -> None:
    assert not half_width(text)
