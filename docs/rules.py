"""Writes docs/rules.md: each rule with the tests that carry its number. `make docs` runs it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
TESTS = DOCS.parent / "tests"

HEAD = """# Rules and the tests that show them

Each number is a sentence of the shop's semantics (`semantics 2.3a`: section 2, third bullet, first sentence), or a
row of what live commerce (`L5`) or membership (`M14`) asks for, in our own words. Beside it stand the tests
that carry the number. This page is made from `docs/rules.toml` and the tests by `make docs`.

"""
TITLES = {"2": "First N to join", "3": "Plans", "4": "Price", "5": "Stock"}


def read_rules() -> dict[str, str]:
    """Number → the rule in our words, in order."""
    found = tomllib.loads((DOCS / "rules.toml").read_text())
    return {f"semantics {number}": text for number, text in found["semantics"].items()} | found["rows"]


def read_not_yet() -> dict[str, str]:
    """Number → what is missing."""
    found: dict[str, str] = tomllib.loads((DOCS / "rules.toml").read_text())["not_yet"]
    return found


def marked(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(number, name of the test) of each `@pytest.mark.rule(…)` in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                    for number in mark.args:
                        yield str(ast.literal_eval(number)), node.name


def read_tests() -> dict[str, list[tuple[str, str]]]:
    """Number → (file, test) of those that carry it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text("utf-8")
        if "mark.rule(" in text:
            for number, test in marked(ast.parse(text)):
                found.setdefault(number, []).append((str(path.relative_to(TESTS.parent)), test))
    return found


def page() -> str:
    rules, tests, not_yet = read_rules(), read_tests(), read_not_yet()
    lines: list[str] = []
    title = ""
    for number, text in rules.items():
        word = number.removeprefix("semantics ")
        heading = {"L": "Rows: live commerce", "M": "Rows: membership"}.get(word[0], "")
        heading = heading or f"Semantics {word[0]}: {TITLES[word[0]]}"
        if heading != title:
            title = heading
            lines += ["", f"## {title}", "", "| number | rule | shown by |", "| --- | --- | --- |"]
        shown = "<br>".join(f"`{name}` ({file})" for file, name in tests.get(number, []))
        if number in not_yet:
            shown += ("<br>" if shown else "") + f"Not yet: {not_yet[number]}"
        lines.append(f"| {word} | {text} | {shown} |")
    return HEAD + "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    (DOCS / "rules.md").write_text(page())
    print("docs/rules.md")
