"""Redis killed, frozen, emptied, brought back from the past, trimmed, or silently unreachable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from commerce.benefit_terms import BenefitInput
from live.log import RECENT_ENTRIES
from live.recorder import Recorder
from loadtests.outage import Talker, Watcher, differences, heard_all
from loadtests.viewer import RefusedError
from membership.actor import PERMISSIONS, Actor, BenefitId, ShowId, public_id
from membership.partition import show_key
from membership.refusal import Away
from tests.live.serving import Served, serve
from tests.outage.stand import Link, Stand, entered, until

pytestmark = pytest.mark.anyio

OWNER = Actor(kind="job", id="test", role="owner", permissions=PERMISSIONS["owner"])
FROZEN_S = 2.0


class Hall:
    """A show with viewers on one or two nodes, and members who talk."""

    def __init__(self, show: ShowId) -> None:
        self.show = show
        self.watchers: list[Watcher] = []
        self.talkers: list[Talker] = []

    async def join(self, served: Served, actor: Actor | None = None) -> Watcher:
        url = served.url.replace("http", "ws", 1) + f"/v1/shows/{self.show}/socket"
        watcher = Watcher(url, None if actor is None else served.token(actor))
        self.watchers.append(watcher)
        watcher.start()
        await asyncio.wait_for(watcher.viewer.joined.wait(), 10)
        return watcher

    async def talker(self, served: Served) -> Talker:
        watcher = await self.join(served, await served.member(f"观众{len(self.talkers)}"))
        self.talkers.append(Talker(watcher, f"观众{len(self.talkers)}"))
        return self.talkers[-1]

    async def all_heard(self, **rules: Any) -> list[str]:
        await heard_all(self.watchers, self.talkers)
        return differences(self.watchers, self.talkers, **rules)


@asynccontextmanager
async def hall(served: Served, *others: Served, talkers: int = 3) -> AsyncIterator[Hall]:
    made = Hall(await served.make_show())
    try:
        for each in (served, *others):
            await made.join(each)
        for number in range(talkers):
            await made.talker((served, *others)[number % (1 + len(others))])
        yield made
    finally:
        await asyncio.gather(*(watcher.stop() for watcher in made.watchers))


async def log_back(*nodes: Served) -> None:
    await until(lambda: all(served.node.following.up for served in nodes))


async def test_killed_under_traffic_and_started_again_it_has_lost_nothing_that_was_acknowledged(
    served: Served, stand: Stand, tmp_path: Path
) -> None:
    url = stand.addresses.database_url
    async with serve(stand.addresses, url, tmp_path) as other, hall(served, other, talkers=6) as made:
        talking = [asyncio.create_task(talker.run()) for talker in made.talkers]
        await until(lambda: all(talker.said for talker in made.talkers))
        before = sum(len(talker.said) for talker in made.talkers)
        stand.kill_redis()
        await until(lambda: not served.node.following.up and not other.node.following.up)
        stand.restart()
        await until(lambda: sum(len(talker.said) for talker in made.talkers) >= before + 6)
        for talker in made.talkers:
            talker.stop()
        await asyncio.gather(*talking)
        assert await made.all_heard() == []


async def test_frozen_it_closes_nobody_and_a_repeated_key_has_run_once(served: Served, stand: Stand) -> None:
    async with hall(served) as made:
        talker, watcher = made.talkers[0], made.watchers[0]
        talking = [asyncio.create_task(one.run()) for one in made.talkers]
        await until(lambda: all(one.said for one in made.talkers))
        with stand.frozen_redis():
            await until(lambda: all(one.refused["unavailable"] for one in made.talkers))
            await asyncio.sleep(FROZEN_S)
        for one in made.talkers:
            one.stop()
        await asyncio.gather(*talking)
        assert any(said.tries > 1 for said in talker.said)
        assert await made.all_heard() == []
        assert {talker.lost, watcher.returns} == {0}


async def test_while_it_is_frozen_commands_do_not_pile_up_before_it(
    served: Served, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three hundred commands fifty wait for the store; the others are answered with them."""
    show, member = await served.make_show(), await served.member("王小明")
    await served.node.hub(show)
    sent: list[str] = []
    send = served.parts.redis.evalsha

    async def counted(*args: Any) -> Any:
        sent.append(args[0])
        return await send(*args)

    with stand.frozen_redis():
        monkeypatch.setattr(served.parts.redis, "evalsha", counted)
        answers = await asyncio.gather(
            *(served.parts.comments.post(member, show, f"第 {n} 句", f"k{n}") for n in range(300)),
            return_exceptions=True,
        )
        first = len(sent)
        assert {type(answer) for answer in answers} == {Away}
        with pytest.raises(Away):  # at once: nothing is sent
            await served.parts.comments.post(member, show, "再来一句", "k")
    assert first <= 60  # fifty, and the clock work of this process


async def test_no_answer_is_not_taken_for_lost_keys(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that thaws at the wrong moment would be emptied of a show that it has whole."""
    async with hall(served) as made:
        await made.talkers[0].say("记得我")
        before = await row_of(served, made.show)
        with monkeypatch.context() as patched:
            patched.setattr(served.parts.shows, "_read", no_answer)
            with pytest.raises(Away):
                await served.parts.shows.agree(made.show)
            await served.parts.shows.open_due(served.parts.database, OWNER)
        assert await served.parts.shows.agree(made.show) is False
        assert await row_of(served, made.show) == before
        await served.node.following.check_positions()
        await made.talkers[1].say("我也在")
        assert await made.all_heard() == []


async def no_answer(*_: object) -> None:
    raise Away(retry_ms=1000)


async def test_a_show_in_memory_is_entered_while_it_is_away_and_the_rest_is_told_later(
    served: Served, stand: Stand
) -> None:
    show, member = await served.make_show(), await served.member("王小明")
    seat = await served.enter(show)
    host = await served.staff("host")
    await served.parts.comments.post(member, show, "开着门呢")
    await served.parts.comments.mute(host, show, public_id(show, member.id), 600)
    await seat.event("comment.posted")
    stand.kill_redis()
    try:
        await until(lambda: not served.node.following.up)
        guest, known = await served.enter(show), await served.enter(show, member)
        for entered in (guest, known):
            assert entered.welcome["type"] == "welcome"
            assert [c["text"] for c in entered.welcome["comments"]] == ["开着门呢"]
            assert entered.welcome["you"]["votes"] == {}
            assert entered.welcome["you"]["muted_until"] is None
        back = await served.enter(show, since={"epoch": seat.welcome["epoch"], "seq": seat.welcome["seq"]})
        assert back.welcome["recovered"] is True
        assert (await back.event("comment.posted"))["text"] == "开着门呢"
        refused = await known.ask("comment.post", key="k1", text="听得见吗")
        assert (refused["code"], refused["retry_ms"]) == ("unavailable", 1000)
        assert "redis" not in json.dumps(refused).lower()
        assert "sock" not in json.dumps(refused).lower()
    finally:
        stand.restart()
    assert (await known.event("you"))["data"]["muted_until"] is not None
    assert (await guest.event("you"))["data"]["muted_until"] is None
    refused = await known.ask("comment.post", key="k1", text="听得见吗")
    assert refused["code"] == "muted"


async def test_a_show_that_is_in_no_memory_is_refused_for_now(served: Served, stand: Stand) -> None:
    show = await served.make_show()
    stand.kill_redis()
    try:
        await until(lambda: not served.node.following.up)
        seat = await served.enter(show)
        assert (seat.welcome["type"], seat.welcome["code"]) == ("refused", "unavailable")
        assert seat.welcome["retry_ms"]
        assert await seat.closed() == 4104
    finally:
        stand.restart()
    await log_back(served)
    await entered(served, show)


async def test_back_from_the_past_it_gets_a_new_epoch_and_what_was_won_stays_won(
    served: Served, stand: Stand
) -> None:
    """Its last writes are lost: lines, and the counters of a benefit that somebody has."""
    async with hall(served, talkers=2) as made:
        first, second = made.talkers
        async with served.parts.database.transaction() as t:
            benefit = await served.parts.benefits.open(
                t, OWNER, made.show, BenefitInput(title="试吃装", quota=2)
            )
        for number in range(2):
            await first.say(f"早先第 {number} 句")
        await served.parts.shows.agree(made.show)
        stand.remember()
        kept = len(first.said)
        won = await claim(first, benefit.id)
        for number in range(2):
            await second.say(f"后来第 {number} 句")
        assert await made.all_heard() == []
        epoch = made.watchers[0].epochs[-1]
        stand.forget()
        await until(lambda: all(watcher.epochs[-1] != epoch for watcher in made.watchers))
        assert all(watcher.gaps == 1 and not watcher.welcomes[-1]["recovered"] for watcher in made.watchers)
        for watcher in made.watchers:  # each has the lines it had, and a snapshot of those the store kept
            assert {said.text for said in first.said[:kept]} <= watcher.shown
        new = [await talker.say(f"{talker.name} 回来了") for talker in (first, second)]
        assert new[0].seq <= second.said[-2].seq  # a number of old again, in another epoch
        assert await made.all_heard(epochs=2) == []
        assert await claim(first, benefit.id) == won
        assert await claim(second, benefit.id) == {"rank": 2, "of": 2}
        async with served.parts.database.reading() as conn:
            rows = await (
                await conn.execute(
                    "SELECT rank FROM benefit_claims WHERE benefit_id = %s ORDER BY rank", [benefit.id]
                )
            ).fetchall()
        assert [row["rank"] for row in rows] == [1, 2]


async def claim(talker: Talker, benefit: BenefitId) -> dict[str, Any]:
    """The rank that this member has, asked for until it is answered."""
    async with asyncio.timeout(15):
        while True:
            try:
                answer = await talker.watcher.viewer.ask("benefit.claim", key="mine", benefit=benefit)
            except RefusedError as refused:
                if refused.code != "unavailable":
                    raise
                await asyncio.sleep(refused.answer["retry_ms"] / 1000)
            else:
                return {"rank": answer["rank"], "of": answer["of"]}


@pytest.mark.parametrize("away_again", [False, True])
async def test_a_store_that_has_grown_past_what_it_lost_is_known_by_its_entries(
    served: Served, away_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number alone tells nothing: it is as high as the one this node saw, and of other events.

    Away a second time before it could be compared, it is compared with what was seen before the first.
    """
    async with hall(served, talkers=1) as made:
        (talker,) = made.talkers
        said = [await talker.say(f"第 {number} 句") for number in range(3)]
        assert await made.all_heard() == []
        recorder = Recorder(served.parts)
        await recorder.record(made.show)
        epoch, last = made.watchers[0].epochs[-1], said[-1].seq
        log, meta = show_key(made.show, "log"), show_key(made.show, "meta")
        redis = served.parts.redis
        lost = await redis.xrange(log, min=f"{said[1].seq}-0")
        served.node.following.on_health(False)
        async with redis.pipeline(transaction=True) as pipe:
            pipe.delete(log)
            for raw_id, fields in await redis.xrange(log, max=f"{said[0].seq}-0"):
                pipe.xadd(log, fields, id=raw_id)
            for number in range(said[1].seq, last + 3):
                other = lost[0][1][b"e"].replace("第 1 句".encode(), f"另一句 {number}".encode())
                pipe.xadd(log, {**lost[0][1], b"e": other}, id=f"{number}-0")
            pipe.hset(meta, "seq", last + 2)
            await pipe.execute()
        await served.node.hubs[made.show].reached(last + 2, 5)  # taken for what follows: nothing is missing
        if away_again:
            with monkeypatch.context() as patched:
                patched.setattr(served.parts.show_log, "position", no_answer)
                patched.setattr(served.node.show_log, "position", no_answer)
                await served.node.following.check_positions()
            served.node.following.on_health(True)
            served.node.following.on_health(False)
        served.node.following.on_health(True)
        await until(lambda: all(watcher.epochs[-1] != epoch for watcher in made.watchers))
        await until(lambda: all(watcher.shown for watcher in made.watchers))
        wanted = {"第 0 句", *(f"另一句 {number}" for number in range(said[1].seq, last + 3))}
        for watcher in made.watchers:
            assert watcher.shown == wanted
        found = await redis.hmget(meta, "epoch_before", "epoch_from", "rebuilding")
        assert found == [epoch.encode(), str(said[0].seq).encode(), None]
        await recorder.record(made.show)
        async with served.parts.database.reading() as conn:
            rows = await (
                await conn.execute(
                    "SELECT event->>'text' AS text FROM show_log"
                    " WHERE show_id = %s AND event->>'type' = 'comment.posted'",
                    [made.show],
                )
            ).fetchall()
        recorded = [row["text"] for row in rows]  # what was said and lost stays in the record
        assert sorted(recorded) == sorted({*wanted, "第 1 句", "第 2 句"})


async def test_two_nodes_that_see_the_past_agree_on_one_new_epoch(
    served: Served, stand: Stand, tmp_path: Path
) -> None:
    url = stand.addresses.database_url
    async with serve(stand.addresses, url, tmp_path) as other, hall(served, other, talkers=2) as made:
        await made.talkers[0].say("以前的")
        stand.remember()
        await made.talkers[1].say("没了的")
        assert await made.all_heard() == []
        stand.forget()
        await until(lambda: all(len(watcher.epochs) > 1 for watcher in made.watchers))
        await made.talkers[0].say("以后的")
        assert await made.all_heard(epochs=2) == []
        assert len({watcher.epochs[-1] for watcher in made.watchers}) == 1


async def test_empty_it_is_filled_from_the_books_and_the_viewers_stay(served: Served, stand: Stand) -> None:
    async with hall(served, talkers=2) as made:
        async with served.parts.database.transaction() as t:
            benefit = await served.parts.benefits.open(
                t, OWNER, made.show, BenefitInput(title="试吃装", quota=5)
            )
        won = await claim(made.talkers[0], benefit.id)
        before = await row_of(served, made.show)
        epoch = made.watchers[0].epochs[-1]
        stand.empty()
        await until(lambda: all(watcher.epochs[-1] != epoch for watcher in made.watchers))
        await until(lambda: all(not watcher.gaps or len(watcher.welcomes) > 1 for watcher in made.watchers))
        assert [watcher.returns for watcher in made.watchers] == [0, 0, 0]
        assert (await row_of(served, made.show))["generation"] > before["generation"]
        state = made.watchers[0].viewer.states[f"benefit:{benefit.id}"]["data"]
        assert state["counts"]["confirmed"] == 1
        assert await claim(made.talkers[0], benefit.id) == won
        await made.talkers[1].say("我们还在")
        assert await made.all_heard(epochs=2) == []


async def row_of(served: Served, show: ShowId) -> dict[str, Any]:
    async with served.parts.database.reading() as conn:
        row = await (await conn.execute("SELECT generation FROM shows WHERE id = %s", [show])).fetchone()
    assert row is not None
    return dict(row)


async def test_a_log_trimmed_before_this_node_read_it_gives_a_snapshot_never_a_part(served: Served) -> None:
    async with hall(served, talkers=1) as made:
        (talker,) = made.talkers
        said = await talker.say("留下的")
        assert await made.all_heard() == []
        log, meta = show_key(made.show, "log"), show_key(made.show, "meta")
        redis = served.parts.redis
        ((_, fields),) = await redis.xrange(log, min=f"{said.seq}-0", max=f"{said.seq}-0")
        last = said.seq + RECENT_ENTRIES
        async with redis.pipeline(transaction=True) as pipe:  # as many were posted, and few are left
            pipe.hset(meta, "seq", last)
            for number in range(last - 2, last + 1):
                event = fields[b"e"].replace("留下的".encode(), f"新的 {number}".encode())
                pipe.xadd(log, {**fields, b"e": event}, id=f"{number}-0")
            pipe.xtrim(log, maxlen=3, approximate=False)
            await pipe.execute()
        await until(lambda: all(len(watcher.welcomes) > 1 for watcher in made.watchers))
        for watcher in made.watchers:
            assert watcher.gaps == 1
            assert watcher.welcomes[-1]["recovered"] is False
            assert watcher.welcomes[-1]["seq"] == last
            assert watcher.shown == {f"新的 {number}" for number in range(last - 2, last + 1)}
            assert watcher.viewer.holes == 0


async def test_a_link_that_carries_nothing_and_says_nothing_is_noticed_and_made_anew(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing arrives, nothing fails: only that the blocked read outlives its own end gives it away."""
    for module in ("live.app", "live.log"):
        monkeypatch.setattr(f"{module}.BLOCK_MS", 500)
    link = Link(f"{stand.addresses.run_dir}/valkey.sock")
    url = await link.start()
    (tmp_path / "other").mkdir()
    try:
        async with (
            serve(stand.addresses, stand.addresses.database_url, tmp_path, redis_url=url) as served,
            serve(stand.addresses, stand.addresses.database_url, tmp_path / "other") as other,
            hall(served, other, talkers=2) as made,
        ):
            await made.talkers[0].say("通着的")
            assert await made.all_heard() == []
            opened = link.opened
            link.go_dead()
            for number in range(3):
                await made.talkers[1].say(f"断着时第 {number} 句")
            await until(lambda: link.opened > opened)
            await made.talkers[0].say("又通了")
            assert await made.all_heard() == []
    finally:
        await link.stop()
