"""WeChat Pay behind the served shop: chosen by settings, refused at the start when a part is missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from live.engines import Addresses
from live.settings import PREFIX, SettingsError, environment_of, read_settings
from membership.actor import Actor, new_id
from tests.commerce.wechat_double import (
    APIV3_KEY,
    APPID,
    MCHID,
    MERCHANT_SERIAL,
    OPENID,
    PUBLIC_KEY_ID,
    WechatDouble,
    new_key,
    private_pem,
    public_pem,
)
from tests.conftest import copied
from tests.live.serving import Served, serve


@pytest.fixture(scope="module")
def double() -> Iterator[WechatDouble]:
    made = WechatDouble(new_key(), new_key())
    yield made
    made.close()


@pytest.fixture(scope="module")
def wechat(double: WechatDouble, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything that the provider needs, as settings without their prefix."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "merchant.pem").write_text(private_pem(double.merchant))
    (folder / "wechat.pem").write_text(public_pem(double.platform))
    return {
        "PAYMENT_PROVIDER": "wechat",
        "WECHAT_MCHID": MCHID,
        "WECHAT_APPID": APPID,
        "WECHAT_PRIVATE_KEY": str(folder / "merchant.pem"),
        "WECHAT_CERT_SERIAL": MERCHANT_SERIAL,
        "WECHAT_APIV3_KEY": APIV3_KEY,
        "WECHAT_PUBLIC_KEY": str(folder / "wechat.pem"),
        "WECHAT_PUBLIC_KEY_ID": PUBLIC_KEY_ID,
        "WECHAT_NOTIFY_URL": "https://shop.test/v1/payments/wechat/webhook",
        "WECHAT_GATEWAY": double.url,
    }


Read = Callable[..., Any]


@pytest.fixture
def read(wechat: dict[str, str], tmp_path: Path) -> Read:
    def read(**changes: str) -> Any:
        given = {**wechat, "SECRET": "s" * 40, "DATA_DIR": str(tmp_path), **changes}
        return read_settings({PREFIX + name: value for name, value in given.items()})

    return read


# --- settings ---


@pytest.mark.parametrize(
    "name",
    ["MCHID", "APPID", "PRIVATE_KEY", "CERT_SERIAL", "APIV3_KEY", "PUBLIC_KEY", "PUBLIC_KEY_ID"],
)
def test_a_missing_part_is_refused_at_the_start_and_named(read: Read, name: str) -> None:
    with pytest.raises(SettingsError, match=f"COMPANION_WECHAT_{name}"):
        read(**{f"WECHAT_{name}": ""})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("PAYMENT_PROVIDER", "cash", "must be one of sandbox, wechat"),
        ("WECHAT_PRIVATE_KEY", "/nowhere.pem", "cannot be read"),
        ("WECHAT_PUBLIC_KEY", "/nowhere.pem", "cannot be read"),
        ("WECHAT_NOTIFY_URL", "", "https addresses only"),
        ("CURRENCY", "USD", "takes CNY only"),
    ],
)
def test_a_wrong_part_is_refused_in_one_line(read: Read, name: str, value: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why) as refused:
        read(**{name: value})
    assert PREFIX + name in str(refused.value)


def test_a_key_that_is_wrong_is_not_repeated_on_the_screen(read: Read) -> None:
    with pytest.raises(SettingsError) as refused:
        read(WECHAT_APIV3_KEY="too-short-but-secret")
    assert "too-short-but-secret" not in str(refused.value)


def test_a_file_that_holds_no_key_is_refused(read: Read, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    for name in ("PRIVATE_KEY", "PUBLIC_KEY"):
        with pytest.raises(SettingsError, match=f"COMPANION_WECHAT_{name} is no"):
            read(**{f"WECHAT_{name}": str(tmp_path / "no.pem")})


def test_a_child_process_is_told_the_same(read: Read) -> None:
    settings = read()
    assert read_settings(environment_of(settings)) == settings


# --- the road ---


@pytest.fixture(scope="module")
async def served(
    engines: Addresses,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    wechat: dict[str, str],
) -> AsyncIterator[Served]:
    with copied(engines, template, "wechat_shop") as url:
        async with serve(engines, url, tmp_path_factory.mktemp("wechat"), **wechat) as made:
            await made.member(plan=True)  # there is a plan to join
            yield made


async def joining(served: Served, **body: str) -> tuple[Actor, dict[str, Any], str]:
    """A buyer, the answer, and the order's number at WeChat."""
    buyer = await served.member("王小明")
    async with served.http(buyer) as http:
        plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
        answer = await http.post("/v1/me/joins", json={"plan": plan, "key": new_id(), **body})
        assert answer.status_code == 201, answer.text
    return buyer, answer.json(), answer.json()["order"]["order"].replace("-", "")


async def tell(served: Served, news: tuple[dict[str, str], bytes]) -> httpx2.Response:
    headers, body = news
    async with served.http() as wechat:
        return await wechat.post("/v1/payments/wechat/webhook", content=body, headers=headers)


async def state(served: Served, buyer: Actor, order: str) -> str:
    async with served.http(buyer) as http:
        return str((await http.get(f"/v1/me/orders/{order}")).json()["state"])


@pytest.mark.anyio
async def test_a_plan_is_paid_told_twice_and_refunded(served: Served, double: WechatDouble) -> None:
    buyer, joined, number = await joining(served)
    assert joined["payment_url"].startswith("https://wx.tenpay.com/")
    assert double.orders[number]["scene_info"]["payer_client_ip"] == "127.0.0.1"
    order = joined["order"]["order"]
    news = double.news("TRANSACTION.SUCCESS", double.pay(number))
    answers = [(await tell(served, news)).json() for _ in range(2)]
    assert [answer.get("again", False) for answer in answers] == [False, True]
    assert {answer["outcome"] for answer in answers} == {"accepted"}
    assert await state(served, buyer, order) == "paid"
    async with served.http(await served.staff()) as operator:
        assert (await operator.post(f"/v1/orders/{order}/refund")).status_code == 200
    payments = served.parts.payments
    assert await payments.return_due(served.parts.database) == 0  # WeChat has taken it, and is at it
    ((key, refund),) = [(key, each) for key, each in double.refunds.items() if each["out_trade_no"] == number]
    assert refund["amount"]["refund"] == joined["order"]["total_fen"]
    news = double.news("REFUND.SUCCESS", double.finish_refund(key, "SUCCESS"))
    assert [(await tell(served, news)).json()["returned"] for _ in range(2)] == ["noted", "again"]
    async with served.http(buyer) as http:
        seen = (await http.get(f"/v1/me/orders/{order}")).json()
    assert (seen["state"], seen["returning_fen"]) == ("refunded", 0)


@pytest.mark.anyio
async def test_inside_wechat_the_payment_opens_there(served: Served, double: WechatDouble) -> None:
    buyer, joined, number = await joining(served, openid=OPENID)
    assert joined["payment_url"].startswith(f"{served.url}/pay/wechat#")
    assert double.orders[number]["payer"] == {"openid": OPENID}
    async with served.http() as http:
        page = await http.get("/pay/wechat")
    assert page.status_code == 200
    assert "pay/wechat.js" in page.text
    async with served.http(buyer) as http:
        path = f"/v1/me/orders/{joined['order']['order']}/payment"
        again = await http.post(path, json={"openid": OPENID})
        assert again.json()["payment_url"] == joined["payment_url"]
        assert (await http.post(path, json={"openid": "<script>"})).status_code == 400


@pytest.mark.anyio
async def test_a_payment_that_wechat_never_told_of_is_found_by_asking(
    served: Served, double: WechatDouble
) -> None:
    buyer, joined, number = await joining(served)
    double.pay(number)
    assert await served.parts.payments.ask_due(served.parts.database, after_s=0) == 1
    assert await state(served, buyer, joined["order"]["order"]) == "paid"


@pytest.mark.anyio
async def test_forged_news_and_news_of_another_amount_pay_nothing(
    served: Served, double: WechatDouble
) -> None:
    buyer, joined, number = await joining(served)
    trade = double.pay(number, total=1)
    forged = await tell(served, double.news("TRANSACTION.SUCCESS", trade, key=double.merchant))
    old = await tell(served, double.news("TRANSACTION.SUCCESS", trade, age_s=600))
    assert [forged.json()["code"], old.json()["code"]] == ["bad_signature"] * 2
    noted = (await tell(served, double.news("TRANSACTION.SUCCESS", trade))).json()
    assert (noted["outcome"], noted["reason"]) == ("quarantined", "wrong_amount")
    assert await state(served, buyer, joined["order"]["order"]) == "placed"
    async with served.http() as sandbox:
        answer = await sandbox.post("/v1/payments/sandbox/webhook", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.anyio
async def test_wechat_away_leaves_the_order_to_be_paid_by_the_same_tap(
    served: Served, double: WechatDouble
) -> None:
    buyer = await served.member("李雷")
    async with served.http(buyer) as http:
        plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
        body = {"plan": plan, "key": "k"}
        double.trouble = 500, "SYSTEM_ERROR"
        away = await http.post("/v1/me/joins", json=body)
        double.trouble = None
        assert (away.status_code, away.json()["code"]) == (503, "unavailable")
        assert "SYSTEM_ERROR" not in away.text
        assert (await http.post("/v1/me/joins", json=body)).status_code == 201
