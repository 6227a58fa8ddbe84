"""WeChat Pay, version 3, behind the PaymentProvider port: inside WeChat (JSAPI) and in other browsers (H5).

The order's id is the merchant's order number, so one order is one payment there too, and every call may be
repeated. The library signs, calls and verifies; it blocks, so it runs in threads, a bounded number at once.
What it leaves open is closed here: the age of a webhook, and which key may have signed it. WeChat's key comes
from a file (public key or platform certificate); nothing is fetched because a stranger named a serial number.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Struct
from wechatpayv3 import WeChatPay, WeChatPayType

from commerce.payments import (
    BadSignature,
    FoundPayment,
    FoundReturn,
    PaymentPage,
    PaymentRequest,
    ReturnRefused,
)
from membership.actor import is_id
from membership.refusal import BadRequest, Unavailable

log = logging.getLogger(__name__)

GATEWAY: Final = "https://api.mch.weixin.qq.com"
CURRENCY: Final = "CNY"
CONNECT_S: Final = 3.0
ANSWER_S: Final = 5.0
CALLS_MAX: Final = 12  # at once, each in a thread; up to six are the jobs'. Further ones are to come again
CLOCK_S: Final = 300  # how old a webhook may be
DESCRIPTION_CHARS: Final = 127
H5_URL_S: Final = 270  # the address holds for 300 s
EXPIRE_LEAST_S: Final = 65  # less than a minute is refused
CHINA: Final = timezone(timedelta(hours=8))
SIGNED: Final = "WECHATPAY2-SHA256-RSA2048"

Way = Literal["jsapi", "h5"]


class BadKey(ValueError):
    """Which key cannot be used, and why."""

    def __init__(self, which: Literal["private_key", "public_key", "public_key_id"], why: str) -> None:
        super().__init__(why)
        self.which = which


class WechatKeys(Struct, frozen=True):
    """The merchant's private key and WeChat's public one, with the name under which WeChat signs."""

    private_key: str
    public_key: str
    public_key_id: str

    @classmethod
    def load(cls, private_key: str, public_key: str, public_key_id: str = "") -> WechatKeys:
        """From PEM texts; `public_key` may be a platform certificate, which names itself. Raises BadKey."""
        try:
            private = load_pem_private_key(private_key.encode(), None)
        except (ValueError, TypeError):
            raise BadKey("private_key", "is no private key in PEM without a password") from None
        try:
            if "BEGIN CERTIFICATE" in public_key:
                certificate = x509.load_pem_x509_certificate(public_key.encode())
                public, serial = certificate.public_key(), f"{certificate.serial_number:X}"
                public_key_id = serial.zfill(
                    len(serial) + len(serial) % 2
                )  # whole bytes, as WeChat writes it
            else:
                public = load_pem_public_key(public_key.encode())  # type: ignore[assignment]
        except ValueError:
            raise BadKey("public_key", "is no public key or certificate in PEM") from None
        if not isinstance(private, RSAPrivateKey):
            raise BadKey("private_key", "is no RSA key")
        if not isinstance(public, RSAPublicKey):
            raise BadKey("public_key", "is no RSA key")
        if not public_key_id:
            raise BadKey("public_key_id", "is needed with a public key")
        return cls(
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
            public_key_id,
        )

    def __repr__(self) -> str:
        """Without what must not be in a log."""
        return f"WechatKeys(public_key_id={self.public_key_id!r}, …)"


class _Amount(Struct, frozen=True):
    total: int
    currency: str = CURRENCY


class _Payer(Struct, frozen=True):
    openid: str = ""


class _Trade(Struct, frozen=True):
    """A payment as WeChat tells it, asked for or by itself."""

    mchid: str
    appid: str
    out_trade_no: str
    trade_state: str
    amount: _Amount | None = None
    payer: _Payer = _Payer()
    success_time: datetime | None = None


class _RefundAmount(Struct, frozen=True):
    refund: int


class _Refund(Struct, frozen=True):
    """The answer about a refund."""

    refund_id: str
    status: str
    amount: _RefundAmount


class _RefundNews(Struct, frozen=True):
    """A refund as WeChat tells it by itself."""

    mchid: str
    out_trade_no: str
    out_refund_no: str
    refund_id: str
    refund_status: str
    amount: _RefundAmount


class _Answer(Struct, frozen=True):
    status: int
    body: bytes

    @property
    def word(self) -> str:
        """WeChat's code of an error, and its sentence."""
        try:
            read = msgspec.json.decode(self.body, type=dict[str, Any])
        except msgspec.DecodeError:
            return str(self.status)
        return f"{read.get('code', self.status)} {read.get('message', '')}".strip()


class WechatProvider:
    """Speaks to WeChat Pay for one merchant and one app."""

    name = "wechat"

    def __init__(
        self,
        *,
        mchid: str,
        appid: str,
        cert_serial: str,
        apiv3_key: str,
        keys: WechatKeys,
        public_url: str,
        notify_url: str = "",
        gateway: str = GATEWAY,
    ) -> None:
        self._mchid, self._appid = mchid, appid
        self._public_url = public_url.rstrip("/")
        self._key_id = keys.public_key_id
        self._running = 0
        # Of its own: the loop's are for everybody, on two cores six.
        self._threads = ThreadPoolExecutor(CALLS_MAX, "wechat")
        self._pay = WeChatPay(
            wechatpay_type=WeChatPayType.JSAPI,
            mchid=mchid,
            private_key=keys.private_key,
            cert_serial_no=cert_serial,
            appid=appid,
            apiv3_key=apiv3_key,
            notify_url=notify_url or f"{self._public_url}/v1/payments/wechat/webhook",
            timeout=(CONNECT_S, ANSWER_S),
            public_key=keys.public_key,
            public_key_id=keys.public_key_id,
        )
        # The library knows one address; WeChat has a second for trouble.
        self._pay._core._gate_way = gateway.rstrip("/")

    async def create(self, request: PaymentRequest) -> PaymentPage:
        """A page for this order: inside WeChat when the buyer's openid is known, else WeChat's own for browsers."""
        way: Way = (
            "jsapi" if (request.way or ("jsapi" if request.client.openid else "h5")) == "jsapi" else "h5"
        )
        if way == "jsapi" and not request.client.openid:
            raise BadRequest("this payment was begun inside WeChat; go on with it there")
        if request.currency != CURRENCY:
            raise BadRequest(f"WeChat Pay takes {CURRENCY} only")
        number = number_of(request.order)
        least = time.time() + EXPIRE_LEAST_S
        expires = datetime.fromtimestamp(max(request.hold_until / 1000, least), CHINA)
        more: dict[str, Any] = (
            {"payer": {"openid": request.client.openid}, "pay_type": WeChatPayType.JSAPI}
            if way == "jsapi"
            else {
                "scene_info": {"payer_client_ip": request.client.ip, "h5_info": {"type": "Wap"}},
                "pay_type": WeChatPayType.H5,
            }
        )
        answer = await self._call(
            self._pay.pay,
            description=request.description[:DESCRIPTION_CHARS],
            out_trade_no=number,
            amount={"total": request.amount_fen, "currency": CURRENCY},
            time_expire=expires.isoformat(timespec="seconds"),
            **more,
        )
        if answer.status != 200:
            raise Unavailable(f"wechat: {answer.word}", retry_ms=2000)
        path = f"/s/{request.show}" if request.show else "/me/orders"
        back = f"{path}?order={request.order}&payment="
        if way == "h5":
            made = self._read(answer.body, dict[str, str])["h5_url"]
            url = f"{made}&redirect_url={quote(f'{self._public_url}{back}returned', safe='')}"
            return PaymentPage(number, url, int((time.time() + H5_URL_S) * 1000), way)
        prepay = self._read(answer.body, dict[str, str])["prepay_id"]
        return PaymentPage(number, f"{self._public_url}/pay/wechat#{self._opening(prepay, back)}", None, way)

    async def query(self, ref: str) -> FoundPayment | None:
        """The payment when it was paid (also when it has gone back since). Raises BadRequest for one that is
        another merchant's, app's or currency's."""
        answer = await self._call(self._pay.query, out_trade_no=ref)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise Unavailable(f"wechat: {answer.word}", retry_ms=2000)
        return self._found(self._read(answer.body, _Trade))

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str | None:
        """Refund, once a key. WeChat takes it at once and does it later; asking again tells how it went."""
        answer = await self._call(self._pay.query_refund, out_refund_no=key)
        if answer.status == 404:
            try:
                paid = await self.query(ref)
            except BadRequest as error:
                raise ReturnRefused(f"wechat: {error}") from error
            if paid is None:
                raise ReturnRefused("wechat: no such payment")
            answer = await self._call(
                self._pay.refund,
                out_refund_no=key,
                out_trade_no=ref,
                amount={"refund": amount_fen, "total": paid.amount_fen, "currency": CURRENCY},
            )
        if answer.status in (400, 403, 404):
            raise ReturnRefused(f"wechat: {answer.word}")
        if answer.status != 200:
            raise Unavailable(f"wechat: {answer.word}", retry_ms=2000)
        refund = self._read(answer.body, _Refund)
        if refund.amount.refund != amount_fen:
            raise ReturnRefused("wechat: another amount went back under this number")
        match refund.status:
            case "SUCCESS":
                return str(refund.refund_id)
            case "PROCESSING":
                return None
        raise ReturnRefused(f"wechat: {refund.status}")

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> FoundPayment | FoundReturn | None:
        """Verify, decrypt and read; None for what is none of our business. Raises BadSignature, BadRequest."""
        opened = self._opened({name.lower(): value for name, value in headers.items()}, body)
        kind = opened.get("event_type", "")
        try:
            if kind == "TRANSACTION.SUCCESS":
                return self._found(msgspec.convert(opened["resource"], _Trade))
            if kind.startswith("REFUND."):
                refund = msgspec.convert(opened["resource"], _RefundNews)
                self._check_ours(refund.mchid)
                return FoundReturn(
                    key=refund.out_refund_no,
                    ref=refund.out_trade_no,
                    amount_fen=refund.amount.refund,
                    return_ref=refund.refund_id,
                    declined="" if refund.refund_status == "SUCCESS" else refund.refund_status,
                )
        except (msgspec.ValidationError, KeyError) as error:
            raise BadRequest(f"the webhook cannot be read: {error}") from None
        return None

    # --- parts ---

    def _opened(self, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        moment, serial = headers.get("wechatpay-timestamp", ""), headers.get("wechatpay-serial", "")
        if not moment.isascii() or not moment.isdigit() or abs(time.time() - int(moment)) > CLOCK_S:
            raise BadSignature
        # The library would fetch certificates for a name it does not know.
        if serial.upper().lstrip("0") != self._key_id.upper().lstrip("0"):
            raise BadSignature
        signed = {**headers, "wechatpay-serial": self._key_id, "wechatpay-signature-type": SIGNED}
        try:
            opened = self._pay.callback(headers=signed, body=body)
        except Exception as error:  # whatever it stumbles over was not made by WeChat
            raise BadSignature from error
        if not isinstance(opened, dict):
            raise BadSignature
        return opened

    def _found(self, trade: _Trade) -> FoundPayment | None:
        self._check_ours(trade.mchid)
        if trade.trade_state not in ("SUCCESS", "REFUND"):
            return None
        if trade.appid != self._appid or trade.amount is None or trade.amount.currency != CURRENCY:
            raise BadRequest("the payment is of another app or currency")
        return FoundPayment(
            ref=trade.out_trade_no,
            order=order_of(trade.out_trade_no),
            amount_fen=trade.amount.total,
            payer=trade.payer.openid,
            paid_at=trade.success_time or datetime.now(UTC),
        )

    def _check_ours(self, mchid: str) -> None:
        if mchid != self._mchid:
            raise BadRequest("the payment is of another merchant")

    def _opening(self, prepay: str, back: str) -> str:
        """What our page hands to WeChat's browser, for the fragment of its address: it reaches no server."""
        moment, nonce, package = str(int(time.time())), uuid.uuid4().hex, f"prepay_id={prepay}"
        opening = {
            "appId": self._appid,
            "timeStamp": moment,
            "nonceStr": nonce,
            "package": package,
            "signType": "RSA",
            "paySign": self._pay.sign([self._appid, moment, nonce, package]),
        }
        said = msgspec.json.encode({"opening": opening, "back": back})
        return base64.urlsafe_b64encode(said).decode().rstrip("=")

    async def _call(self, act: Callable[..., tuple[int, Any]], **arguments: Any) -> _Answer:
        """One call in a thread. Raises Unavailable, also when too many are under way."""
        if self._running >= CALLS_MAX:
            raise Unavailable("wechat: too many calls at once", retry_ms=1000)
        call = asyncio.get_running_loop().run_in_executor(self._threads, partial(act, **arguments))
        self._running += 1
        call.add_done_callback(self._ended)
        try:
            # A caller who leaves does not end the thread, so it is counted until it has ended.
            status, body = await asyncio.shield(call)
        except Exception as error:  # the network's, and the library's own for an answer signed wrongly
            raise Unavailable(f"wechat: {type(error).__name__}: {error}", retry_ms=2000) from error
        return _Answer(status, body.encode() if isinstance(body, str) else body)

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not call.cancelled():
            call.exception()  # looked at, so that one nobody waited for is not reported

    def _read(self, body: bytes, kind: type[Any]) -> Any:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise Unavailable(f"wechat: an answer that cannot be read: {error}", retry_ms=2000) from error


def number_of(order: str) -> str:
    """The merchant's order number: our id without dashes, 32 characters, the most WeChat takes."""
    return order.replace("-", "")


def order_of(number: str) -> str:
    """Our id behind an order number; the number itself when it is none of ours."""
    try:
        order = str(uuid.UUID(hex=number))
    except ValueError:
        return number
    return order if is_id(order) and number_of(order) == number else number
