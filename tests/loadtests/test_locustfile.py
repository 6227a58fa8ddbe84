"""The scenarios, in a process of their own: locust patches the standard library when it is imported."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from chat.polls import Polls
from tests.live.serving import Served

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "loadtests" / "locustfile.py"


async def locust(*arguments: str) -> tuple[int, str]:
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(running.communicate(), 60)
    return await running.wait(), said.decode()


async def test_a_short_run_delivers_and_reports_what_it_measured(served: Served, tmp_path: Path) -> None:
    show, owner = await served.make_show(), await served.staff()
    members = [await served.member() for _ in range(8)]
    tokens, figures, report = tmp_path / "tokens.txt", tmp_path / "figures", tmp_path / "report.html"
    tokens.write_text("\n".join(served.token(member) for member in members))
    async with served.parts.database.transaction() as t:
        polls: Polls = served.parts.polls
        await polls.open(t, owner, show, "红枣还是山药?", ["红枣", "山药"])
    talking = asyncio.create_task(talk(served, owner, show))
    code, said = await locust(
        *("-u", "20", "-r", "20", "-t", "6s", "--host", served.url, "--show", show, "--tokens", str(tokens)),
        *("--json-file", str(figures), "--html", str(report), "--every", "2", "--loglevel", "ERROR"),
    )
    talking.cancel()
    assert code == 0, said
    found = json.loads(figures.with_suffix(".json").read_text())
    by_kind = {kind: [e for e in found if e["method"] == kind] for kind in {e["method"] for e in found}}
    assert by_kind.keys() >= {"join", "delivery", "command"}
    assert count(by_kind["join"]) == 20
    assert "hole" not in by_kind
    assert sum(entry["num_failures"] for entry in found) == 0
    spoken = [entry for entry in by_kind["delivery"] if entry["name"] == "comment.posted"]
    assert count(spoken) > 20
    assert spoken[0]["max_response_time"] < 5_000
    assert count([entry for entry in by_kind["command"] if entry["name"] == "ballot.cast"]) >= 1
    assert "load: " in said
    assert "holes 0" in said
    assert "<html" in report.read_text()


async def talk(served: Served, owner: Any, show: Any) -> None:
    while True:
        await served.parts.comments.post(owner, show, "大家好", None)
        await asyncio.sleep(0.2)


def count(entries: list[dict[str, Any]]) -> int:
    return sum(entry["num_requests"] for entry in entries)


async def test_a_show_must_be_named() -> None:
    code, said = await locust("-u", "1", "-t", "1s", "--host", "http://127.0.0.1:1")
    assert code != 0
    assert "name the show: --show" in said
