"""Receipts from a claim on a socket to a stranger's check over HTTP: `companion verify --url --chain`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from commerce.benefit_terms import BenefitInput
from commerce.receipts import read_core, verify
from live.__main__ import main
from membership.actor import BenefitId, ShowId, public_id
from membership.audience import PLAN_MEMBERS
from tests.live.serving import Served
from tests.live.test_road import OWNER

pytestmark = pytest.mark.anyio


async def open_benefit(served: Served, show: ShowId, **terms: Any) -> BenefitId:
    given = {"title": "试吃装", "quota": 5, **terms}
    async with served.parts.database.transaction() as t:
        return (await served.parts.benefits.open(t, OWNER, show, BenefitInput(**given))).id


async def command(*arguments: str) -> int:
    """In a thread, as it waits for the server that runs in this loop."""
    return await asyncio.to_thread(main, arguments)


@pytest.fixture(autouse=True)
def on_the_main_thread_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets its signal handler, which only a main thread may."""
    monkeypatch.setattr("signal.signal", lambda *_: None)


async def test_a_claims_reply_has_a_receipt_that_a_stranger_checks_against_the_whole_chain(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    show = await served.make_show()
    benefit = await open_benefit(served, show)
    receipts = []
    for number in range(3):
        member = await served.member(f"王{number}")
        seat = await served.enter(show, member)
        won = await seat.ask("benefit.claim", key="k", benefit=benefit)
        assert (won["type"], won["rank"], won["of"]) == ("ok", number + 1, 5)
        again = await seat.ask("benefit.claim", key="k", benefit=benefit)
        assert again["receipt"] == won["receipt"]
        said = verify(won["receipt"], served.parts.receipts.public_key)
        assert (said.rank, said.link) == (number + 1, number + 1)
        assert said.viewer == public_id(show, member.id) == seat.welcome["you"]["id"]
        receipts.append(won["receipt"])
    for receipt in receipts:
        assert await command("verify", receipt, "--url", served.url, "--chain") == 0
    assert "unbroken: 3 links, and this is number 3" in capsys.readouterr().out
    assert await command("verify", receipts[0][:-3] + "AAA", "--url", served.url) == 1
    assert "does not fit" in capsys.readouterr().err

    async with served.parts.database.transaction() as t:
        await t.conn.execute("SET LOCAL session_replication_role = replica")
        await t.conn.execute(
            "UPDATE benefit_receipts SET core = replace(core, '\"of\":5', '\"of\":6')"
            " WHERE benefit_id = %s AND link = 2",
            [benefit],
        )
    assert await command("verify", receipts[2], "--url", served.url, "--chain") == 1
    assert "link 2 of the chain" in capsys.readouterr().err


async def test_the_ranks_are_shown_in_parts_and_only_to_whom_the_benefit_is_for(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    show = await served.make_show()
    secret = await open_benefit(served, show, audience=PLAN_MEMBERS)
    benefit = await open_benefit(served, show)
    for number in range(3):
        seat = await served.enter(show, await served.member(f"李{number}"))
        won = await seat.ask("benefit.claim", key="k", benefit=benefit)
    async with served.http() as http:
        first = (await http.get(f"/v1/benefits/{benefit}/ranks", params={"limit": 2})).json()
        rest = (await http.get(f"/v1/benefits/{benefit}/ranks", params={"after": first["next"]})).json()
        links = [*first["items"], *rest["items"]]
        assert [link["link"] for link in links] == [1, 2, 3]
        assert rest["next"] is None
        assert all(read_core(link["core"]).viewer == link["viewer"] for link in links)
        assert (await http.get(f"/v1/benefits/{secret}/ranks")).status_code == 404
        assert (await http.get("/v1/benefits/nonsense/ranks")).status_code == 404
    async with served.http(await served.staff()) as http:
        assert (await http.get(f"/v1/benefits/{secret}/ranks")).json()["items"] == []
    assert await command("verify", won["receipt"], "--url", "http://127.0.0.1:9") == 1
    assert await command("verify", won["receipt"], "--url", "nonsense") == 1
    assert capsys.readouterr().err.count("does not answer as a companion does") == 2


async def test_close_is_a_command_that_names_what_it_compared(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await served.make_show()
    settings = served.parts.settings
    for name in ("redis_url", "database_url", "secret", "data_dir"):
        monkeypatch.setenv(f"COMPANION_{name.upper()}", str(getattr(settings, name)))
    assert await command("close", show) == 1
    assert "The show is live" in capsys.readouterr().err
    async with served.parts.database.transaction() as t:
        await served.parts.shows.end(t, OWNER, show)
    assert await command("close", show) == 0
    said = capsys.readouterr().out
    assert "differences  0" in said
    (archive,) = (settings.data_dir / "closings").iterdir()
    assert str(archive) in said
    assert await command("verify", str(archive)) == 0
    assert show in capsys.readouterr().out
    assert await command("close", "nosuchshow") == 1
    assert "no such show" in capsys.readouterr().err
