from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from membership.actor import Actor, id_from, new_id
from membership.audit import REFUSED_EVERY_S, Audit
from membership.page import BadCursor
from tests.conftest import TransactionFactory
from tests.membership.conftest import break_off

pytestmark = pytest.mark.anyio

HOST = Actor(kind="staff", id=new_id(), name="小禾", role="host")


async def test_acts_come_newest_first_page_by_page_and_by_subject(tx: TransactionFactory) -> None:
    audit = Audit()
    async with tx() as t:
        for number in range(5):
            await audit.record(t, HOST, "comment.hide", f"show:{number % 2}", {"seq": number})
        first = await audit.list(t.conn, limit=3)
        rest = await audit.list(t.conn, first.next, 3)
        odd = await audit.list(t.conn, subject="show:1")
        with pytest.raises(BadCursor):
            await audit.list(t.conn, "x")
    assert [act.detail["seq"] for act in (*first.items, *rest.items)] == [4, 3, 2, 1, 0]
    assert rest.next is None
    assert [act.detail["seq"] for act in odd.items] == [3, 1]
    newest = first.items[0]
    assert (newest.actor_kind, newest.actor_id, newest.actor_name, newest.act) == (
        "staff",
        HOST.id,
        "小禾",
        "comment.hide",
    )


async def test_a_viewers_name_is_not_written_into_the_log(tx: TransactionFactory) -> None:
    async with tx() as t:
        await Audit().record(t, Actor(kind="viewer", id=new_id(), name="小米"), "tag.delete", "tag:1")
        (act,) = (await Audit().list(t.conn)).items
    assert act.actor_name == "" and act.detail == {}


async def test_a_refusal_that_comes_again_is_noted_once_a_minute_by_person_act_subject_and_code(
    tx: TransactionFactory,
) -> None:
    audit = Audit()
    tried: dict[str, Any] = {"actor": HOST, "act": "cue.run", "subject": "cue:1", "code": "paused"}
    ago = id_from(time.time() - REFUSED_EVERY_S - 1)
    assert id_from(time.time()) <= new_id()
    async with tx() as t:
        await t.conn.execute(
            "INSERT INTO audit_log (id, actor_kind, actor_id, actor_name, act, subject, detail)"
            """ VALUES (%s, 'staff', %s, %s, 'cue.run.refused', 'cue:1', '{"code": "paused"}')""",
            [ago, HOST.id, HOST.name],
        )
        assert await audit.record_refused(t, **tried, detail={"show": "s"})  # the last one is a minute old
        assert not await audit.record_refused(t, **tried)
        other = Actor(kind="staff", id=new_id(), name="小满", role="assistant")
        for change in ({"actor": other}, {"act": "x.y"}, {"subject": "cue:2"}, {"code": "not_live"}):
            assert await audit.record_refused(t, **{**tried, **change})
            assert not await audit.record_refused(t, **{**tried, **change})
        noted = (await audit.list(t.conn, subject="cue:1")).items
    assert [act.act for act in noted] == ["cue.run.refused", "x.y.refused", *["cue.run.refused"] * 3]
    assert noted[-2].detail == {"show": "s", "code": "paused"}


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET act = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
async def test_the_log_is_only_added_to(tx: TransactionFactory, statement: str) -> None:
    async with tx() as t:
        await Audit().record(t, HOST, "show.start", "show:1")
    with pytest.raises(psycopg.errors.RestrictViolation):
        async with tx() as t:
            await t.conn.execute(statement)


async def test_an_act_that_is_rolled_back_is_not_logged(tx: TransactionFactory) -> None:
    await break_off(tx, lambda t: Audit().record(t, HOST, "show.start", "show:1"))
    async with tx() as t:
        assert (await Audit().list(t.conn)).items == ()
