"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from live.problem import WORDS
from membership.refusal import Refusal

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("live", "chat", "commerce", "membership", "loadtests")
DOMAIN = ("chat", "commerce", "membership")
SCRIPTS = sorted(path for package in PACKAGES for path in (ROOT / package).glob("scripts/*.lua"))
PRELUDE = ROOT / "live" / "scripts" / "append.lua"
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# These make what guard() asks for, or mend it.
WITHOUT_GUARD = {"live/open_show"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def head(path: Path) -> str:
    """The comment block a script begins with."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return "\n".join(lines)


def body(path: Path) -> str:
    return "\n".join(
        line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("--")
    )


def included(path: Path) -> bool:
    """A shared part, put before other scripts by `-- include:`."""
    name = f"{path.parent.parent.name}/{path.stem}"
    return any(f"-- include: {name}\n" in other.read_text("utf-8") for other in SCRIPTS)


def load_plain_names() -> set[str]:
    """`<package>/<name>` of the scripts that belong to no show."""
    pattern = re.compile(r'load_plain\(\s*"(\w+)",\s*"(\w+)"\s*\)')
    return {"/".join(found) for path in SOURCES for found in pattern.findall(path.read_text("utf-8"))}


def test_imports_go_down() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_there_are_scripts_and_sources_to_check() -> None:
    assert len(SCRIPTS) > 20
    assert len(SOURCES) > 40


@pytest.mark.parametrize("name", names(SCRIPTS))
def test_every_script_has_its_contract_at_the_head(name: str) -> None:
    path = ROOT / name
    said = head(path)
    missing = []
    if path != PRELUDE and not included(path):
        # The spine goes without saying; a script's own keys and arguments do not, nor what it answers.
        missing += [word for word in ("KEYS", "ARGV") if f"{word}[" in body(path) and word not in said]
        missing += ["Returns"] if "Returns" not in said else []
        reads = path.stem.startswith(("read_", "list_"))
        missing += ["All or none"] if not reads and "all or none" not in said.lower() else []
    assert len(said.split()) > 5, f"{name} does not say what it is for"
    assert not missing, f"{name} does not state: {', '.join(missing)}"


def test_every_show_script_asks_first_whether_the_show_is_there() -> None:
    plain = load_plain_names()
    without = [
        str(path.relative_to(ROOT))
        for path in SCRIPTS
        if path != PRELUDE
        and not included(path)
        and f"{path.parent.parent.name}/{path.stem}" not in plain | WITHOUT_GUARD
        and "guard(" not in body(path)
    ]
    assert without == []


def test_every_script_is_loaded_somewhere() -> None:
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    unused = [
        str(path.relative_to(ROOT))
        for path in SCRIPTS
        if path != PRELUDE and not included(path) and f'"{path.stem}"' not in text
    ]
    assert unused == []


def all_refusals() -> Iterator[type[Refusal]]:
    for package in ("membership", "chat", "commerce", "live"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    waiting: list[type[Refusal]] = list(Refusal.__subclasses__())
    while waiting:
        refusal = waiting.pop()
        waiting += refusal.__subclasses__()
        if refusal.__module__.split(".")[0] in PACKAGES:
            yield refusal


def test_every_refusal_has_its_word_in_the_table_and_says_something() -> None:
    refusals = list(all_refusals())
    assert len(refusals) > 20
    assert {refusal.code for refusal in refusals} - WORDS.keys() - {"refused"} == set()
    assert [refusal.__name__ for refusal in refusals if not (refusal.__doc__ or "").strip()] == []


def test_every_word_of_a_script_or_a_call_is_in_the_table() -> None:
    said = {
        word
        for path in SCRIPTS
        for word in re.findall(r"refused['\"]?[,(]\s*['\"]([a-z_]+)['\"]", path.read_text("utf-8"))
    }
    said |= {
        word
        for path in SOURCES
        for word in re.findall(r"(?:Refusal|BadRequest)\([^()]*code=\"([a-z_]+)\"", path.read_text("utf-8"))
    }
    assert said - WORDS.keys() == set()


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "refusals.md"])
def test_every_setting_and_every_refusal_is_documented(tables: ModuleType, name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == tables.pages()[name], "run `make docs`"


def test_no_client_pool_or_app_is_made_when_a_module_is_imported() -> None:
    made = {"Redis", "open_redis", "make_pool", "AsyncConnectionPool", "AsyncClient", "Starlette", "App"}
    found = []
    for path in SOURCES:
        for statement in ast.parse(path.read_text("utf-8")).body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Call):
                called = ast.unparse(statement.value.func).split(".")
                if set(called) & made:
                    found.append(f"{path.relative_to(ROOT)}:{statement.lineno}")
    assert found == []


def test_only_the_outermost_room_commits() -> None:
    found = [
        f"{path.relative_to(ROOT)}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] in DOMAIN
        and re.search(r"\.(commit|rollback)\(\)", path.read_text("utf-8"))
    ]
    assert found == []


def test_modules_are_named_for_what_they_hold() -> None:
    poor = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert [str(path) for path in SOURCES if path.stem in poor] == []


def test_nothing_is_left_for_later_and_no_test_is_passed_over() -> None:
    words = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]) + r")\b")
    passed_over = re.compile(r"pytest\.(skip|importorskip|xfail)|mark\.(skip|skipif|xfail)")
    found = []
    for path in [*SOURCES, *SCRIPTS, *sorted((ROOT / "tests").rglob("*.py"))]:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if words.search(line) or passed_over.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "loadtests").rglob("*.md")]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []
