"""Receipts: what is signed, what a check refuses, and the chain that no claim escapes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.benefit_terms import Benefit
from commerce.claims import SoldOut, Won
from commerce.receipts import (
    CHARS_MAX,
    Receipt,
    Receipts,
    Unverified,
    broken_link,
    core_of,
    digest_of,
    in_words,
    read_core,
    verify,
)
from membership.actor import BenefitId, MemberId, ShowId, new_id, public_id
from tests.commerce.benefit_stage import HOST, Stage, gathered, viewer
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

SIGNER = Receipts("a secret of thirty-two characters")
KEY = SIGNER.public_key
SAID = Receipt(
    show=ShowId("abcdefghjk"),
    benefit=BenefitId("0197a000-0000-7000-8000-000000000001"),
    title="厨房三件套 🎁",
    what="gift",
    value_fen=5_900,
    rank=37,
    of=100,
    nth=1,
    viewer="abcdefghijkl",
    at=1_763_000_000_123,
    link=37,
    before="0" * 64,
)
RECEIPT = SIGNER.sign(core_of(SAID))
SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."


def refused(receipt: str, key: str = KEY) -> str:
    with pytest.raises(Unverified) as caught:
        verify(receipt, key)
    return str(caught.value)


def signed(core: str) -> str:
    return SIGNER.sign(core)


async def chain_of(stage: Stage, benefit: Benefit) -> list[str]:
    async with stage.tx() as t:
        return [link.core for link in await SIGNER.chain(t.conn, benefit.id, limit=1000)]


# --- one receipt ---


def test_a_receipt_says_what_was_signed_to_whoever_has_the_public_key() -> None:
    assert verify(RECEIPT, KEY) == SAID
    assert len(RECEIPT) < CHARS_MAX / 2
    said = in_words(SAID)
    assert "37 of 100" in said
    assert "厨房三件套" in said
    assert "59.00" in said


def test_every_node_of_a_deployment_signs_alike_and_another_deployment_does_not() -> None:
    assert Receipts(b"a secret of thirty-two characters").sign(core_of(SAID)) == RECEIPT
    other = Receipts("another secret of 32 characters.")
    assert other.public_key != KEY
    assert "another key" in refused(other.sign(core_of(SAID)))


def test_the_key_is_drawn_for_receipts_alone() -> None:
    secret = b"a secret of thirty-two characters"
    assert base64.urlsafe_b64decode(KEY + "=") != hashlib.sha256(secret).digest()
    assert secret.hex() not in RECEIPT


@given(st.integers(0, len(RECEIPT) - 1), st.sampled_from(SIGNS))
def test_no_character_can_be_changed(place: int, sign: str) -> None:
    changed = RECEIPT[:place] + sign + RECEIPT[place + 1 :]
    if changed == RECEIPT:
        assert verify(changed, KEY) == SAID
    else:
        refused(changed)


@given(st.data())
def test_no_byte_of_any_receipt_can_be_changed(data: st.DataObject) -> None:
    said = msgspec.structs.replace(
        SAID,
        title=data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)),
        rank=data.draw(st.integers(1, 100)),
    )
    whole = signed(core_of(said)).encode()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each != whole[place]))
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    assert verify(whole.decode(), KEY) == said
    refused(changed.decode("latin-1"))


@given(st.text(max_size=400))
def test_junk_is_refused_by_name(text: str) -> None:
    assert refused(text)


@given(st.integers(0, len(RECEIPT) - 1))
def test_a_receipt_that_was_cut_off_is_refused(length: int) -> None:
    assert refused(RECEIPT[:length])
    assert refused(RECEIPT + RECEIPT[: length + 1])


@pytest.mark.parametrize(
    ("receipt", "why"),
    [
        ("", "three parts"),
        ("r1", "three parts"),
        ("r1..", "three parts"),
        (RECEIPT + ".x", "three parts"),
        (RECEIPT[:-4], "cut off"),
        ("r2" + RECEIPT[2:], "version r2"),
        ("r1.QQ.QQ", "2 characters of 86"),
        ("r1.A." + RECEIPT.rpartition(".")[2], "not base64url"),
        (RECEIPT + "\n", "none that a receipt can have"),
        ("r１" + RECEIPT[2:], "character 2"),
        ("\0" * 9, "character 1"),
        ("r1." + "A" * CHARS_MAX + ".A", f"at most {CHARS_MAX}"),
        (RECEIPT[:-1] + ("h" if RECEIPT[-1] != "h" else "i"), "as we write it"),
    ],
)
def test_what_is_wrong_is_said(receipt: str, why: str) -> None:
    assert why in refused(receipt)


def test_a_signature_over_something_else_is_no_receipt() -> None:
    for core in ("{", "{}", "[1]", '{"rank":"one"}', core_of(SAID)[:-1] + ',"more":1}'):
        assert "is no receipt" in refused(signed(core))


@pytest.mark.parametrize("key", ["", "x", "é", KEY[:-2], KEY + "AA", "A" * 42 + "B"])
def test_what_is_no_key_is_said_to_be_none(key: str) -> None:
    assert "key" in refused(RECEIPT, key)


# --- the chain ---


def links(count: int) -> list[str]:
    cores: list[str] = []
    before = ""
    for link in range(1, count + 1):
        core = core_of(msgspec.structs.replace(SAID, rank=link, link=link, before=before))
        cores.append(core)
        before = digest_of(core)
    return cores


def test_an_unbroken_chain_has_nothing_wrong_with_it() -> None:
    assert broken_link([]) is None
    assert broken_link(links(5)) is None


def test_a_link_left_out_put_in_moved_or_changed_breaks_the_chain() -> None:
    whole = links(5)
    assert "link 3" in (broken_link([*whole[:2], *whole[3:]]) or "")
    assert "link 3" in (broken_link([*whole[:2], whole[1], *whole[2:]]) or "")
    assert "link 2" in (broken_link([whole[0], whole[2], whole[1], *whole[3:]]) or "")
    assert "link 4" in (broken_link([*whole[:2], whole[2].replace("5900", "5901"), *whole[3:]]) or "")
    assert "link 1" in (broken_link(whole[1:]) or "")
    assert "cannot be read" in (broken_link(["{"]) or "")


def test_a_rank_that_is_given_twice_or_is_over_the_quota_is_no_chain() -> None:
    first = core_of(msgspec.structs.replace(SAID, rank=1, link=1, before=""))
    twice = core_of(msgspec.structs.replace(SAID, rank=1, link=2, before=digest_of(first)))
    assert "rank 1 of 100" in (broken_link([first, twice]) or "")
    over = core_of(msgspec.structs.replace(SAID, rank=101, link=1, before=""))
    assert "rank 101 of 100" in (broken_link([over]) or "")


async def test_two_hundred_claims_at_once_through_two_gatherers_make_one_unbroken_chain(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=200)
    members = await stage.members(220)
    other = Stage(stage.redis, stage.scripts, stage.tx)
    gatherers = [gathered(stage.claims), gathered(other.claims)]

    async def claim(number: int, member: MemberId) -> Won | None:
        try:
            return await gatherers[number % 2].ask((show, benefit.id), (viewer(member), f"k{member}"))
        except SoldOut:
            return None

    answers = await asyncio.gather(*(claim(number, member) for number, member in enumerate(members)))
    won = {member: answer for member, answer in zip(members, answers, strict=True) if answer}
    assert len(won) == 200
    cores = await chain_of(stage, benefit)
    assert broken_link(cores) is None
    assert sorted(read_core(core).rank for core in cores) == list(range(1, 201))
    for member, answer in won.items():
        said = verify(SIGNER.sign(answer.core), KEY)
        assert (said.rank, said.of, said.viewer) == (answer.rank, 200, public_id(show, member))
        assert answer.core in cores
    for gatherer in gatherers:
        await gatherer.close()


async def test_the_same_key_again_gives_the_same_receipt(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=2)
    member = await stage.member()
    first, again = [
        (await stage.claims.claim_many(show, benefit.id, [(viewer(member), "k")]))[0] for _ in range(2)
    ]
    assert isinstance(first, Won)
    assert first == again
    assert first.core


async def test_seats_and_earlier_joins_are_links_in_payment_order(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    early = await stage.members(2)
    for member in early:
        await stage.pay(show, member)
    benefit = await stage.open(show, needs="join", quota=4)
    late = await stage.members(2)
    for member in late:
        await stage.pay(show, member)
    cores = await chain_of(stage, benefit)
    said = [read_core(core) for core in cores]
    assert broken_link(cores) is None
    assert [(each.rank, each.link) for each in said] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [each.viewer for each in said] == [public_id(show, member) for member in [*early, *late]]


async def test_a_recalled_rank_keeps_its_link_and_its_receipt_stays_good(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=3)
    members = await stage.members(3)
    payments = [(await stage.pay(show, member))[0] for member in members[:2]]
    before = await chain_of(stage, benefit)
    async with stage.tx() as t:
        await stage.seats.refund(t, payments[0], "recalled")
    await stage.pay(show, members[2])
    cores = await chain_of(stage, benefit)
    assert cores[:2] == before
    assert broken_link(cores) is None
    assert verify(SIGNER.sign(cores[0]), KEY).rank == 1


async def test_a_receipt_tells_the_quota_of_its_own_moment(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=1)
    first, second = await stage.members(2)
    await stage.claims.claim_many(show, benefit.id, [(viewer(first), "k1")])
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit.id, 5)
    other = Stage(stage.redis, stage.scripts, stage.tx)  # it does not remember a spent quota
    await other.claims.claim_many(show, benefit.id, [(viewer(second), "k2")])
    assert [read_core(core).of for core in await chain_of(stage, benefit)] == [1, 5]


async def test_what_rolls_back_leaves_no_link_behind(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=3)
    lost, kept = await stage.members(2)
    with pytest.raises(RuntimeError):
        async with stage.tx() as t:
            payment = await stage.payment(t, show, lost)
            await stage.seats.confirm(t, show, lost, payment, "payer")
            raise RuntimeError
    await stage.pay(show, kept)
    (core,) = await chain_of(stage, benefit)
    assert (read_core(core).link, read_core(core).viewer) == (1, public_id(show, kept))


async def test_a_kept_receipt_can_be_neither_changed_nor_taken_away(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    await stage.claims.claim_many(show, benefit.id, [(viewer(await stage.member()), "k")])
    for change in (
        "UPDATE benefit_receipts SET core = ''",
        "DELETE FROM benefit_receipts",
        "TRUNCATE benefit_receipts",
    ):
        with pytest.raises(Exception, match="append-only"):
            await stage.rows(change)


async def test_the_holder_reads_their_receipts_and_one_that_was_tampered_with_is_not_signed(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    member = await stage.member()
    for title in ("厨房三件套", "试吃装"):
        benefit = await stage.open(show, title=title)
        await stage.claims.claim_many(show, benefit.id, [(viewer(member), f"k{title}")])

    async def mine(**more: Any) -> Any:
        async with stage.tx() as t:
            return await SIGNER.of_member(t.conn, member, **more)

    page = await mine()
    assert [held.title for held in page.items] == ["试吃装", "厨房三件套"]
    assert [verify(held.receipt, KEY).title for held in page.items] == ["试吃装", "厨房三件套"]
    first = await mine(limit=1)
    rest = await mine(cursor=first.next, limit=1)
    assert (*first.items, *rest.items) == page.items
    async with stage.tx() as t:
        await t.conn.execute("SET LOCAL session_replication_role = replica")
        await t.conn.execute(
            "UPDATE benefit_receipts SET core = replace(core, '\"rank\":1', '\"rank\":2')"
            " WHERE benefit_id = %s",
            [benefit.id],
        )
    assert [held.title for held in (await mine()).items] == ["厨房三件套"]
    async with stage.tx() as t:
        assert (await SIGNER.of_member(t.conn, MemberId(new_id()))).items == ()
