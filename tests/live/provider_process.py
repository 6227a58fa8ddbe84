"""The sandbox provider as a process of its own, told to misbehave over HTTP; and the proof that money agrees."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from live import process
from membership.transaction import Connection

SECRET = "s" * 40
ROOT = Path(__file__).resolve().parents[2]


class ProviderProcess:
    """`companion sandbox` on one port and one file; it may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "provider.sqlite"
        self._folder = folder
        self._port = 0
        self.url = self.password = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")},
            "COMPANION_SECRET": SECRET,
            "COMPANION_DATA_DIR": str(self._folder / "data"),
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "live", "sandbox", "--port", str(self._port), "--file", self.file],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
            preexec_fn=process.before_exec(9),  # noqa: PLW1509
        )
        assert self._process.stdout is not None
        told = self._process.stdout.readline() + self._process.stdout.readline()
        found = re.search(r"payments on (http://[^:]+:(\d+))\n.*password (\w+)", told)
        assert found is not None, told
        self.url, self._port, self.password = found[1], int(found[2]), found[3]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def control(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self.url, auth=("control", self.password), timeout=10, verify=False
        )

    async def told(self, **faults: Any) -> None:
        """Misbehave so, and not otherwise; nothing named ends all faults."""
        async with self.control() as control:
            answer = await control.put("/control/faults", json=faults)
            assert answer.status_code == 200, answer.text

    async def pay(self, ref: str, **how: Any) -> str:
        async with self.control() as control:
            answer = await control.post(f"/control/payments/{ref}/pay", json=how)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["ref"])

    async def send(self, name: str, **how: Any) -> list[int]:
        """Send a webhook now; the shop's answers."""
        async with self.control() as control:
            answer = await control.post(f"/control/news/{name}/send", json=how)
            assert answer.status_code == 200, answer.text
            return [int(status) for status in answer.json()["answers"]]

    async def ledger(self) -> dict[str, list[dict[str, Any]]]:
        async with self.control() as control:
            return dict((await control.get("/control/ledger")).json())

    async def news_of(self, ref: str, kind: str = "payment.succeeded") -> list[str]:
        """The names of the webhooks about a payment, the first made first."""
        news = reversed((await self.ledger())["news"])
        return [each["id"] for each in news if each["ref"] == ref and each["type"] == kind]


async def assert_money_agrees(conn: Connection, file: Path, *, under_way_fen: int = 0) -> None:
    """The provider's own ledger, our payments, and what orders and plans say they keep: to the fen.

    1. Every payment there is written down here, once, with its amount; and no other.
    2. What went back there is what we hold proof of, payment by payment.
    3. What is to go back and has not gone is `under_way_fen`.
    4. An order keeps its total less its parts sent back when it is paid, else nothing; a plan has its term.
    5. In − back = kept by orders and plans + kept apart for a person + under way.
    """
    with sqlite3.connect(file) as ledger:
        came = dict(ledger.execute("SELECT ref, paid_fen FROM payments WHERE status = 'paid'"))
        back = dict(
            ledger.execute("SELECT ref, sum(amount_fen) FROM returns WHERE state = 'done' GROUP BY ref")
        )

    async def rows(query: str) -> list[dict[str, Any]]:
        return await (await conn.execute(query)).fetchall()  # type: ignore[call-overload, no-any-return]

    payments = await rows("SELECT * FROM payments")
    recorded = {payment["ref"]: payment["amount_fen"] for payment in payments}
    assert recorded == came, "1. what came is not what is written down"
    returns = await rows(
        """
        SELECT r.*, p.ref, p.order_id, p.outcome, d.provider_ref FROM payment_returns r
        JOIN payments p ON p.id = r.payment_id LEFT JOIN payment_returns_done d ON d.return_id = r.id
        """
    )
    proven: dict[str, int] = {}
    for each in returns:
        if each["provider_ref"] is not None and each["provider_ref"] != "by hand":
            proven[each["ref"]] = proven.get(each["ref"], 0) + each["amount_fen"]
    assert proven == back, "2. what went back is not what there is proof of"
    waiting = sum(each["amount_fen"] for each in returns if each["provider_ref"] is None)
    assert waiting == under_way_fen, "3. more or less is to go back"

    kept = 0
    for order in await rows("SELECT * FROM orders"):
        own = [payment for payment in payments if payment["order_id"] == order["id"]]
        accepted = [payment for payment in own if payment["outcome"] == "accepted"]
        parts = sum(
            each["amount_fen"]
            for each in returns
            if each["order_id"] == order["id"]
            and each["outcome"] == "accepted"
            and each["reason"] != "refund"
        )
        paid_by = [payment["id"] for payment in accepted]
        terms = [
            term
            for term in await rows("SELECT * FROM plan_terms WHERE payment_id IS NOT NULL")
            if term["payment_id"] in paid_by
        ]
        if order["state"] == "paid":
            assert [payment["amount_fen"] for payment in accepted] == [order["total_fen"]], "4."
            kept += order["total_fen"] - parts
            assert len(terms) == (order["kind"] == "plan"), "4. a paid plan has one term"
            assert all(term["end_reason"] != "refunded" for term in terms), "4. a paid plan runs"
        elif order["state"] == "refunded":
            sent = sum(each["amount_fen"] for each in returns if each["payment_id"] in paid_by)
            assert sent == order["total_fen"], "4. a refunded order keeps nothing"
            assert all(term["end_reason"] == "refunded" for term in terms), "4. a refunded plan has ended"
        else:
            assert accepted == [], f"4. an order that is {order['state']} keeps money"
    quarantined = [payment for payment in payments if payment["outcome"] == "quarantined"]
    apart = sum(
        payment["amount_fen"]
        - sum(each["amount_fen"] for each in returns if each["payment_id"] == payment["id"])
        for payment in quarantined
    )
    by_hand = sum(each["amount_fen"] for each in returns if each["provider_ref"] == "by hand")
    assert sum(came.values()) - sum(back.values()) - by_hand == kept + apart + waiting, "5."
