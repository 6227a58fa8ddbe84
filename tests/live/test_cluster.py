"""The service on a Cluster of three nodes: the whole road, and what happens when its nodes change or fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, RedisError

from live.__main__ import CommandError, _check_answers
from live.cluster import ClusterUrl
from live.database import COMMAND_S, open_redis, open_tail_clients
from live.engines import Addresses, Binaries
from live.lua import Scripts
from live.settings import SettingsError, read_settings
from membership.actor import ShowId
from membership.audience import PLAN_MEMBERS
from membership.partition import PARTITIONS, show_key, spine, tag
from membership.refusal import Unavailable
from tests.conftest import copied
from tests.live.cluster import SLOTS, Cluster, ClusterNode, running_cluster
from tests.live.serving import Seat, Served, serve
from tests.live.test_log import Heard, shows, until
from tests.live.test_road import on_offer, pay, rice

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(binaries.valkey, tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[Redis]:
    client = open_redis(cluster.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def heard(cluster: Cluster, redis: Redis) -> AsyncIterator[Heard]:
    made = Heard(cluster.url, redis)
    await made.tail.start()
    yield made
    await made.close()


@contextlib.contextmanager
def frozen(node: ClusterNode) -> Iterator[None]:
    node.freeze()
    try:
        yield
    finally:
        node.thaw()


def one_of_each(cluster: Cluster) -> dict[int, ShowId]:
    """A show on each node, by the node's place."""
    found: dict[int, ShowId] = {}
    for show in shows(PARTITIONS):
        found.setdefault(cluster.nodes.index(cluster.owner(show)), show)
    return found


# -- the address -----------------------------------------------------------------------------------


def test_a_clusters_address_names_some_of_its_nodes() -> None:
    url = ClusterUrl.parse("rediss+cluster://shop:a%40b@one:7000,two,[::1]:7002/?ssl_cert_reqs=none")
    assert url is not None
    assert url.nodes == (("one", 7000), ("two", 6379), ("::1", 7002))
    assert url.of("::1", 7002) == "rediss://shop:a%40b@[::1]:7002?ssl_cert_reqs=none"
    assert ClusterUrl.parse("redis://one:7000/2") is None


@pytest.mark.parametrize(
    "url", ["redis+cluster://", "redis+cluster://one:x", "redis+cluster://one/2", "http+cluster://one"]
)
def test_an_address_that_is_none_is_refused_in_a_line(url: str, tmp_path: Path) -> None:
    given = {
        "COMPANION_REDIS_URL": url,
        "COMPANION_DATABASE_URL": "postgresql:///x",
        "COMPANION_DATA_DIR": str(tmp_path),
    }
    with pytest.raises(SettingsError, match="COMPANION_REDIS_URL"):
        read_settings(given)
    assert read_settings({**given, "COMPANION_REDIS_URL": "redis+cluster://one,two:1"}).redis_url


def test_a_plain_address_of_a_clusters_node_is_refused_and_the_right_one_named(
    cluster: Cluster, engines: Addresses, tmp_path: Path
) -> None:
    given = {"COMPANION_DATABASE_URL": engines.database_url, "COMPANION_DATA_DIR": str(tmp_path)}
    with pytest.raises(CommandError, match=r"redis\+cluster://"):
        _check_answers(read_settings({**given, "COMPANION_REDIS_URL": cluster.nodes[0].url}))
    nobody, rest = "redis+cluster://127.0.0.1:1,", cluster.url.removeprefix("redis+cluster://")
    _check_answers(read_settings({**given, "COMPANION_REDIS_URL": nobody + rest}))
    with pytest.raises(CommandError, match="COMPANION_REDIS_URL does not work"):
        _check_answers(read_settings({**given, "COMPANION_REDIS_URL": "redis+cluster://127.0.0.1:1"}))


# -- where keys lie --------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "most"), [(3, 24), (4, 16), (6, 13), (8, 10), (16, 5)])
def test_partitions_spread_over_equal_ranges_of_slots(nodes: int, most: int) -> None:
    slots = {key_slot(f"{{p{number:02d}}}".encode()) for number in range(PARTITIONS)}
    assert len(slots) == PARTITIONS
    held = [sum(slot * nodes // SLOTS == node for slot in slots) for node in range(nodes)]
    assert max(held) == most <= 1.25 * PARTITIONS / nodes
    assert min(held) > 0


def test_all_keys_of_a_show_lie_in_one_slot() -> None:
    for show in shows(PARTITIONS):
        keys = [*spine(show), show_key(show, "poll:x"), show_key(show, "nodes")]
        assert {key_slot(key.encode()) for key in keys} == {key_slot(f"{{{tag(show)}}}".encode())}


# -- commands --------------------------------------------------------------------------------------


async def test_a_script_is_sent_in_full_to_each_node_that_does_not_know_it(
    cluster: Cluster, redis: Redis
) -> None:
    opening = Scripts(redis).load("live", "open_show")
    for show in one_of_each(cluster).values():
        await redis.script_flush()
        assert await opening(show, [], ["e", 1, "live"]) == [1, b"e"]
        assert await opening(show, [], ["e", 1, "live"]) == [0, b"e"]


async def test_a_command_that_timed_out_runs_once(cluster: Cluster, redis: Redis) -> None:
    show = one_of_each(cluster)[0]
    key = show_key(show, "n")
    await redis.set(key, 0)
    with frozen(cluster.nodes[0]):
        running = asyncio.ensure_future(redis.eval("return redis.call('INCR', KEYS[1])", 1, key))
        await asyncio.wait([running], timeout=1.5 * COMMAND_S)  # a second try would be under way
    with pytest.raises((RedisError, OSError)):
        await running
    await until(lambda: cluster.nodes[0].redis.get(key) == b"1")
    assert await redis.incr(key) == 2


async def test_more_at_once_than_connections_wait_their_turn(cluster: Cluster, redis: Redis) -> None:
    key = show_key(one_of_each(cluster)[0], "n")
    assert sorted(await asyncio.gather(*(redis.incr(key) for _ in range(1_000)))) == list(range(1, 1_001))
    clients: Any = cluster.nodes[0].redis.client_list()
    assert len(clients) < 120


async def test_a_frozen_node_holds_up_its_own_shows_alone(cluster: Cluster, heard: Heard) -> None:
    placed = one_of_each(cluster)
    sick, well = placed.pop(2), list(placed.values())
    for show in (sick, *well):
        await heard.tail.follow(show, 0)
        await heard.append(show, 1)
    await until(lambda: len(heard.seqs) == 3)
    with frozen(cluster.nodes[2]):
        # More than there are connections to it, all the while.
        stuck = [asyncio.create_task(heard.append(sick, at)) for at in range(2, 200)]
        for seq in range(2, 60):
            for show in well:
                await heard.append(show, seq)
        await until(lambda: all(heard.seqs[show] == list(range(1, 60)) for show in well))
        answers = await asyncio.gather(*stuck, return_exceptions=True)
        assert all(isinstance(answer, RedisError | OSError) for answer in answers)
        assert await heard.redis.ping()
        with pytest.raises(Unavailable):
            await Scripts(heard.redis).load("live", "read_show")(sick, [], [])
        await heard.append(well[0], 60)
        await until(lambda: not heard.health[-1], 15.0)  # a blocked read gives up 2 s after its block
        lag = heard.tail.lag()
        assert lag[tag(sick)] > max(lag[tag(show)] for show in well)
    await until(lambda: heard.health[-1], 15.0)
    newest: Any = await heard.redis.xrevrange(show_key(sick, "log"), count=1)
    last = int(newest[0][0].split(b"-")[0])
    await heard.append(sick, last + 1)
    await until(lambda: heard.seqs[sick][-1] == last + 1)
    assert heard.seqs[sick] == sorted(set(heard.seqs[sick]))
    assert heard.health == [True, False, True]


async def test_a_slot_that_nobody_serves_costs_no_other_node_its_connections(
    cluster: Cluster, redis: Redis
) -> None:
    placed = one_of_each(cluster)
    slot, owner, key = key_slot(f"{{{tag(placed[1])}}}".encode()), cluster.nodes[1], show_key(placed[0], "q")
    await redis.ping()
    waiting = asyncio.ensure_future(cast(Any, redis.blpop([key], timeout=0)))
    await until(lambda: cast(Any, cluster.nodes[0].redis.info("clients"))["blocked_clients"] == 1)
    owner.redis.execute_command("CLUSTER DELSLOTS", slot)
    try:
        with pytest.raises(ClusterDownError):
            await redis.get(show_key(placed[1], "n"))
    finally:
        owner.redis.execute_command("CLUSTER ADDSLOTS", slot)
    await redis.rpush(key, "one")
    assert (await waiting)[1] == b"one"
    await redis.set(show_key(placed[1], "n"), 1)


async def test_who_waits_for_the_map_is_not_cancelled_by_another(cluster: Cluster) -> None:
    nodes = open_tail_clients(cluster.url, block_s=1.0)
    key = show_key(one_of_each(cluster)[0], "log")
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(frozen(node))
        waiting = [asyncio.create_task(nodes.having(key)) for _ in range(3)]
        await asyncio.sleep(0)  # they have begun
        waiting[0].cancel()
        await nodes.look_again()  # what another reader does after an error
        assert not any(task.done() for task in waiting[1:])
    for task in waiting[1:]:
        assert await (await task).ping()
    assert waiting[0].cancelled()
    await nodes.aclose()


async def test_who_waits_for_the_map_is_told_when_it_is_closed(cluster: Cluster) -> None:
    nodes = open_tail_clients(cluster.url, block_s=1.0)
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(frozen(node))
        waiting = asyncio.create_task(nodes.having("{p00}"))
        await asyncio.sleep(0)  # it has begun
        await nodes.aclose()
        with pytest.raises(RedisError):
            await waiting


async def test_the_map_is_read_though_its_first_node_is_frozen(cluster: Cluster) -> None:
    nodes = open_tail_clients(cluster.url, block_s=1.0)
    well = one_of_each(cluster)[1]
    with frozen(cluster.nodes[0]):
        client = await nodes.having(show_key(well, "log"))
        assert await client.ping()
    await nodes.aclose()


async def test_a_partition_that_moves_is_followed_to_its_new_node(cluster: Cluster, heard: Heard) -> None:
    show, stays = one_of_each(cluster)[1], one_of_each(cluster)[2]
    for one in (show, stays):
        await heard.tail.follow(one, 0)
    told, enough = 0, False

    async def append() -> None:
        nonlocal told
        while not enough:
            try:
                await heard.append(show, told + 1)
            except RedisError:  # between the move of its keys and that of its slot: nothing was written
                await asyncio.sleep(0.05)
                continue
            told += 1
            await heard.append(stays, told)
            await asyncio.sleep(0.005)

    writing = asyncio.create_task(append())
    await until(lambda: told > 20)
    for at in (0, 1):  # there and back
        before = told
        await asyncio.to_thread(cluster.move, show, cluster.nodes[at])
        assert cluster.nodes[at].redis.exists(show_key(show, "log"))
        await until(lambda before=before: heard.seqs[show][-1] > before + 20)  # type: ignore[misc]
    enough = True
    await writing
    await until(lambda: heard.seqs[show][-1] == heard.seqs[stays][-1] == told)
    assert heard.seqs[show] == heard.seqs[stays] == list(range(1, told + 1))
    assert heard.health == [True]


async def test_a_node_that_is_killed_is_replaced_by_its_copy(
    binaries: Binaries, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_cluster(binaries.valkey, tmp_path_factory.mktemp("cluster"), replicas=1) as cluster:
        redis = open_redis(cluster.url)
        heard = Heard(cluster.url, redis)
        await heard.tail.start()
        placed = one_of_each(cluster)
        for show in placed.values():
            await heard.tail.follow(show, 0)
            await heard.append(show, 1)
        await until(lambda: len(heard.seqs) == 3)
        home = cast(Any, redis).get_node_from_key(show_key(placed[0], "log"))
        await redis.wait(1, 1000, target_nodes=home)
        cluster.nodes[0].kill()
        told = 1
        async with asyncio.timeout(20):
            while True:
                try:
                    await heard.append(placed[0], 2)
                    break
                except (RedisError, OSError):
                    told += 1
                    await heard.append(placed[1], told)
                    await asyncio.sleep(0.05)
        await until(lambda: heard.seqs[placed[0]] == [1, 2], 10.0)
        await until(lambda: heard.seqs[placed[1]] == list(range(1, told + 1)))
        await until(lambda: heard.health[-1], 10.0)
        await heard.close()
        await redis.aclose()


# -- the whole road --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def served(
    engines: Addresses, template: str, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    with copied(engines, template, "served_cluster") as url:
        on_cluster = Addresses(cluster.url, engines.database_url, engines.run_dir, engines.pid)
        async with serve(on_cluster, url, tmp_path_factory.mktemp("served")) as made:
            yield made


async def test_the_whole_road_on_shows_of_every_node(cluster: Cluster, served: Served) -> None:
    await served.member(plan=True)
    by_node: dict[int, ShowId] = {}
    while len(by_node) < 3:
        show = await served.make_show()
        by_node.setdefault(cluster.nodes.index(cluster.owner(show)), show)
    await asyncio.gather(*(evening(served, show) for show in by_node.values()))


async def evening(served: Served, show: ShowId) -> None:
    buyer, guest = await served.member("王小明"), await served.enter(show)
    seat = await served.enter(show, buyer)
    said = await seat.ask("comment.post", key="c", text="晚上好")
    assert said["type"] == "ok"
    assert (await guest.event("comment.posted"))["text"] == "晚上好"
    offer = await on_offer(served, show, await rice(served, member_price_audience=PLAN_MEMBERS))
    await guest.state(f"offer:{offer}")
    async with served.http(await served.staff()) as staff:
        poll = await ask_poll(staff, show, seat)
        made = await staff.post(
            f"/v1/shows/{show}/benefits", json={"title": "试吃装", "quota": 1, "needs": "nothing"}
        )
        assert made.status_code == 201, made.text
        claim = await seat.ask("benefit.claim", key="k", benefit=made.json()["id"])
        assert claim["rank"] == 1
        assert (await seat.ask("benefit.claim", key="k", benefit=made.json()["id"]))["rank"] == 1
        async with served.http(buyer) as http:
            await join(http, served, show)
            assert (await seat.event("you"))["data"]["badge"] == "plan"  # a notice
            await order(http, served, show, seat, offer)
        since = {"epoch": guest.welcome["epoch"], "seq": guest.welcome["seq"]}
        again = await served.enter(show, since=since)
        assert again.welcome["recovered"] is True
        assert (await staff.post(f"/v1/polls/{poll}/close")).status_code < 400
        ended = await staff.post(f"/v1/shows/{show}/end")
        assert ended.status_code < 400, ended.text
    await guest.state("show", lambda data: data["status"] == "ended")
    seqs = [event["seq"] for event in guest.numbered()]
    assert seqs == sorted(set(seqs))


async def ask_poll(staff: Any, show: ShowId, seat: Seat) -> str:
    made = await staff.post(f"/v1/shows/{show}/polls", json={"question": "哪一种", "choices": ["甲", "乙"]})
    assert made.status_code == 201, made.text
    poll = str(made.json()["id"])
    await seat.state(f"poll:{poll}")
    cast = await seat.ask("ballot.cast", key="b", poll=poll, choices=[0])
    assert cast["type"] == "ok"
    return poll


async def join(http: Any, served: Served, show: ShowId) -> None:
    plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
    body = {"plan": plan, "show": show, "key": "j"}
    once = {"idempotency-key": f"join-{show}"}
    joined = await http.post("/v1/me/joins", json=body, headers=once)
    assert joined.status_code in (200, 201), joined.text
    again = await http.post("/v1/me/joins", json=body, headers=once)
    assert again.json() == joined.json()
    await pay(joined.json()["payment_url"], served)


async def order(http: Any, served: Served, show: ShowId, seat: Seat, offer: str) -> None:
    home = {"name": "王小明", "phone": "13800000000", "region": "上海市 徐汇区", "detail": "示例路 1 号"}
    address = (await http.post("/v1/me/addresses", json=home)).json()["id"]
    lines = {"lines": [{"offer": offer, "quantity": 1}]}
    quote = (await http.post(f"/v1/shows/{show}/quotes", json=lines)).json()
    placed = await seat.ask("order.place", key="o", quote=quote["token"], address=address)
    assert placed["type"] == "ok", placed
    page = await http.post(f"/v1/me/orders/{placed['order']}/payment", json={})
    await pay(page.json()["payment_url"], served)
    await seat.until(lambda m: m["type"] == "order.changed" and m["state"] == "paid")
