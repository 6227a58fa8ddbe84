"""WeChat Pay's side of the wire, as its v3 documents show it: checks our signatures, signs and seals its own.

The shapes are those of the documents of direct merchants: JSAPI and H5 orders, query by merchant number,
domestic refunds, and the notifications TRANSACTION.SUCCESS and REFUND.*.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

MCHID, APPID = "1900006891", "wx8888888888888888"
MERCHANT_SERIAL = "444F4864EA9B34415A2B6E0A1E3C7B5D00000001"
APIV3_KEY = "0123456789abcdef0123456789ABCDEF"
PUBLIC_KEY_ID = "PUB_KEY_ID_0119000068912024060600112233445566"
OPENID = "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o"


def new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2048)


def private_pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_pem(key: rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def certificate_pem(key: rsa.RSAPrivateKey, serial: int) -> str:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Tenpay.com sign")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1_800))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


class WechatDouble:
    """A server on a port of its own, with the keys of both sides."""

    def __init__(self, merchant: rsa.RSAPrivateKey, platform: rsa.RSAPrivateKey) -> None:
        self.merchant, self.platform = merchant, platform
        self.serial = PUBLIC_KEY_ID  # under which it signs
        self.asked: list[tuple[str, str, dict[str, Any]]] = []  # method, path, body
        self.orders: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.refund_status = "PROCESSING"
        self.trouble: tuple[int, str] | None = None  # status and code of every answer
        self.signs_with = platform
        self.gate = threading.Event()  # answers wait for it
        self.gate.set()
        self.at_once = self.most_at_once = 0
        self._nonces: set[str] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    # --- what happens at WeChat ---

    def pay(self, number: str, total: int | None = None, **changes: Any) -> dict[str, Any]:
        """The buyer pays; the trade as it is told from then on."""
        order = self.orders[number]
        total = order["amount"]["total"] if total is None else total
        trade = {
            "mchid": MCHID,
            "appid": APPID,
            "out_trade_no": number,
            "transaction_id": f"42000{secrets.randbelow(10**20):020d}",
            "trade_type": order["trade_type"],
            "trade_state": "SUCCESS",
            "trade_state_desc": "支付成功",
            "bank_type": "CMC",
            "attach": "",
            "success_time": "2026-11-21T20:15:30+08:00",
            "payer": {"openid": OPENID},
            "amount": {"total": total, "payer_total": total, "currency": "CNY", "payer_currency": "CNY"},
            **changes,
        }
        order["trade"] = trade
        return trade

    def finish_refund(self, key: str, status: str) -> dict[str, Any]:
        """A refund ends; the resource of its notification."""
        refund = self.refunds[key]
        refund["status"] = status
        return {
            "mchid": MCHID,
            "out_trade_no": refund["out_trade_no"],
            "transaction_id": refund["transaction_id"],
            "out_refund_no": key,
            "refund_id": refund["refund_id"],
            "refund_status": status,
            "success_time": "2026-11-21T20:20:30+08:00",
            "user_received_account": "招商银行信用卡0403",
            "amount": {
                "total": refund["amount"]["total"],
                "refund": refund["amount"]["refund"],
                "payer_total": refund["amount"]["total"],
                "payer_refund": refund["amount"]["refund"],
            },
        }

    def news(
        self,
        event: str,
        resource: dict[str, Any],
        *,
        age_s: int = 0,
        serial: str | None = None,
        key: rsa.RSAPrivateKey | None = None,
        apiv3_key: str = APIV3_KEY,
    ) -> tuple[dict[str, str], bytes]:
        """A notification: headers and body."""
        kind = "transaction" if event.startswith("TRANSACTION") else "refund"
        nonce = secrets.token_hex(6)
        sealed = AESGCM(apiv3_key.encode()).encrypt(
            nonce.encode(), json.dumps(resource, ensure_ascii=False).encode(), kind.encode()
        )
        body = json.dumps(
            {
                "id": f"EV-{secrets.token_hex(12)}",
                "create_time": "2026-11-21T20:15:31+08:00",
                "resource_type": "encrypt-resource",
                "event_type": event,
                "summary": "支付成功",
                "resource": {
                    "original_type": kind,
                    "algorithm": "AEAD_AES_256_GCM",
                    "ciphertext": base64.b64encode(sealed).decode(),
                    "associated_data": kind,
                    "nonce": nonce,
                },
            },
            ensure_ascii=False,
        ).encode()
        headers = self._signed(body, int(time.time()) - age_s, key or self.signs_with)
        headers["Wechatpay-Serial"] = serial or self.serial
        return {**headers, "Content-Type": "application/json"}, body

    # --- the wire ---

    def _signed(self, body: bytes, moment: int, key: rsa.RSAPrivateKey) -> dict[str, str]:
        nonce = secrets.token_hex(16)
        text = f"{moment}\n{nonce}\n".encode() + body + b"\n"
        return {
            "Wechatpay-Serial": self.serial,
            "Wechatpay-Timestamp": str(moment),
            "Wechatpay-Nonce": nonce,
            "Wechatpay-Signature": base64.b64encode(
                key.sign(text, padding.PKCS1v15(), hashes.SHA256())
            ).decode(),
            "Wechatpay-Signature-Type": "WECHATPAY2-SHA256-RSA2048",
        }

    def _believes(self, method: str, path: str, headers: Any, body: bytes) -> bool:
        scheme, _, rest = headers.get("Authorization", "").partition(" ")
        given = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        moment = given.get("timestamp", "")
        if scheme != "WECHATPAY2-SHA256-RSA2048" or given["nonce_str"] in self._nonces:
            return False
        if (given["mchid"], given["serial_no"]) != (MCHID, MERCHANT_SERIAL) or abs(
            time.time() - int(moment)
        ) > 300:
            return False
        self._nonces.add(given["nonce_str"])
        text = f"{method}\n{path}\n{moment}\n{given['nonce_str']}\n".encode() + body + b"\n"
        try:
            self.merchant.public_key().verify(
                base64.b64decode(given["signature"]), text, padding.PKCS1v15(), hashes.SHA256()
            )
        except InvalidSignature:
            return False
        return True

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.trouble is not None:
            status, code = self.trouble
            return status, {"code": code, "message": "系统繁忙"}
        where = urlsplit(path)
        if method == "POST" and where.path in ("/v3/pay/transactions/jsapi", "/v3/pay/transactions/h5"):
            return self._begin(where.path.rsplit("/", 1)[1], body)
        trade = re.fullmatch(r"/v3/pay/transactions/out-trade-no/([0-9A-Za-z_|*-]{6,32})", where.path)
        if method == "GET" and trade and where.query == f"mchid={MCHID}":
            return self._told(trade[1])
        if method == "POST" and where.path == "/v3/refund/domestic/refunds":
            return self._refund(body)
        refund = re.fullmatch(r"/v3/refund/domestic/refunds/([0-9A-Za-z_|*@-]{1,64})", where.path)
        if method == "GET" and refund:
            if refund[1] in self.refunds:
                return 200, self.refunds[refund[1]]
            return 404, {"code": "RESOURCE_NOT_EXISTS", "message": "退款单不存在"}
        return 404, {"code": "NOT_FOUND", "message": "无此接口"}

    def _begin(self, kind: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        before = self.orders.get(body["out_trade_no"])
        if before is not None and (before["amount"], before["trade_type"]) != (
            body["amount"],
            "JSAPI" if kind == "jsapi" else "MWEB",
        ):
            return 400, {"code": "INVALID_REQUEST", "message": "201 商户订单号重复"}
        whole = {"appid", "mchid", "description", "out_trade_no", "time_expire", "notify_url", "amount"}
        whole |= {"payer"} if kind == "jsapi" else {"scene_info"}
        if set(body) != whole or (body["appid"], body["mchid"]) != (APPID, MCHID):
            return 400, {"code": "PARAM_ERROR", "message": "参数错误"}
        self.orders.setdefault(
            body["out_trade_no"], {**body, "trade_type": "JSAPI" if kind == "jsapi" else "MWEB"}
        )
        prepay = f"wx2120153{secrets.token_hex(13)}"
        if kind == "jsapi":
            return 200, {"prepay_id": prepay}
        page = "https://wx.tenpay.com/cgi-bin/mmpayweb-bin/checkmweb"
        return 200, {"h5_url": f"{page}?prepay_id={prepay}&package={secrets.randbelow(10**10)}"}

    def _told(self, number: str) -> tuple[int, dict[str, Any]]:
        order = self.orders.get(number)
        if order is None:
            return 404, {"code": "ORDER_NOT_EXIST", "message": "订单不存在"}
        unpaid = {
            "mchid": MCHID,
            "appid": APPID,
            "out_trade_no": number,
            "trade_state": "NOTPAY",
            "trade_state_desc": "订单未支付",
            "amount": {"total": order["amount"]["total"], "currency": "CNY"},
        }
        return 200, order.get("trade", unpaid)

    def _refund(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        key, number = body["out_refund_no"], body["out_trade_no"]
        if key in self.refunds:
            return 200, self.refunds[key]
        trade = self.orders.get(number, {}).get("trade")
        if trade is None or trade["amount"]["total"] != body["amount"]["total"]:
            return 400, {"code": "INVALID_REQUEST", "message": "订单金额或退款金额与之前请求不一致"}
        self.refunds[key] = {
            "refund_id": f"50000{secrets.randbelow(10**20):020d}",
            "out_refund_no": key,
            "transaction_id": trade["transaction_id"],
            "out_trade_no": number,
            "channel": "ORIGINAL",
            "user_received_account": "招商银行信用卡0403",
            "create_time": "2026-11-21T20:18:30+08:00",
            "status": self.refund_status,
            "funds_account": "AVAILABLE",
            "amount": {
                "total": body["amount"]["total"],
                "refund": body["amount"]["refund"],
                "from": [],
                "payer_total": body["amount"]["total"],
                "payer_refund": body["amount"]["refund"],
                "currency": "CNY",
            },
        }
        return 200, self.refunds[key]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve()

            def do_POST(self) -> None:
                self._serve()

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                with double._lock:
                    double.at_once += 1
                    double.most_at_once = max(double.most_at_once, double.at_once)
                double.gate.wait(10)
                with double._lock:
                    double.at_once -= 1
                    if double._believes(self.command, self.path, self.headers, body):
                        read = json.loads(body) if body else {}
                        double.asked.append((self.command, self.path, read))
                        status, said = double._answer(self.command, self.path, read)
                    else:
                        status, said = 401, {"code": "SIGN_ERROR", "message": "签名错误"}
                content = json.dumps(said, ensure_ascii=False).encode()
                self.send_response(status)
                for name, value in double._signed(content, int(time.time()), double.signs_with).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *_: Any) -> None:
                """Nothing on the screen."""

        return Handler
