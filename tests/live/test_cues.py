"""Cues: prepared and checked beforehand, run with one key, once where something is given."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chat.polls import PollOpen
from commerce.guards import NoPromo
from live.cues import Cue, CueDone, CueInput, CueRunning
from live.database import Database
from live.lua import Scripts
from live.shows import Show, WrongStatus
from membership.actor import ProductId, ShowId, new_id
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from tests.live.stage import Stage, staff, viewer

pytestmark = pytest.mark.anyio


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, database: Database) -> Stage:
    return Stage(redis, scripts, database)


def cue(kind: Any, shortcut: str, payload: dict[str, Any], **given: Any) -> CueInput:
    return CueInput(kind=kind, shortcut=shortcut, payload=payload, title=given.pop("title", "一号"), **given)


def the_four(product: ProductId) -> list[CueInput]:
    """What the demo has: pin A, benefit B, poll C, flash D; and an announcement E."""
    return [
        cue("pin", "A", {"product": product}),
        cue("benefit", "B", {"title": "前100名礼盒", "quota": 100, "value_fen": 5_900}),
        cue("poll", "C", {"question": "加什么?", "choices": ["红枣", "山药"]}),
        cue("flash", "D", {"product": product, "flash_fen": 9_900, "quota": 20, "seconds": 60}),
        cue("announcement", "E", {"text": "九点秒杀"}),
    ]


async def put(stage: Stage, show: ShowId, given: list[CueInput]) -> list[Cue]:
    async with stage.database.transaction() as t:
        return list(await stage.cues.put(t, stage.host, show, given))


async def run(stage: Stage, show: ShowId, which: str, actor: Any = None) -> Cue:
    async with stage.database.transaction() as t:
        return await stage.cues.run(t, actor or stage.host, show, which)


async def stop(stage: Stage, show: ShowId, which: str) -> Cue:
    async with stage.database.transaction() as t:
        return await stage.cues.stop(t, stage.host, show, which)


async def listed(stage: Stage, show: ShowId) -> list[Cue]:
    async with stage.database.reading() as conn:
        return await stage.cues.list(conn, show)


async def test_each_kind_opens_what_it_holds_and_stops_it_again(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    cues = await put(stage, show, the_four(product.id))
    assert [one.state for one in cues] == ["ready"] * 5
    for one in cues:
        started = await run(stage, show, one.id)
        assert started.state == "running"
        assert (started.subject is None) == (one.kind == "announcement")
    states = await stage.states(show)
    pin, benefit, poll, flash, _ = await listed(stage, show)
    assert states[f"offer:{pin.subject}"]["kind"] == "pin"
    assert states[f"offer:{flash.subject}"]["flash_fen"] == 9_900
    assert states[f"benefit:{benefit.subject}"]["quota"] == 100
    assert states[f"poll:{poll.subject}"]["choices"] == ["红枣", "山药"]
    assert states["announcement"] == {"text": "九点秒杀"}
    for one in cues:
        assert (await stop(stage, show, one.id)).state == "done"
        assert (await stop(stage, show, one.id)).state == "done"
    states = await stage.states(show)
    assert not any(key.startswith("offer:") and data["status"] == "open" for key, data in states.items())
    assert states[f"poll:{poll.subject}"]["open"] is False
    assert states["announcement"] == {}


async def test_pressed_ten_times_at_once_a_cue_runs_once(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    cues = await put(stage, show, the_four(product.id))
    for one in cues:
        answers = await asyncio.gather(*(run(stage, show, one.id) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(answer, Cue) for answer in answers) == 1
        assert sum(isinstance(answer, CueRunning) for answer in answers) == 9
    words = await stage.words(show)
    assert sorted(word for word in words if not word.startswith("show.")) == [
        "announcement.set",
        "benefit.opened",
        "offer.opened",
        "offer.opened",
        "poll.opened",
    ]


async def test_what_has_a_quota_runs_once_and_the_rest_may_run_again(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    for one in await put(stage, show, the_four(product.id)):
        await run(stage, show, one.id)
        await stop(stage, show, one.id)
        if one.kind in ("flash", "benefit"):
            with pytest.raises(CueDone):
                await run(stage, show, one.id)
        else:
            assert (await run(stage, show, one.id)).state == "running"
            await stop(stage, show, one.id)


async def test_a_cue_whose_offer_was_closed_elsewhere_no_longer_runs(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    pin, *_, flash, _ = await put(stage, show, the_four(product.id))
    started = await run(stage, show, pin.id)
    await run(stage, show, flash.id)
    async with stage.database.transaction() as t:
        await stage.offers.close(t, stage.host, show, started.subject)  # type: ignore[arg-type]
        await t.conn.execute(
            "UPDATE offers SET opened_at = now() - interval '2 minutes',"
            " closes_at = now() - interval '1 second' WHERE kind = 'flash'"
        )
    async with stage.database.transaction() as t:
        await stage.offers.close_due(t)
    states = {one.kind: one.state for one in await listed(stage, show)}
    assert (states["pin"], states["flash"]) == ("done", "done")
    assert (await run(stage, show, pin.id)).state == "running"


async def test_the_next_announcement_takes_the_place_of_the_last(stage: Stage) -> None:
    show = (await stage.show("live")).id
    one, two = await put(
        stage,
        show,
        [cue("announcement", "1", {"text": "第一"}), cue("announcement", "2", {"text": "第二"})],
    )
    await run(stage, show, one.id)
    await run(stage, show, two.id)
    assert [each.state for each in await listed(stage, show)] == ["done", "running"]
    assert (await stage.states(show))["announcement"] == {"text": "第二"}


async def test_a_second_poll_is_refused_and_its_cue_stays_ready(stage: Stage) -> None:
    show = (await stage.show("live")).id
    poll = {"question": "好吗?", "choices": ["好", "不好"]}
    one, two = await put(stage, show, [cue("poll", "1", poll), cue("poll", "2", poll)])
    await run(stage, show, one.id)
    with pytest.raises(PollOpen):
        await run(stage, show, two.id)
    assert [each.state for each in await listed(stage, show)] == ["running", "ready"]


@pytest.mark.parametrize("status", ["scheduled", "ended"])
async def test_nothing_runs_before_the_waiting_room_or_after_the_end(stage: Stage, status: str) -> None:
    show, product = await stage.show("scheduled"), await stage.product()
    cues = await put(stage, show.id, the_four(product.id))
    if status == "ended":
        for move in ("open", "start", "end"):
            await stage.move(move, show.id)
        with pytest.raises(WrongStatus):
            await put(stage, show.id, [])
    for one in cues:
        with pytest.raises(WrongStatus):
            await run(stage, show.id, one.id)


async def test_the_end_of_the_show_ends_its_cues(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    cues = await put(stage, show, the_four(product.id))
    for one in cues:
        await run(stage, show, one.id)
    await stage.move("end", show)
    assert {one.state for one in await listed(stage, show)} == {"done"}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("pin", {}),
        ("pin", {"product": "PRODUCT", "flash_fen": 1}),
        ("pin", {"product": "none"}),
        ("pin", {"product": "01a1fff2-ca87-7541-9a29-2ed545c3bc67"}),
        ("flash", {"product": "PRODUCT", "quota": 5, "seconds": 60}),
        ("flash", {"product": "PRODUCT", "flash_fen": 12_800, "quota": 5, "seconds": 60}),
        ("flash", {"product": "PRODUCT", "flash_fen": 0, "quota": 5, "seconds": 60}),
        ("flash", {"product": "PRODUCT", "flash_fen": 99.5, "quota": 5, "seconds": 60}),
        ("flash", {"product": "PRODUCT", "flash_fen": 9_900, "quota": -1, "seconds": 60}),
        ("flash", {"product": "PRODUCT", "flash_fen": 9_900, "quota": 5, "seconds": 1}),
        ("benefit", {"title": "好"}),
        ("benefit", {"title": " ", "quota": 1}),
        ("benefit", {"title": "好", "quota": 0}),
        ("benefit", {"title": "好", "quota": 5, "needs": "join", "per_person": 2}),
        ("benefit", {"title": "好", "quota": 5, "confirmed": 5}),
        ("poll", {"question": "好吗?", "choices": ["好"]}),
        ("poll", {"question": "", "choices": ["好", "不好"]}),
        ("poll", {"question": "好吗?", "choices": ["好", "不好"], "results": "never"}),
        ("announcement", {"text": ""}),
        ("announcement", {"text": "长" * 201}),
        ("announcement", {"text": 5}),
    ],
    ids=str,
)
async def test_a_payload_that_could_not_run_is_refused_when_it_is_put_and_named(
    stage: Stage, kind: str, payload: dict[str, Any]
) -> None:
    show, product = (await stage.show("scheduled")).id, await stage.product()
    if payload.get("product") == "PRODUCT":
        payload = {**payload, "product": product.id}
    with pytest.raises(Refusal, match="Cue X:") as caught:
        await put(stage, show, [cue("announcement", "A", {"text": "好"}), cue(kind, "X", payload)])
    assert isinstance(caught.value, BadRequest | NotFound)
    assert await listed(stage, show) == []


async def test_a_product_that_is_never_in_a_sale_has_no_flash_cue(stage: Stage) -> None:
    show, product = (await stage.show("scheduled")).id, await stage.product(no_promo=True)
    with pytest.raises(NoPromo):
        await put(
            stage,
            show,
            [cue("flash", "D", {"product": product.id, "flash_fen": 1, "quota": 5, "seconds": 60})],
        )
    early = {"title": "会员先买", "what": "early_access", "quota": 9, "products": [product.id]}
    with pytest.raises(NoPromo, match="Cue B: 五常有机大米 is marked no_promo"):
        await put(stage, show, [cue("benefit", "B", early)])


async def test_the_list_is_bounded_and_its_keys_differ(stage: Stage) -> None:
    show = (await stage.show("scheduled")).id
    keys = "ABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
    most = [cue("announcement", key, {"text": key}) for key in keys]
    assert len(await put(stage, show, most[:30])) == 30
    for wrong in (most, [most[0], most[0]]):
        with pytest.raises(BadRequest):
            await put(stage, show, wrong)
    with pytest.raises(BadRequest):
        await put(stage, show, [cue("announcement", "A", {"text": "好"}, title=" ")])
    with pytest.raises(NotFound):
        await put(stage, show, [cue("announcement", "A", {"text": "好"}, id=new_id())])
    assert len(await listed(stage, show)) == 30
    for raw in (b'{"shortcut":"ab"}', b'{"shortcut":"a"}', b'{"shortcut":""}'):
        text = b'{"kind":"poll","title":"t","payload":{},' + raw[1:]
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(text, type=CueInput)


async def test_cues_are_kept_moved_changed_and_taken_out_by_their_ids(stage: Stage) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    pin, benefit, poll, *_ = await put(stage, show, the_four(product.id))
    await run(stage, show, pin.id)
    with pytest.raises(CueRunning):
        await put(stage, show, [])
    with pytest.raises(CueRunning):
        await put(stage, show, [cue("announcement", "A", {"text": "换成公告"}, id=pin.id)])
    again = [
        cue("poll", "A", {"question": "换一个?", "choices": ["好", "不好"]}, id=poll.id, title="改"),
        cue("pin", "Z", pin.payload, id=pin.id),
    ]
    moved = await put(stage, show, again)
    assert [(one.id, one.shortcut, one.position, one.state) for one in moved] == [
        (poll.id, "A", 0, "ready"),
        (pin.id, "Z", 1, "running"),
    ]
    assert moved[0].payload["question"] == "换一个?"
    with pytest.raises(NotFound):
        await run(stage, show, benefit.id)
    with pytest.raises(BadRequest):
        await put(stage, show, [*again, cue("pin", "Y", pin.payload, id=pin.id)])


async def test_ten_lists_put_at_once_leave_one_whole_list(stage: Stage) -> None:
    show = (await stage.show("scheduled")).id
    lists = [[cue("announcement", key, {"text": f"{number}"}) for key in "ABC"] for number in range(10)]
    await asyncio.gather(*(put(stage, show, given) for given in lists))
    found = await listed(stage, show)
    assert [one.shortcut for one in found] == ["A", "B", "C"]
    assert len({one.payload["text"] for one in found}) == 1


async def test_who_prepares_and_who_runs(stage: Stage) -> None:
    show: Show = await stage.show("live")
    product, other = await stage.product(), await stage.room(title="二")
    async with stage.database.transaction() as t:
        for actor in (viewer(), staff("reviewer"), staff("assistant"), staff("host", other.id)):
            with pytest.raises(Forbidden):
                await stage.cues.put(t, actor, show.id, [])
        await stage.cues.put(t, staff("operator"), show.id, the_four(product.id))
    pin, *_, announcement = await listed(stage, show.id)
    for actor in (viewer(), staff("reviewer"), staff("operator"), staff("host", other.id)):
        with pytest.raises(Forbidden):
            await run(stage, show.id, pin.id, actor)
    assert (await run(stage, show.id, pin.id, staff("assistant"))).state == "running"
    with pytest.raises(Forbidden):
        await run(stage, show.id, announcement.id, staff("assistant"))
    for unknown in (new_id(), "none"):
        with pytest.raises(NotFound):
            await run(stage, show.id, unknown)
    with pytest.raises(NotFound):
        await run(stage, (await stage.show("live", other)).id, pin.id)
