"""Every sentence of the semantics and every row has a test that carries its number."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules", ROOT / "docs" / "rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_number_is_carried_by_a_test(rules: ModuleType) -> None:
    wanted, tests, not_yet = rules.read_rules(), rules.read_tests(), rules.read_not_yet()
    assert [number for number in wanted if number not in tests and number not in not_yet] == []


def test_no_test_carries_a_number_that_is_none(rules: ModuleType) -> None:
    assert sorted(set(rules.read_tests()) - set(rules.read_rules())) == []


def test_what_is_named_as_missing_is_one_of_the_numbers_and_says_what(rules: ModuleType) -> None:
    not_yet = rules.read_not_yet()
    assert sorted(set(not_yet) - set(rules.read_rules())) == []
    assert all(10 <= len(text) <= 200 for text in not_yet.values())


def test_the_page_of_rules_is_up_to_date(rules: ModuleType) -> None:
    assert (ROOT / "docs" / "rules.md").read_text() == rules.page(), "run `make docs`"


def test_marks_are_found_on_tests_only(rules: ModuleType) -> None:
    source = '''
@pytest.mark.rule("L5", "semantics 2.3a")
async def test_one() -> None: ...
@pytest.mark.rule("L1")
def no_test() -> None: ...
def test_two() -> None:
    """semantics 2.4a"""
'''
    assert list(rules.marked(ast.parse(source))) == [("L5", "test_one"), ("semantics 2.3a", "test_one")]
