"""The end card and the live numbers, from real acts and from rows; built twice they are the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from commerce.benefit_terms import BenefitInput
from live.database import Database
from live.lua import Scripts
from live.recorder import Recorder
from membership.actor import Actor, ShowId, new_id
from membership.audience import PLAN_MEMBERS
from membership.behaviour import Behaviour, Record
from membership.partition import show_key
from membership.refusal import NotFound, Unavailable
from tests.live.stage import Stage, viewer

pytestmark = pytest.mark.anyio


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, database: Database) -> Stage:
    return Stage(redis, scripts, database)


class _Parts:
    """What the recorder needs of the house."""

    def __init__(self, stage: Stage) -> None:
        self.redis, self.database, self.show_log = stage.redis, stage.database, stage.log
        self.pool = stage.database.pool
        self.behaviour = Behaviour(stage.redis)


async def record(stage: Stage, show: ShowId) -> None:
    await Recorder(_Parts(stage)).record(show)  # type: ignore[arg-type]


async def order(stage: Stage, show: ShowId, member: Actor, **given: Any) -> None:
    """A row as the order's own method leaves it."""
    row = {
        "id": new_id(),
        "kind": "goods",
        "state": "placed",
        "goods": 12_800,
        "freight": 0,
        "plan": None,
        "paid": None,
        "closed": None,
        **given,
    }
    async with stage.database.transaction() as t:
        await t.conn.execute(
            """
            INSERT INTO orders (id, kind, member_id, show_id, state, key, body_digest, plan_id, currency,
                goods_fen, freight_fen, total_fen, address, hold_until, paid_at, closed_at)
            VALUES (%(id)s, %(kind)s, %(member)s, %(show)s, %(state)s, %(key)s, 'd', %(plan)s, 'CNY',
                %(goods)s, %(freight)s, %(goods)s + %(freight)s,
                CASE WHEN %(kind)s = 'goods' THEN '{}'::jsonb END,
                now() + interval '10 minutes', %(paid)s, %(closed)s)
            """,
            {**row, "key": new_id(), "member": member.member, "show": show},
        )


async def term(
    stage: Stage, show: ShowId, member: Actor, plan: str, kind: str, *, first: bool = False
) -> None:
    async with stage.database.transaction() as t:
        await t.conn.execute(
            """
            INSERT INTO plan_terms (id, member_id, plan_id, kind, starts_at, ends_at, anchor_at,
                anchor_months, payment_id, first_paid_start, source_show)
            VALUES (%s, %s, %s, %s, now(), now() + interval '1 day', now(), 12, %s, %s, %s)
            """,
            [new_id(), member.member, plan, kind, new_id() if kind == "paid" else None, first, show],
        )


async def make_plan(stage: Stage) -> str:
    plan = new_id()
    async with stage.database.transaction() as t:
        await t.conn.execute(
            "INSERT INTO plans (id, name, fee_fen, period_months) VALUES (%s, '年卡', 19900, 12)", [plan]
        )
    return plan


async def test_an_empty_show_has_a_card_of_zeros(stage: Stage, tx: Any) -> None:
    show = await stage.show("ended")
    async with tx() as t:
        card = await stage.report.build(t, show.id)
        assert await stage.report.get(t.conn, show.id) == card
    assert (card.viewers, card.viewers_peak, card.watched_average_s, card.comments) == (0, 0, 0, 0)
    assert (card.sales.sales_fen, card.joins.first, card.gifts, card.questions) == (0, 0, [], [])
    async with tx() as t:
        with pytest.raises(NotFound):
            await stage.report.build(t, ShowId("nosuchshow"))
        with pytest.raises(NotFound):
            await stage.report.get(t.conn, ShowId("nosuchshow"))
        assert await stage.report.get(t.conn, (await stage.show("live")).id) is None


async def test_a_whole_evening_adds_up_and_building_again_changes_nothing(stage: Stage, tx: Any) -> None:
    show, product = (await stage.show("live", guest_comments=True)).id, await stage.product()
    plan = await make_plan(stage)
    people = [await stage.member(f"1380013800{number}", f"王{number}") for number in range(4)]
    guest = Actor(kind="viewer", id="g_1")
    async with tx() as t:
        await stage.offers.open(t, stage.host, show, product.id)
    async with tx() as t:
        benefit = await stage.benefits.open(
            t, stage.host, show, BenefitInput(title="礼盒", quota=10, value_fen=5_900)
        )
    async with tx() as t:
        poll = await stage.polls.open(t, stage.host, show, "加什么?", ["红枣", "山药"])
    for person in people[:3]:
        await stage.claims.claim_many(show, benefit.id, [(person, "k")])
        await stage.polls.cast(person, show, poll.id, [1], "ballot")
    for person, text in zip(
        [*people, guest],
        ["有机大米多少钱一袋", "请问有机大米一袋多少钱?", "几天能到", "好吃", "小米多少钱一袋"],
        strict=True,
    ):
        await stage.comments.post(person, show, text, None)
    rude = await stage.comments.post(people[0], show, "这是什么垃圾?", None)
    await stage.comments.hide(stage.host, show, rude.seq)
    await stage.comments.post(stage.host, show, "大家想看什么?", None)
    start = datetime.now(UTC)
    await Behaviour(stage.redis).record(
        show,
        [
            Record(
                id=new_id(),
                kind="watch",
                viewer=person.id,
                member=person.member,
                subject="show",
                value=60_000,
                at=round((start + timedelta(seconds=offset)).timestamp() * 1000),
            )
            for person, offset in (
                (people[0], 0),
                (people[0], 60),  # the same sitting goes on
                (people[0], 30),  # a second window of the same person
                (people[1], 90),
                (people[2], 150),  # comes as the second leaves
            )
        ],
    )
    paid = datetime.now(UTC)
    await order(stage, show, people[0])
    await order(stage, show, people[0], state="paid", paid=paid, freight=600)
    await order(stage, show, people[1], state="refunded", paid=paid, closed=paid)
    await order(stage, show, people[2], state="cancelled", closed=paid)
    await order(stage, show, people[2], kind="plan", plan=plan, goods=19_900, state="paid", paid=paid)
    await term(stage, show, people[2], plan, "paid", first=True)
    await term(stage, show, people[3], plan, "paid")
    await term(stage, show, people[1], plan, "trial")

    async with tx() as t:
        numbers = await stage.report.live(t.conn, show)
    assert (numbers.comments.minute, numbers.claims) == (7, 3)
    assert (numbers.sales.placed, numbers.sales.paid, numbers.sales.sales_fen) == (4, 2, 25_600)

    await stage.move("end", show)
    await record(stage, show)
    async with tx() as t:
        card = await stage.report.build(t, show)
    async with tx() as t:
        assert await stage.report.build(t, show) == card
        assert await stage.report.get(t.conn, show) == card
    assert (card.viewers, card.members, card.comments, card.commenters) == (5, 4, 6, 5)
    assert card.viewers_peak == 2
    assert card.watched_average_s == 100  # 300 s of three people
    assert (card.sales.freight_fen, card.sales.refunded_fen) == (600, 12_800)
    assert (card.joins.paid, card.joins.first, card.joins.trials, card.joins.fees_fen) == (2, 1, 1, 19_900)
    [gift] = card.gifts
    assert (gift.title, gift.claimed, gift.quota, gift.cost_fen) == ("礼盒", 3, 10, 17_700)
    assert card.gifts_cost_fen == 17_700
    [result] = card.polls
    assert (result.question, result.voters, result.tally) == ("加什么?", 3, [0, 3])
    assert [(question.text, question.askers) for question in card.questions] == [
        ("有机大米多少钱一袋", 2),
        ("几天能到", 1),
        ("小米多少钱一袋", 1),
    ]


@pytest.mark.rule("M22")
async def test_a_first_release_is_set_against_the_plan_members_who_were_there(stage: Stage, tx: Any) -> None:
    show = (await stage.show("live")).id
    rice = await stage.product("头茬新米", audience=PLAN_MEMBERS)
    oil = await stage.product("山茶油")
    plan = await make_plan(stage)
    people = [await stage.member(f"1380013810{number}", f"李{number}") for number in range(4)]
    for member in people[:3]:
        await term(stage, show, member, plan, "paid")
    async with tx() as t:
        offers = [await stage.offers.open(t, stage.host, show, each.id) for each in (rice, oil)]
    moment = datetime.now(UTC)
    await Behaviour(stage.redis).record(
        show,
        [
            Record(
                id=new_id(),
                kind="watch",
                viewer=person.id,
                member=person.member,
                subject="show",
                value=60_000,
                at=round(moment.timestamp() * 1000),
            )
            for person in people
        ],
    )
    for member, state in (
        (people[0], "paid"),
        (people[0], "paid"),
        (people[1], "refunded"),
        (people[2], "placed"),
    ):
        await order(
            stage,
            show,
            member,
            state=state,
            paid=None if state == "placed" else moment,
            closed=moment if state == "refunded" else None,
        )
    async with tx() as t:
        await t.conn.execute(
            """
            INSERT INTO order_lines (order_id, position, kind, offer_id, product_id, name, quantity, unit_fen,
                line_fen, gift_value_fen, winner, candidates, piece)
            SELECT d.id, n, 'goods', o.id, o.product_id, '', 1, 6400, 6400, 0, 'list', '[]', true
            FROM orders d, unnest(%s::uuid[]) WITH ORDINALITY AS w (offer, n) JOIN offers o ON o.id = offer
            WHERE d.show_id = %s
            """,
            [[offer.id for offer in offers], show],
        )
    await stage.move("end", show)
    await record(stage, show)
    async with tx() as t:
        card = await stage.report.build(t, show)
    assert [(each.name, each.buyers, each.members) for each in card.first_sold] == [("头茬新米", 1, 3)]


async def test_live_numbers_know_presence_and_its_peak(stage: Stage, scripts: Scripts, tx: Any) -> None:
    show = (await stage.show("live")).id
    touch = scripts.load("live", "touch_presence")
    for node, viewers in (("a", 30), ("b", 20), ("a", 5)):
        await touch(show, ["presence"], [node, viewers, 15_000, 0])
    async with tx() as t:
        numbers = await stage.report.live(t.conn, show)
        assert (numbers.viewers, numbers.viewers_peak) == (25, 50)
        card = await stage.report.build(t, show)
        assert card.viewers_peak == 50
        await stage.redis.delete(show_key(show, "meta"))
        with pytest.raises(Unavailable):
            await stage.report.live(t.conn, show)
        assert (await stage.report.build(t, show)).viewers_peak == 0


async def test_a_gift_that_was_recalled_costs_nothing(stage: Stage, tx: Any) -> None:
    show, person = (await stage.show("live")).id, await stage.member()
    async with tx() as t:
        benefit = await stage.benefits.open(
            t, stage.host, show, BenefitInput(title="礼盒", quota=10, value_fen=5_900)
        )
    await stage.claims.claim_many(show, benefit.id, [(person, "k")])
    async with tx() as t:
        await t.conn.execute("UPDATE benefit_claims SET state = 'recalled', settled_at = now()")
        [gift] = (await stage.report.build(t, show)).gifts
    assert (gift.claimed, gift.cost_fen) == (1, 0)


async def test_the_host_and_their_words_are_no_audience(stage: Stage, tx: Any) -> None:
    show = (await stage.show("live")).id
    await stage.comments.post(stage.host, show, "想看什么?", None)
    await stage.comments.post(viewer(), show, "支持", None)
    await record(stage, show)
    async with tx() as t:
        card = await stage.report.build(t, show)
    assert (card.viewers, card.comments, card.questions) == (1, 1, [])
