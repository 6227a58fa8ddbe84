"""WeChat Pay: both ways to pay, asking, refunding and its news, against the shapes of its documents."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from commerce.payments import (
    BadSignature,
    FoundPayment,
    FoundReturn,
    PayerClient,
    PaymentRequest,
    ReturnRefused,
)
from commerce.wechat import CALLS_MAX, BadKey, WechatKeys, WechatProvider, number_of, order_of
from membership.actor import new_id
from membership.refusal import BadRequest, Unavailable
from tests.commerce.payment_sample import payment_request
from tests.commerce.wechat_double import (
    APIV3_KEY,
    APPID,
    MCHID,
    MERCHANT_SERIAL,
    OPENID,
    PUBLIC_KEY_ID,
    WechatDouble,
    certificate_pem,
    new_key,
    private_pem,
    public_pem,
)

pytestmark = pytest.mark.anyio

SHOP = "https://shop.test"


@pytest.fixture(scope="module")
def keys() -> tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey]:
    """The merchant's and WeChat's."""
    return new_key(), new_key()


@pytest.fixture
def double(keys: tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey]) -> Iterator[WechatDouble]:
    made = WechatDouble(*keys)
    yield made
    made.close()


def provider_of(double: WechatDouble, **changes: Any) -> WechatProvider:
    keys = WechatKeys.load(private_pem(double.merchant), public_pem(double.platform), PUBLIC_KEY_ID)
    given: dict[str, Any] = {
        "mchid": MCHID,
        "appid": APPID,
        "cert_serial": MERCHANT_SERIAL,
        "apiv3_key": APIV3_KEY,
        "keys": keys,
        "public_url": SHOP,
        "gateway": double.url,
    }
    return WechatProvider(**{**given, **changes})


@pytest.fixture
def provider(double: WechatDouble) -> WechatProvider:
    return provider_of(double)


def request_of(**changes: Any) -> PaymentRequest:
    return payment_request(**{"client": PayerClient(ip="203.0.113.7"), **changes})


async def paid(double: WechatDouble, provider: WechatProvider, **how: Any) -> tuple[str, PaymentRequest]:
    request = request_of()
    ref = (await provider.create(request)).ref
    double.pay(ref, **how)
    return ref, request


# --- ways to pay ---


async def test_in_a_browser_the_page_is_wechats_own_and_leads_back(
    double: WechatDouble, provider: WechatProvider
) -> None:
    request = request_of()
    page = await provider.create(request)
    ((method, path, body),) = double.asked
    assert (method, path) == ("POST", "/v3/pay/transactions/h5")
    expires = body.pop("time_expire")
    assert expires.endswith("+08:00")
    assert body == {
        "appid": APPID,
        "mchid": MCHID,
        "description": "有机大米 × 1",
        "out_trade_no": request.order.replace("-", ""),
        "notify_url": f"{SHOP}/v1/payments/wechat/webhook",
        "amount": {"total": 10_900, "currency": "CNY"},
        "scene_info": {"payer_client_ip": "203.0.113.7", "h5_info": {"type": "Wap"}},
    }
    address = urlsplit(page.url)
    assert address.netloc == "wx.tenpay.com"
    back = f"{SHOP}/s/abcdefgh23?order={request.order}&payment=returned"
    assert parse_qs(address.query)["redirect_url"] == [back]
    assert (page.ref, page.way) == (number_of(request.order), "h5")
    assert page.until is not None
    assert 200 < page.until / 1000 - time.time() < 300  # the address holds for five minutes


async def test_inside_wechat_our_page_gets_what_its_browser_asks_for_signed(
    double: WechatDouble, provider: WechatProvider
) -> None:
    request = request_of(client=PayerClient(ip="203.0.113.7", openid=OPENID), show=None)
    page = await provider.create(request)
    ((_, path, body),) = double.asked
    assert path == "/v3/pay/transactions/jsapi"
    assert body["payer"] == {"openid": OPENID}
    assert "scene_info" not in body
    address, _, fragment = page.url.partition("#")
    assert (address, page.way, page.until) == (f"{SHOP}/pay/wechat", "jsapi", None)
    said = json.loads(base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4)))
    assert said["back"] == f"/me/orders?order={request.order}&payment="
    opening = said["opening"]
    assert set(opening) == {"appId", "timeStamp", "nonceStr", "package", "signType", "paySign"}
    assert (opening["appId"], opening["signType"]) == (APPID, "RSA")
    text = "".join(f"{opening[name]}\n" for name in ("appId", "timeStamp", "nonceStr", "package"))
    double.merchant.public_key().verify(
        base64.b64decode(opening["paySign"]), text.encode(), padding.PKCS1v15(), hashes.SHA256()
    )


async def test_a_page_made_again_is_made_in_the_same_way(
    double: WechatDouble, provider: WechatProvider
) -> None:
    request = request_of()
    first = await provider.create(request)
    inside = PayerClient(ip="203.0.113.8", openid=OPENID)
    again = await provider.create(request_of(order=request.order, client=inside, way="h5"))
    assert (again.ref, again.way) == (first.ref, "h5")
    with pytest.raises(Unavailable, match="商户订单号重复"):
        await provider.create(request_of(order=request.order, client=inside))
    with pytest.raises(BadRequest):
        await provider.create(request_of(way="jsapi"))  # whoever that is, they are not known here


async def test_what_wechat_cannot_take_is_cut_or_refused(
    double: WechatDouble, provider: WechatProvider
) -> None:
    await provider.create(request_of(description="米" * 300, hold_until=int(time.time() * 1000) + 5_000))
    body = double.asked[-1][2]
    assert len(body["description"]) == 127
    left = time.time() + 60
    assert time.strptime(body["time_expire"][:19], "%Y-%m-%dT%H:%M:%S") >= time.gmtime(left + 8 * 3600)
    with pytest.raises(BadRequest):
        await provider.create(request_of(currency="USD"))


# --- asking ---


async def test_a_payment_is_found_only_when_it_was_paid(
    double: WechatDouble, provider: WechatProvider
) -> None:
    assert await provider.query("0" * 32) is None
    request = request_of()
    page = await provider.create(request)
    assert await provider.query(page.ref) is None
    for state in ("CLOSED", "USERPAYING", "PAYERROR", "REVOKED"):
        double.pay(page.ref, trade_state=state)
        assert await provider.query(page.ref) is None
    for state in ("SUCCESS", "REFUND"):
        double.pay(page.ref, trade_state=state)
        found = await provider.query(page.ref)
        assert found is not None
        assert (found.ref, found.order, found.amount_fen, found.payer) == (
            page.ref,
            request.order,
            10_900,
            OPENID,
        )
        assert found.paid_at.isoformat() == "2026-11-21T20:15:30+08:00"


@pytest.mark.parametrize(
    "changes",
    [
        {"mchid": "1900000000"},
        {"appid": "wx0000000000000000"},
        {"amount": {"total": 10_900, "currency": "USD"}},
        {"amount": None},
    ],
)
async def test_what_is_another_merchants_apps_or_currencys_is_not_believed(
    double: WechatDouble, provider: WechatProvider, changes: dict[str, Any]
) -> None:
    ref, _ = await paid(double, provider, **changes)
    with pytest.raises(BadRequest):
        await provider.query(ref)
    with pytest.raises(BadRequest):
        provider.read_webhook(*double.news("TRANSACTION.SUCCESS", double.orders[ref]["trade"]))


async def test_trouble_at_wechat_is_unavailable_and_names_its_code(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, _ = await paid(double, provider)
    for status, code in ((500, "SYSTEM_ERROR"), (429, "FREQUENCY_LIMITED"), (401, "SIGN_ERROR")):
        double.trouble = status, code
        for call in (provider.create(request_of()), provider.query(ref), provider.give_back(ref, 1, "k")):
            with pytest.raises(Unavailable, match=code):
                await call
    double.trouble = None
    double.signs_with = double.merchant  # an answer that somebody else signed
    with pytest.raises(Unavailable, match="signature"):
        await provider.query(ref)
    double.close()
    with pytest.raises(Unavailable):
        await provider.query(ref)


async def test_wechat_refuses_who_signs_with_another_key(double: WechatDouble) -> None:
    keys = WechatKeys.load(private_pem(new_key()), public_pem(double.platform), PUBLIC_KEY_ID)
    with pytest.raises(Unavailable, match="SIGN_ERROR"):
        await provider_of(double, keys=keys).create(request_of())


async def test_calls_are_bounded_and_leave_the_loop_free(
    double: WechatDouble, provider: WechatProvider
) -> None:
    double.gate.clear()
    calls = [asyncio.create_task(provider.create(request_of())) for _ in range(20)]
    async with asyncio.timeout(5):
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        while len(waiting) > CALLS_MAX:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert len(waiting) == CALLS_MAX
    assert {type(call.exception()) for call in done} == {Unavailable}
    async with asyncio.timeout(15):
        while double.at_once < CALLS_MAX:  # none of them waits for another's thread
            await asyncio.sleep(0.01)
    for call in waiting:
        call.cancel()  # the callers leave, their threads do not
    await asyncio.wait(waiting)
    with pytest.raises(Unavailable, match="too many"):
        await provider.create(request_of())
    double.gate.set()
    async with asyncio.timeout(5):
        while True:
            try:
                await provider.create(request_of())
                break
            except Unavailable:
                await asyncio.sleep(0.01)
    assert double.most_at_once == CALLS_MAX


# --- money back ---


async def test_a_refund_is_made_once_and_told_when_it_is_done(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, _ = await paid(double, provider)
    key = new_id()
    assert await provider.give_back(ref, 900, key) is None  # under way
    posted = [body for method, path, body in double.asked if path == "/v3/refund/domestic/refunds"]
    assert posted == [
        {
            "out_refund_no": key,
            "out_trade_no": ref,
            "amount": {"refund": 900, "total": 10_900, "currency": "CNY"},
            "notify_url": f"{SHOP}/v1/payments/wechat/webhook",
        }
    ]
    assert await provider.give_back(ref, 900, key) is None
    told = double.finish_refund(key, "SUCCESS")
    assert await provider.give_back(ref, 900, key) == told["refund_id"]
    assert len(double.refunds) == 1
    with pytest.raises(ReturnRefused):
        await provider.give_back(ref, 901, key)
    found = provider.read_webhook(*double.news("REFUND.SUCCESS", told))
    assert found == FoundReturn(key=key, ref=ref, amount_fen=900, return_ref=told["refund_id"], declined="")


@pytest.mark.parametrize("status", ["ABNORMAL", "CLOSED"])
async def test_a_refund_that_wechat_cannot_make_is_refused_by_name(
    double: WechatDouble, provider: WechatProvider, status: str
) -> None:
    ref, _ = await paid(double, provider)
    await provider.give_back(ref, 900, "k")
    told = double.finish_refund("k", status)
    with pytest.raises(ReturnRefused, match=status):
        await provider.give_back(ref, 900, "k")
    found = provider.read_webhook(*double.news(f"REFUND.{status}", told))
    assert isinstance(found, FoundReturn)
    assert found.declined == status


async def test_a_refund_without_money_on_the_account_is_refused_with_wechats_words(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, _ = await paid(double, provider)
    double.trouble = 403, "NOT_ENOUGH"
    with pytest.raises(ReturnRefused, match="NOT_ENOUGH"):
        await provider.give_back(ref, 900, "k")
    double.trouble = None
    with pytest.raises(ReturnRefused, match="no such payment"):
        await provider.give_back("0" * 32, 900, "l")


async def test_a_payment_of_another_app_does_not_go_back_by_itself(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, _ = await paid(double, provider)
    since = provider_of(double, appid="wx0000000000000000")  # the shop has another app now
    with pytest.raises(ReturnRefused, match="another app"):
        await since.give_back(ref, 900, "k")
    assert double.refunds == {}


# --- its news ---


async def test_news_of_a_payment_are_verified_decrypted_and_read(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, request = await paid(double, provider)
    headers, body = double.news("TRANSACTION.SUCCESS", double.orders[ref]["trade"])
    for cased in (headers, {name.lower(): value for name, value in headers.items()}):
        found = provider.read_webhook(cased, body)
        assert isinstance(found, FoundPayment)
        assert (found.ref, found.order, found.amount_fen) == (ref, request.order, 10_900)
    assert provider.read_webhook(*double.news("COUPON.USE", {"mchid": MCHID})) is None
    with pytest.raises(BadRequest):
        provider.read_webhook(*double.news("TRANSACTION.SUCCESS", {"mchid": MCHID}))


async def test_forged_old_or_foreign_news_are_refused_without_a_call(
    double: WechatDouble, provider: WechatProvider
) -> None:
    ref, _ = await paid(double, provider)
    asked = len(double.asked)

    def news(**how: Any) -> tuple[dict[str, str], bytes]:
        return double.news("TRANSACTION.SUCCESS", double.orders[ref]["trade"], **how)

    headers, body = news()
    wrong = [
        news(age_s=600),
        news(age_s=-600),
        news(key=double.merchant),
        news(serial="5157F09EFDC096DE15EBE81A47057A7232F1B8E1"),
        news(apiv3_key="x" * 32),
        (headers, body.replace(b"TRANSACTION", b"transaction")),
        (headers, b"\xff\xfe"),
        ({}, body),
        ({**headers, "Wechatpay-Serial": ""}, body),
        ({**headers, "Wechatpay-Signature": ""}, body),
        ({**headers, "Wechatpay-Timestamp": "soon"}, body),
        ({**headers, "Wechatpay-Nonce": "other"}, body),
        ({**headers, "Wechatpay-Signature": "WECHATPAY/SIGNTEST/" + headers["Wechatpay-Signature"]}, body),
    ]
    for each in wrong:
        with pytest.raises(BadSignature):
            provider.read_webhook(*each)
    # What a sender says of the algorithm decides nothing: only one is ever used.
    unnamed = {**headers, "Wechatpay-Signature-Type": "none"}
    assert isinstance(provider.read_webhook(unnamed, body), FoundPayment)
    assert len(double.asked) == asked  # a serial number nobody knows sends us nowhere


# --- keys ---


async def test_a_platform_certificate_serves_in_place_of_a_public_key(double: WechatDouble) -> None:
    serial = 0x0157F09EFDC096DE15EBE81A47057A7232F1B8E1
    keys = WechatKeys.load(private_pem(double.merchant), certificate_pem(double.platform, serial))
    double.serial = f"{serial:040X}"
    provider = provider_of(double, keys=WechatKeys(keys.private_key, keys.public_key, keys.public_key_id))
    ref, _ = await paid(double, provider)
    assert isinstance(
        provider.read_webhook(*double.news("TRANSACTION.SUCCESS", double.orders[ref]["trade"])), FoundPayment
    )
    assert await provider.query(ref) is not None


def test_keys_that_are_none_are_refused_by_name(keys: tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey]) -> None:
    merchant, platform = keys
    curve = ec.generate_private_key(ec.SECP256R1())
    curve_pem = curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    good, public = private_pem(merchant), public_pem(platform)
    for private_key, public_key, name, which in (
        ("nothing", public, PUBLIC_KEY_ID, "private_key"),
        (public, public, PUBLIC_KEY_ID, "private_key"),
        (curve_pem, public, PUBLIC_KEY_ID, "private_key"),
        (good, good, PUBLIC_KEY_ID, "public_key"),
        (good, "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "", "public_key"),
        (good, public, "", "public_key_id"),
    ):
        with pytest.raises(BadKey) as refused:
            WechatKeys.load(private_key, public_key, name)
        assert refused.value.which == which
    assert "PRIVATE" not in repr(WechatKeys.load(good, public, PUBLIC_KEY_ID))


def test_an_order_number_leads_back_to_its_order() -> None:
    order = new_id()
    assert len(number_of(order)) == 32
    assert order_of(number_of(order)) == order
    for other in ("", "x" * 32, order, order.upper().replace("-", ""), "1217752501201407033233368018"):
        assert order_of(other) == other
