"""Made-up requests against the running API, drawn from its own description: none may end in a 5xx.

The service runs in a thread of its own on a real port, with a show on air, an offer, a benefit, a poll and a
member, so that made-up bodies reach the domain and not only the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from live.engines import Addresses
from live.routes import TABLE
from tests.live.api import Shop, open_shop
from tests.live.test_routes import ADDRESS, PLAN, RICE

EXAMPLES = 4  # a route and mode; 100 routes in well under a minute
LAST = ("/pause", "/resume", "/close", "/end")  # what would leave little to try comes last
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


class Running:
    """The service on a port, and who may speak to it."""

    def __init__(self) -> None:
        self.url = ""
        self.headers: dict[str, dict[str, str]] = {}
        self.values: dict[str, str] = {}  # what stands in paths: things that exist
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self.server: uvicorn.Server | None = None


async def prepare(shop: Shop, running: Running) -> None:
    owner, member = await shop.staff(), await shop.member("小满")
    key = await shop.shop_server()
    plan = await owner.ok("POST", "/v1/plans", PLAN)
    product = await owner.ok("POST", "/v1/products", RICE)
    room = await owner.ok("POST", "/v1/rooms", {"title": "会员健康夜", "slug": "night"})
    starts = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = {"room": room["id"], "title": "秋收", "starts_at": starts}
    show = (await owner.ok("POST", "/v1/shows", body))["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    offer = await owner.ok("POST", f"/v1/shows/{show}/offers", {"product": product["id"]})
    benefit = await owner.ok("POST", f"/v1/shows/{show}/benefits", {"title": "礼", "quota": 3})
    poll = await owner.ok("POST", f"/v1/shows/{show}/polls", {"question": "?", "choices": ["a", "b"]})
    said = await owner.ok("POST", f"/v1/shows/{show}/comments", {"text": "欢迎"})
    cue = {"kind": "announcement", "title": "x", "shortcut": "A", "payload": {"text": "九点开奖"}}
    cues = await owner.ok("PUT", f"/v1/shows/{show}/cues", {"cues": [cue]})
    address = await member.ok("POST", "/v1/me/addresses", ADDRESS)
    joining = await member.ok("POST", "/v1/me/joins", {"plan": plan["id"], "show": show, "key": "k"})
    running.values = {
        "show": show,
        "room": room["id"],
        "seq": str(said["seq"]),
        "cue": cues["items"][0]["id"],
        "poll": poll["id"],
        "offer": offer["id"],
        "benefit": benefit["id"],
        "order": joining["order"]["order"],
        "member": member.id,
        "product": product["id"],
        "plan": plan["id"],
        "address": address["id"],
    }
    for name, caller in (("owner", owner), ("member", member), ("key", key)):
        running.headers[name] = {"authorization": caller.http.headers["authorization"]}


@pytest.fixture
def running(
    engines: Addresses, fresh_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Running]:
    state = Running()
    monkeypatch.setattr("live.http.WRITES_AT_ONCE", 100_000)  # made-up requests come faster than people

    async def serve() -> None:
        async with open_shop(engines, fresh_database_url, tmp_path) as shop:
            await prepare(shop, state)
            with socket.socket() as bound:
                bound.bind(("127.0.0.1", 0))
                state.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
                config = uvicorn.Config(shop.app, lifespan="off", log_config=None, access_log=False)
                state.server = uvicorn.Server(config)
                state.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
                served = asyncio.create_task(state.server.serve(sockets=[bound]))
                while not state.server.started:
                    await asyncio.sleep(0.01)
                state.ready.set()
                await served

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            state.failure = error
            state.ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert state.ready.wait(30)
    assert state.failure is None, state.failure
    yield state
    assert state.server is not None
    state.server.should_exit = True
    thread.join(10)
    assert state.failure is None, state.failure


def test_no_made_up_request_ends_in_a_5xx(running: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    rows = {(row.method, row.path): row for row in TABLE}
    found = {(operation.method.upper(), operation.path) for operation in operations}
    assert rows.keys() - found == {("GET", "/openapi.json")}  # where the description itself comes from
    operations.sort(key=lambda operation: operation.path.endswith(LAST))
    statuses: Counter[int] = Counter()
    for operation in operations:
        route = rows[operation.method.upper(), operation.path]
        headers = running.headers["member" if route.who == "viewer" else "owner"]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            statuses += draw(operation, mode, headers, running.values)
    assert statuses.total() > 3 * len(operations)
    assert sum(number for status, number in statuses.items() if status < 300) > len(operations)
    assert httpx2.get(f"{running.url}/readyz", trust_env=False).status_code == 200


def draw(
    operation: Any, mode: GenerationMode, headers: dict[str, str], values: dict[str, str]
) -> Counter[int]:
    """Send made-up requests of one operation; every other one names things that exist. Counts the statuses."""
    number = 0
    statuses: Counter[int] = Counter()

    @seed(20261121)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        nonlocal number
        number += 1
        if number % 2 and case.path_parameters:
            for name in case.path_parameters.keys() & values.keys():
                case.path_parameters[name] = values[name]
        response = case.call(headers=headers)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # nothing wrong can be said to a bare address
        one()
    return statuses
