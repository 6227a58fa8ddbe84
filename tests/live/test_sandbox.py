"""The sandbox provider: signed both ways, one payment an order, webhooks until they are answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from commerce.payments import ReturnRefused
from commerce.sandbox import BadSignature, SandboxProvider, request_key, sign_request, webhook_secret
from live.sandbox import create_sandbox
from membership.refusal import BadRequest, Unavailable
from tests.commerce.payment_sample import payment_request

pytestmark = pytest.mark.anyio

SECRET = "a shared secret"
SHOP = "http://shop.test"


class ShopSide:
    """The shop's end: keeps what webhooks say, and answers as it is told."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.came = asyncio.Event()

    async def webhook(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        self.came.set()
        return Response(status_code=self.answers.pop(0) if self.answers else 204)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.got) < count:
                self.came.clear()
                await self.came.wait()


class Scene:
    """One app with the sandbox mounted and the webhook's address, as in the demo."""

    def __init__(self, path: Path, retry_s: tuple[float, ...]) -> None:
        self.shop = ShopSide()
        self.sandbox = create_sandbox(
            SECRET,
            path,
            timezone="Asia/Shanghai",
            retry_s=retry_s,
            transport=_Later(lambda: self.app),
        )
        self.app = Starlette(
            routes=[
                Route("/v1/payments/sandbox/webhook", self.shop.webhook, methods=["POST"]),
                Mount("/sandbox", app=self.sandbox),
            ]
        )
        self.transport = httpx2.ASGITransport(app=self.app)
        self.provider = SandboxProvider(SECRET, SHOP, transport=self.transport)
        self.browser = httpx2.AsyncClient(transport=self.transport, base_url=SHOP)

    async def aclose(self) -> None:
        await self.browser.aclose()
        await self.sandbox.state.sandbox.aclose()
        self.sandbox.state.sandbox.store.close()

    async def pay(self, ref: str, **form: str) -> httpx2.Response:
        return await self.browser.post(f"/sandbox/pay/{ref}", data={"result": "pay", **form})


class _Later(httpx2.AsyncBaseTransport):
    """A transport to an app that is made after it."""

    def __init__(self, app: Callable[[], Starlette]) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await httpx2.ASGITransport(app=self._app()).handle_async_request(request)


MakeScene = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def make_scene(tmp_path: Path) -> AsyncIterator[MakeScene]:
    made: list[Scene] = []

    async def make(retry_s: tuple[float, ...] = (0.01, 0.01, 0.01)) -> Scene:
        made.append(Scene(tmp_path / "sandbox.sqlite3", retry_s))
        return made[-1]

    yield make
    for scene in made:
        await scene.aclose()


# --- the shop's requests ---


async def test_the_same_order_and_amount_is_the_same_page(make_scene: MakeScene) -> None:
    scene = await make_scene()
    request = payment_request()
    first = await scene.provider.create(request)
    assert first.url == f"{SHOP}/sandbox/pay/{first.ref}"
    assert await scene.provider.create(request) == first
    lower = await scene.provider.create(msgspec.structs.replace(request, amount_fen=9_900))
    assert lower.ref != first.ref
    page = await scene.browser.get(first.url)
    assert "此支付已失效" in page.text
    assert (await scene.pay(first.ref)).status_code == 409
    assert await scene.provider.query(first.ref) is None


async def test_a_second_tap_while_the_first_is_paying_comes_back_to_the_shop_too(
    make_scene: MakeScene,
) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    read, arrived = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        arrived.set()
        await read.wait()
        yield b"result=pay"

    second = asyncio.create_task(scene.browser.post(f"/sandbox/pay/{page.ref}", content=slowly()))
    await arrived.wait()
    first = await scene.pay(page.ref)
    read.set()
    assert (first.status_code, (await second).status_code) == (303, 303)


async def test_unsigned_or_wrongly_signed_requests_are_refused(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    now = int(time.time())
    key, path = request_key(SECRET), f"/payments/{page.ref}"

    async def ask(moment: int | str, signature: str) -> int:
        answer = await scene.browser.get(
            f"/sandbox{path}", headers={"x-sandbox-time": str(moment), "x-sandbox-signature": signature}
        )
        return answer.status_code

    good = sign_request(key, "GET", path, now, b"")
    assert await ask(now, good) == 200
    assert await ask(now, "") == 401
    assert await ask("soon", good) == 401
    assert await ask("-1", good) == 401
    assert await ask(now - 1, good) == 401
    assert await ask(now - 301, sign_request(key, "GET", path, now - 301, b"")) == 401
    assert await ask(now, sign_request(key, "GET", path + "x", now, b"")) == 401
    assert await ask(now, sign_request(key, "POST", path, now, b"")) == 401
    assert await ask(now, sign_request(key, "GET", path, now, b"{}")) == 401
    assert await ask(now, sign_request(SECRET.encode(), "GET", path, now, b"")) == 401
    stranger = SandboxProvider("another secret", SHOP, transport=scene.transport)
    with pytest.raises(Unavailable):
        await stranger.create(payment_request())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"order":"a"}',
        b'{"order":"a","amount_fen":0,"return_url":"http://a","notify_url":"http://a"}',
        b'{"order":"a","amount_fen":1,"return_url":"javascript:alert(1)","notify_url":"http://a"}',
        b'{"order":"a","amount_fen":1,"return_url":"http://a","notify_url":"file:///etc/passwd"}',
        b"\xff",
    ],
)
async def test_a_malformed_request_is_400(make_scene: MakeScene, body: bytes) -> None:
    scene = await make_scene()
    now = int(time.time())
    signature = sign_request(request_key(SECRET), "POST", "/payments", now, body)
    answer = await scene.browser.post(
        "/sandbox/payments",
        content=body,
        headers={"x-sandbox-time": str(now), "x-sandbox-signature": signature},
    )
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_that_is_too_large_is_413(make_scene: MakeScene) -> None:
    scene = await make_scene()
    answer = await scene.browser.post("/sandbox/payments", content=b"x" * 20_000)
    assert answer.status_code == 413


async def test_a_provider_that_is_away_or_talks_nonsense_is_unavailable() -> None:
    answers: list[Callable[[httpx2.Request], httpx2.Response]] = [
        lambda _: httpx2.Response(500),
        lambda _: httpx2.Response(200, content=b"<html>"),
        _refuse,
    ]
    for answer in answers:
        provider = SandboxProvider(SECRET, SHOP, transport=httpx2.MockTransport(answer))
        with pytest.raises(Unavailable):
            await provider.query("ref")


def _refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused", request=request)


# --- the buyer's page ---


async def test_the_page_says_what_is_paid_and_leads_back(make_scene: MakeScene) -> None:
    scene = await make_scene()
    request = payment_request(description="<script>alert(1)</script>")
    page = await scene.provider.create(request)
    shown = await scene.browser.get(page.url)
    assert shown.status_code == 200
    assert "¥109.00" in shown.text
    assert request.order in shown.text
    assert "<script" not in shown.text
    assert "&lt;script&gt;" in shown.text
    assert "form-action 'self' http://shop.test" in shown.headers["content-security-policy"]
    style = re.search(r'href="([^"]+\.css)"', shown.text)
    assert style is not None
    assert (await scene.browser.get(shown.url.join(style[1]))).headers["content-type"].startswith("text/css")
    paid = await scene.pay(page.ref)
    assert paid.status_code == 303
    assert paid.headers["location"] == f"{SHOP}/s/abcdefgh23?order={request.order}&payment=paid"
    assert "已支付" in (await scene.browser.get(page.url)).text


async def test_the_page_speaks_english_too(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    shown = await scene.browser.get(page.url, headers={"accept-language": "en-GB,en;q=0.9"})
    assert "Pay now" in shown.text
    assert 'lang="en"' in shown.text


async def test_the_time_to_pay_by_is_the_shops(make_scene: MakeScene) -> None:
    scene = await make_scene()
    until = datetime(2030, 6, 1, 12, 31, 5, tzinfo=UTC)
    page = await scene.provider.create(payment_request(hold_until=int(until.timestamp() * 1000)))
    assert "请在 20:31:05 前完成支付" in (await scene.browser.get(page.url)).text
    english = await scene.browser.get(page.url, headers={"accept-language": "en"})
    assert "Pay before 20:31:05 (Asia/Shanghai)" in english.text


async def test_a_payment_that_failed_may_be_tried_again(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    failed = await scene.pay(page.ref, result="fail")
    assert failed.headers["location"].endswith("&payment=failed")
    assert await scene.provider.query(page.ref) is None
    assert scene.shop.got == []
    assert "上次支付失败" in (await scene.browser.get(page.url)).text
    assert (await scene.pay(page.ref)).status_code == 303
    assert await scene.provider.query(page.ref) is not None


async def test_what_is_not_there_or_not_understood(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    assert (await scene.browser.get("/sandbox/pay/nothing")).status_code == 404
    assert (await scene.pay("nothing")).status_code == 404
    assert (await scene.pay(page.ref, result="maybe")).status_code == 400
    assert (await scene.browser.post(f"/sandbox/pay/{page.ref}", content=b"x" * 20_000)).status_code == 413
    assert await scene.provider.query("nothing") is None


async def test_pressing_pay_twice_pays_once(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    answers = await asyncio.gather(*[scene.pay(page.ref, payer=f"payer-{n}") for n in range(4)])
    assert {answer.status_code for answer in answers} == {303}
    await scene.shop.wait_for(1)
    await settled(scene)
    assert len(scene.shop.got) == 1


async def settled(scene: Scene) -> None:
    tasks = list(scene.sandbox.state.sandbox._deliveries.values())
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)


# --- webhooks ---


async def test_a_webhook_is_signed_and_says_who_paid_what(make_scene: MakeScene) -> None:
    scene = await make_scene()
    request = payment_request()
    page = await scene.provider.create(request)
    before = datetime.now(UTC)
    await scene.pay(page.ref, payer="微信 小明")
    await scene.shop.wait_for(1)
    headers, body = scene.shop.got[0]
    found = scene.provider.read_webhook(headers, body)
    assert found is not None
    assert (found.ref, found.order, found.amount_fen, found.payer) == (
        page.ref,
        request.order,
        10_900,
        "微信 小明",
    )
    assert abs((found.paid_at - before).total_seconds()) < 5
    assert await scene.provider.query(page.ref) == found


async def test_a_webhook_is_repeated_with_one_id_until_it_is_answered(make_scene: MakeScene) -> None:
    scene = await make_scene()
    scene.shop.answers = [500, 302, 404]
    page = await scene.provider.create(payment_request())
    await scene.pay(page.ref)
    await scene.shop.wait_for(4)
    await settled(scene)
    assert len(scene.shop.got) == 4
    assert len({headers["webhook-id"] for headers, _ in scene.shop.got}) == 1
    assert all(scene.provider.read_webhook(headers, body) for headers, body in scene.shop.got)
    assert scene.sandbox.state.sandbox.store.undelivered() == []


async def test_a_shop_that_never_answers_is_given_up_and_can_still_ask(make_scene: MakeScene) -> None:
    scene = await make_scene(retry_s=(0.01, 0.01))
    scene.shop.answers = [500] * 10
    page = await scene.provider.create(payment_request())
    await scene.pay(page.ref)
    await settled(scene)
    assert len(scene.shop.got) == 3
    assert await scene.provider.query(page.ref) is not None


async def test_what_was_not_answered_goes_on_after_a_restart(make_scene: MakeScene) -> None:
    before = await make_scene(retry_s=(0.2, 3600))
    before.shop.answers = [500]
    page = await before.provider.create(payment_request())
    await before.pay(page.ref)
    await before.shop.wait_for(1)
    while before.sandbox.state.sandbox.store.news(f"msg_{page.ref}").attempts == 0:
        await asyncio.sleep(0)
    await before.sandbox.state.sandbox.aclose()
    after = await make_scene()
    assert await after.provider.query(page.ref) is not None  # the first request
    await after.shop.wait_for(1)
    assert after.shop.got[0][0]["webhook-id"] == before.shop.got[0][0]["webhook-id"]


async def test_a_webhook_that_is_not_the_sandboxs_is_refused(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request())
    await scene.pay(page.ref)
    await scene.shop.wait_for(1)
    headers, body = scene.shop.got[0]
    read = scene.provider.read_webhook
    for wrong in (
        {},
        {**headers, "webhook-signature": ""},
        {**headers, "webhook-signature": "v1"},
        {**headers, "webhook-signature": "v1,%%%"},
        {**headers, "webhook-signature": "v2," + "A" * 44},
        {**headers, "webhook-id": "msg_other"},
        {**headers, "webhook-timestamp": "yesterday"},
        {**headers, "webhook-timestamp": str(int(time.time()) - 3600)},
    ):
        with pytest.raises(BadSignature):
            read(wrong, body)
    with pytest.raises(BadSignature):
        read(headers, body.replace(b"10900", b"10901"))
    with pytest.raises(BadSignature):
        read(headers, b"\xff\xfe")
    with pytest.raises(BadSignature):
        SandboxProvider("another secret", SHOP).read_webhook(headers, body)


async def test_a_signed_webhook_of_another_kind_or_shape(make_scene: MakeScene) -> None:
    scene = await make_scene()
    now = datetime.now(UTC)

    def signed(text: str) -> dict[str, str]:
        from standardwebhooks.webhooks import Webhook

        return {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(webhook_secret(SECRET)).sign("msg_1", now, text),
        }

    other = '{"type":"payment.failed","data":{}}'
    assert scene.provider.read_webhook(signed(other), other.encode()) is None
    for broken in ("not json", '{"type":"payment.succeeded"}'):
        with pytest.raises(BadRequest):
            scene.provider.read_webhook(signed(broken), broken.encode())


# --- money back ---


async def test_money_goes_back_once_a_key_and_never_more_than_came(make_scene: MakeScene) -> None:
    scene = await make_scene()
    page = await scene.provider.create(payment_request(amount_fen=1_000))
    with pytest.raises(ReturnRefused):
        await scene.provider.give_back(page.ref, 1_000, "early")
    await scene.pay(page.ref)
    first = await scene.provider.give_back(page.ref, 600, "a")
    assert await scene.provider.give_back(page.ref, 600, "a") == first
    with pytest.raises(ReturnRefused):
        await scene.provider.give_back(page.ref, 500, "b")
    with pytest.raises(ReturnRefused):
        await scene.provider.give_back(page.ref, 400, "a")
    await scene.provider.give_back(page.ref, 400, "b")
    assert scene.sandbox.state.sandbox.store.returned(page.ref) == 1_000


async def test_two_processes_with_one_file_are_one_provider(make_scene: MakeScene) -> None:
    one, two = await make_scene(), await make_scene()
    page = await one.provider.create(payment_request())
    assert (await two.pay(page.ref)).status_code == 303
    assert await one.provider.query(page.ref) is not None


async def test_alone_it_answers_at_its_root(tmp_path: Path) -> None:
    alone = create_sandbox(SECRET)
    transport = httpx2.ASGITransport(app=alone)
    provider = SandboxProvider(SECRET, SHOP, base_url="http://pay.test", transport=transport)
    request = payment_request(kind="plan", show=None, amount_fen=19_900, description="年卡", hold_until=0)
    page = await provider.create(request)
    assert page.url == f"http://pay.test/pay/{page.ref}"
    async with httpx2.AsyncClient(transport=transport, base_url="http://pay.test") as browser:
        shown = await browser.get(page.url)
        assert shown.status_code == 200
        assert f'href="{SHOP}/me/orders?order={request.order}"' in shown.text
    alone.state.sandbox.store.close()
