"""A grace on the open socket: who is in it stays in the members' class, and leaves it at its end."""

from __future__ import annotations

import pytest

from live.jobs import Rounds
from live.recorder import Recorder
from membership.actor import Actor, OrderId, PaymentId, PlanId, new_id
from membership.audience import PLAN_MEMBERS
from membership.plans import PlanInput
from tests.live.serving import Served

pytestmark = pytest.mark.anyio


async def expired_renewal(served: Served, member: Actor, plan: PlanId) -> OrderId:
    """An order whose page was made and that ran out without money, as the job expires it."""
    parts = served.parts
    async with parts.database.transaction() as t:
        order = (await parts.orders.place_plan(t, member, plan, None, new_id())).order
        await parts.payments.start(t, member, order)
        await t.conn.execute(
            "UPDATE payment_starts SET ref = %s, url = 'http://pay.test' WHERE order_id = %s", [order, order]
        )
    async with parts.database.transaction() as t:
        await t.conn.execute("UPDATE orders SET hold_until = clock_timestamp() WHERE id = %s", [order])
    async with parts.database.transaction() as t:
        assert await parts.orders.expire_due(t) == 1
    return order


async def pass_time(served: Served, member: Actor, kind: str) -> None:
    """As if the term of this kind ended now."""
    async with served.parts.database.transaction() as t:
        await t.conn.execute(
            """
            WITH moved AS (SELECT ends_at - clock_timestamp() AS by FROM plan_terms
                           WHERE member_id = %(member)s AND kind = %(kind)s)
            UPDATE plan_terms SET starts_at = starts_at - moved.by, ends_at = ends_at - moved.by,
                anchor_at = anchor_at - moved.by
            FROM moved WHERE member_id = %(member)s
            """,
            {"member": member.id, "kind": kind},
        )


@pytest.mark.rule("semantics 3.2c")
async def test_a_grace_keeps_the_socket_in_its_class_and_its_end_takes_it_out(served: Served) -> None:
    show = await served.make_show(audience=PLAN_MEMBERS)
    public = await served.make_show()
    member = await served.member("王小明")
    assert member.member is not None
    async with served.parts.database.transaction() as t:
        plan = await served.parts.plans.create(t, PlanInput("年卡", 19_900, 12, grace_days=3))
        await served.parts.plans.start_paid(t, member.member, plan.id, PaymentId(new_id()))
    await expired_renewal(served, member, plan.id)
    rounds = Rounds(served.parts, Recorder(served.parts))
    await pass_time(served, member, "paid")
    await rounds._lapse()
    async with served.http(member) as http:
        me = (await http.get("/v1/me")).json()
    assert (me["kind"], me["plan"]["id"], me["plan"]["grace"], me["plan"]["trial"]) == (
        "plan",
        plan.id,
        True,
        False,
    )
    seat, door = await served.enter(public, member), await served.enter(show, member)
    for each in (seat, door):
        you = each.welcome["you"]
        assert (you["kind"], you["plan"]["grace"], you["plan"]["ends_at"]) == (
            "plan",
            True,
            me["plan"]["ends_at"],
        )
    await pass_time(served, member, "grace")
    await rounds._lapse()
    assert (await seat.event("you"))["data"]["kind"] == "registered"
    async with served.http(member) as http:
        assert (await http.get("/v1/me")).json()["plan"] is None
