"""Tags in the store: drawn once, proved by their records, struck out for good."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from membership.actor import MemberId, ProductId, ShowId, new_id
from membership.interest import FEW, STRONG, WATCHED
from membership.members import Member, Members
from membership.page import BadCursor
from membership.refusal import NotFound
from membership.tags import NoSuchTag, Summary, Tag, Tags
from tests.conftest import MakeShow, TransactionFactory
from tests.membership.conftest import MakeMember

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]

T0 = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
RICE, OIL, DATES, CAKE = (ProductId(name) for name in ("rice", "oil", "dates", "cake"))
NAMES = {
    RICE: ["禾田 五常有机大米 5kg", "有机大米"],
    OIL: ["禾田 冷榨亚麻籽油 500ml", "亚麻籽油"],
    DATES: ["禾田 灰枣 大米糕礼盒", "Organic Dates"],
}


# -- in the store


class Night:
    """A show with products on air, people who did things, and the tags drawn from it."""

    def __init__(self, tx: TransactionFactory, make_show: MakeShow) -> None:
        self.tx = tx
        self.make_show = make_show
        self.tags = Tags()

    async def product(self, name: str = "有机大米", sensitive: bool = False) -> ProductId:
        product = ProductId(new_id())
        async with self.tx() as t:
            await t.conn.execute(
                "INSERT INTO products (id, sku, name, tag_name, list_fen, stock, no_behaviour_tags)"
                " VALUES (%s, %s, %s, %s, 12800, 100, %s)",
                (product, product, f"禾田 {name} 5kg", name, sensitive),
            )
        return product

    async def show(self, start: datetime, *on_air: ProductId) -> ShowId:
        """An hour, with the products on air all the time."""
        show = await self.make_show("ended")
        async with self.tx() as t:
            await t.conn.execute(
                "UPDATE shows SET started_at = %s, ended_at = %s WHERE id = %s",
                (start, start + timedelta(hours=1), show),
            )
            for product in on_air:
                await t.conn.execute(
                    "INSERT INTO on_air (show_id, product_id, from_at) VALUES (%s, %s, %s)",
                    (show, product, start),
                )
        return show

    async def did(
        self,
        show: ShowId,
        member: Member | None,
        kind: str,
        moment: datetime,
        subject: str = "show",
        value: int = 0,
        text: str | None = None,
    ) -> str:
        record = new_id()
        async with self.tx() as t:
            await t.conn.execute(
                "INSERT INTO behaviour_records"
                " (id, show_id, kind, viewer, member_id, subject, value, at, text)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    record,
                    show,
                    kind,
                    "g_12345678" if member is None else member.id,
                    None if member is None else member.id,
                    subject,
                    value,
                    moment,
                    text,
                ),
            )
        return record

    async def watched_and_clicked(
        self, show: ShowId, member: Member | None, product: ProductId, start: datetime
    ) -> list[str]:
        return [
            await self.did(show, member, "watch", start, value=180_000),
            await self.did(show, member, "click", start + timedelta(seconds=90), f"product:{product}"),
        ]

    async def derive(self, show: ShowId) -> Summary:
        async with self.tx() as t:
            return await self.tags.derive(t, show)

    async def of(self, member: Member) -> tuple[Tag, ...]:
        async with self.tx() as t:
            return await self.tags.of_member(t.conn, member.id)


@pytest.fixture
def night(tx: TransactionFactory, make_show: MakeShow) -> Night:
    return Night(tx, make_show)


def hours_ago(hours: float) -> datetime:
    return datetime.now(UTC) - timedelta(hours=hours)


async def everything(pool: Pool) -> str:
    async with pool.connection() as conn:
        tags = await (await conn.execute("SELECT xmin::text, * FROM tags ORDER BY id")).fetchall()
        proofs = await (
            await conn.execute("SELECT xmin::text, * FROM tag_evidence ORDER BY tag_id, record_id")
        ).fetchall()
    return repr(tags) + repr(proofs)


async def test_a_tag_has_its_score_its_rule_and_its_evidence(night: Night, make_member: MakeMember) -> None:
    member, product = await make_member(), await night.product()
    start = hours_ago(3)
    show = await night.show(start, product)
    records = await night.watched_and_clicked(show, member, product, start)
    assert await night.derive(show) == Summary(members=1, added=1)
    (tag,) = await night.of(member)
    assert (tag.name, tag.strength, tag.rule, tag.events) == ("对有机大米感兴趣", "weak", WATCHED, 2)
    assert tag.subject == f"product:{product}"
    assert "180 s" in tag.rule_text
    assert tag.score == pytest.approx(3.7769 * 2 ** (-1 / 720), rel=1e-2)
    assert tag.as_of == start + timedelta(hours=1)
    assert [(proof.record, proof.kind, proof.event) for proof in tag.evidence] == [
        (records[1], "click", 1),
        (records[0], "watch", 2),
    ]
    assert tag.evidence[1].value == 180_000


async def test_running_again_changes_nothing_at_all(
    night: Night, make_member: MakeMember, pool: Pool
) -> None:
    product, oil, start = await night.product(), await night.product("亚麻籽油"), hours_ago(3)
    show = await night.show(start, product)
    for number in range(5):
        member = await make_member()
        await night.watched_and_clicked(show, member, product, start)
        await night.did(show, member, "comment", start + timedelta(minutes=number), text="亚麻籽油怎么买")
        await night.did(show, member, "click", start + timedelta(minutes=number), f"product:{oil}")
    assert (await night.derive(show)).added == 10
    before = await everything(pool)
    assert await night.derive(show) == Summary(members=5, unchanged=10)
    assert await everything(pool) == before


async def test_two_derivations_at_once_are_one(night: Night, make_member: MakeMember) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    summaries = await asyncio.gather(*(night.derive(show) for _ in range(4)))
    assert sum(summary.added for summary in summaries) == 1
    assert sum(summary.unchanged for summary in summaries) == 3
    assert len(await night.of(member)) == 1


async def test_guests_have_no_tags(night: Night, pool: Pool) -> None:
    product, start = await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, None, product, start)
    assert await night.derive(show) == Summary(members=0)


async def test_a_sensitive_product_is_never_tagged_and_hides_what_was(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, start = await make_member(), hours_ago(3)
    quiet, product = await night.product("降压茶", sensitive=True), await night.product()
    show = await night.show(start, quiet, product)
    await night.watched_and_clicked(show, member, quiet, start)
    await night.watched_and_clicked(show, member, product, start)
    await night.did(show, member, "comment", start, text="降压茶怎么买")
    await night.derive(show)
    assert [tag.name for tag in await night.of(member)] == ["对有机大米感兴趣"]
    async with tx() as t:
        await t.conn.execute("UPDATE products SET no_behaviour_tags = true WHERE id = %s", (product,))
    assert await night.of(member) == ()
    assert (await night.derive(show)).dropped == 1


async def test_three_events_over_two_shows_make_it_strong(night: Night, make_member: MakeMember) -> None:
    member, product = await make_member(), await night.product()
    first_start, second_start = hours_ago(24 * 7), hours_ago(3)
    first = await night.show(first_start, product)
    await night.watched_and_clicked(first, member, product, first_start)
    await night.derive(first)
    second = await night.show(second_start, product)
    said = await night.did(second, member, "comment", second_start, text="有机大米还有货吗")
    assert (await night.derive(second)).changed == 1
    (tag,) = await night.of(member)
    assert (tag.strength, tag.rule, tag.events) == ("strong", STRONG, 3)
    assert {proof.show for proof in tag.evidence} == {first, second}
    assert said in {proof.record for proof in tag.evidence}


async def test_an_earlier_show_run_after_a_later_one_changes_nothing(
    night: Night, make_member: MakeMember, pool: Pool
) -> None:
    member, product = await make_member(), await night.product()
    starts = [hours_ago(24 * 7), hours_ago(3)]
    shows = [await night.show(start, product) for start in starts]
    for show, start in zip(shows, starts, strict=True):
        await night.watched_and_clicked(show, member, product, start)
    await night.derive(shows[0])
    await night.derive(shows[1])
    before = await everything(pool)
    assert (await night.derive(shows[0])).unchanged == 1
    assert await everything(pool) == before


async def test_an_order_tags_what_was_in_it(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show, order, offer = await night.show(start), new_id(), new_id()
    async with tx() as t:
        await t.conn.execute(
            "INSERT INTO offers (id, show_id, product_id, kind, audience_bit) VALUES (%s, %s, %s, 'pin', 0)",
            (offer, show, product),
        )
        await t.conn.execute(
            "INSERT INTO orders (id, kind, member_id, show_id, key, body_digest, currency, goods_fen,"
            " total_fen, address, hold_until)"
            " VALUES (%s, 'goods', %s, %s, 'k', 'd', 'CNY', 100, 100, '{}', now())",
            (order, member.id, show),
        )
        await t.conn.execute(
            "INSERT INTO order_lines (order_id, position, kind, offer_id, product_id, name, quantity,"
            " unit_fen, line_fen, winner) VALUES (%s, 1, 'goods', %s, %s, 'x', 1, 100, 100, 'list')",
            (order, offer, product),
        )
    await night.did(show, member, "order", start, f"order:{order}")
    await night.did(show, member, "paid", start + timedelta(minutes=1), f"order:{order}")
    await night.did(show, member, "paid", start + timedelta(minutes=1), "order:not an id")
    await night.derive(show)
    (tag,) = await night.of(member)
    assert (tag.strength, tag.rule, tag.events, len(tag.evidence)) == ("weak", FEW, 1, 2)


async def test_a_ballot_for_a_choice_that_names_a_product_counts(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show, poll = await night.show(start, product), new_id()
    async with tx() as t:
        await t.conn.execute(
            "INSERT INTO polls (id, show_id, question, choices, max_choices, results, audience, opened_by)"
            " VALUES (%s, %s, '下次上什么', %s, 1, 'always', '{}', 'x')",
            (poll, show, Jsonb(["亚麻籽油", "有机大米"])),
        )
    await night.did(show, member, "ballot", start, f"poll:{poll}:1")
    await night.did(show, member, "ballot", start, "poll:nothing:1")
    await night.did(show, member, "watch", start, value=120_000)
    await night.derive(show)
    (tag,) = await night.of(member)
    assert {proof.kind for proof in tag.evidence} == {"ballot", "watch"}


async def test_a_late_record_is_taken_in_by_the_next_run(night: Night, make_member: MakeMember) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    await night.derive(show)
    # after the end by its own time: buyers keep paying
    await night.did(show, member, "comment", start + timedelta(minutes=61), text="有机大米真香")
    assert (await night.derive(show)).changed == 1
    (tag,) = await night.of(member)
    assert tag.strength == "strong" and tag.as_of == start + timedelta(hours=1)


async def test_a_tag_fades_from_sight_and_is_swept(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(24 * 61)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    await night.derive(show)
    assert await night.of(member) == ()
    async with tx() as t:
        assert await night.tags.fade(t, at=start) == 0
        assert await night.tags.fade(t) == 1
        assert await night.tags.fade(t) == 0


async def test_a_tag_that_faded_is_dropped_by_the_next_show(night: Night, make_member: MakeMember) -> None:
    member, product = await make_member(), await night.product()
    old_start, start = hours_ago(24 * 61), hours_ago(3)
    old, new = await night.show(old_start, product), await night.show(start, product)
    await night.watched_and_clicked(old, member, product, old_start)
    await night.derive(old)
    await night.did(new, member, "reaction", start, value=1)
    assert await night.derive(new) == Summary(members=1, dropped=1)


async def test_a_deleted_tag_does_not_return_from_the_same_evidence(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    await night.derive(show)
    (tag,) = await night.of(member)
    async with tx() as t:
        await night.tags.delete_by_member(t, member.id, tag.id)
    assert await night.derive(show) == Summary(members=1)
    assert await night.of(member) == ()


async def test_a_deleted_tag_stays_out_180_days_and_then_needs_new_evidence(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, other = await make_member(), await night.product(), await night.product("亚麻籽油")
    first_start = hours_ago(24 * 10)
    first = await night.show(first_start, product)
    await night.watched_and_clicked(first, member, product, first_start)
    await night.derive(first)
    (tag,) = await night.of(member)
    async with tx() as t:
        await night.tags.delete_by_member(t, member.id, tag.id)
        await t.conn.execute("UPDATE tag_deletions SET deleted_at = %s", (hours_ago(24 * 9),))

    async def next_show(days_ago: float, *things: ProductId) -> list[str]:
        start = hours_ago(24 * days_ago)
        show = await night.show(start, product, other)
        for thing in things:
            await night.watched_and_clicked(show, member, thing, start)
        await night.derive(show)
        return [tag.name for tag in await night.of(member)]

    assert await next_show(8, product, other) == ["对亚麻籽油感兴趣"]
    async with tx() as t:  # 181 days have passed
        await t.conn.execute("UPDATE tag_deletions SET deleted_at = %s", (hours_ago(24 * 188),))
        await t.conn.execute("UPDATE behaviour_records SET at = at - interval '188 days'")
        await t.conn.execute("UPDATE shows SET ended_at = ended_at - interval '188 days'")
        await t.conn.execute("DELETE FROM tags")
    assert await next_show(6, other) == ["对亚麻籽油感兴趣"]
    assert sorted(await next_show(5, product)) == ["对亚麻籽油感兴趣", "对有机大米感兴趣"]
    renewed = next(tag for tag in await night.of(member) if tag.subject == f"product:{product}")
    assert renewed.evidence and all(proof.at > hours_ago(24 * 7) for proof in renewed.evidence)


async def test_a_tag_drawn_while_its_member_deletes_it_is_not_seen(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    """The deletion decides, also over a derivation that had not seen it."""
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    async with tx() as t:
        await night.tags.derive(t, show)
        async with tx() as elsewhere:
            await elsewhere.conn.execute(
                "INSERT INTO tag_deletions (member_id, subject) VALUES (%s, %s)",
                (member.id, f"product:{product}"),
            )
    assert await night.of(member) == ()


async def test_only_ones_own_tag_is_deleted(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, other, product, start = (
        await make_member(),
        await make_member(),
        await night.product(),
        hours_ago(3),
    )
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    await night.derive(show)
    (tag,) = await night.of(member)
    for who, which in (
        (other.id, tag.id),
        (member.id, new_id()),
        (member.id, "x"),
        (MemberId(new_id()), tag.id),
    ):
        with pytest.raises(NoSuchTag):
            async with tx() as t:
                await night.tags.delete_by_member(t, who, which)
    assert await night.of(member) == (tag,)


async def test_an_erased_member_is_not_tagged_again(
    night: Night, members: Members, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    await night.derive(show)
    async with tx() as t:
        await members.erase(t, member.id)
    assert await night.derive(show) == Summary(members=0)


async def test_the_tags_of_a_show_come_page_by_page(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    product, start = await night.product(), hours_ago(3)
    show, quiet = await night.show(start, product), await night.show(start, product)
    for _ in range(5):
        await night.watched_and_clicked(show, await make_member(), product, start)
    await night.derive(show)
    async with tx() as t:
        first = await night.tags.of_show(t.conn, show, limit=3)
        rest = await night.tags.of_show(t.conn, show, first.next, 3)
        assert len(first.items) == 3 and len(rest.items) == 2 and rest.next is None
        assert all(len(tag.evidence) == 2 for tag in first.items)
        assert (await night.tags.of_show(t.conn, quiet)).items == ()
        with pytest.raises(BadCursor):
            await night.tags.of_show(t.conn, show, "x")


async def test_a_show_that_is_not_there_is_refused(night: Night) -> None:
    with pytest.raises(NotFound):
        await night.derive(ShowId("nosuchshow"))


async def test_a_product_still_on_air_of_a_show_without_an_end_is_tagged_by_its_last_record(
    night: Night, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, product, start = await make_member(), await night.product(), hours_ago(3)
    show = await night.show(start, product)
    await night.watched_and_clicked(show, member, product, start)
    async with tx() as t:
        await t.conn.execute("UPDATE shows SET ended_at = NULL")
    await night.derive(show)
    (tag,) = await night.of(member)
    assert tag.as_of == start + timedelta(seconds=90)
