"""Holds what clients were told against the rows, the provider's own books, and the product's own close.

`companion close` counts everything of the show again (rows, log, receipts, Redis) and seals only when no
difference is left; what it must not see is added here: the promises made to clients, and the provider's side.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import dict_row

from loadtests.rounds.plan import CLAIMANTS, GIFTS, PIECES, SEATS
from loadtests.rounds.play import Brand, Played

SETTLED_S: Final = 60.0  # by then every job has had its turn
AGAIN_S: Final = 0.5
CLOSE_S: Final = 30.0  # one close
LOOK_S: Final = 0.05

Row = dict[str, Any]


class Judge:
    """Of one deployment."""

    def __init__(self, brand: Brand, *, settled_s: float = SETTLED_S) -> None:
        self._brand = brand
        self._settled_s = settled_s

    async def judge(self, played: Played) -> list[str]:
        """What is wrong, in words; waits until what is under way has settled, but not for ever."""
        until = time.monotonic() + self._settled_s
        while True:
            wrong = await self._look(played)
            if wrong is not None:
                for_good = [*played.told.wrong, *wrong]
                if not for_good:
                    return await self._close(played, until)
                if wrong == [] or time.monotonic() > until:
                    return for_good
            if time.monotonic() > until:
                return [*played.told.wrong, "the database did not answer"]
            await asyncio.sleep(AGAIN_S)

    async def _look(self, played: Played) -> list[str] | None:
        """None while the stores do not answer: another round may be breaking them."""
        try:
            ledger = await self._brand.ledger()
            async with await psycopg.AsyncConnection.connect(
                self._brand.house.database_url, row_factory=dict_row, connect_timeout=5
            ) as conn:
                rows = {name: await _rows(conn, query, played) for name, query in QUERIES.items()}
        except psycopg.Error:
            return None
        return [
            *against_claims(played, rows["claims"], rows["misses"]),
            *against_orders(played, rows["orders"], rows["sold"]),
            *against_money(played, rows["payments"], rows["returns"], ledger),
        ]

    async def _close(self, played: Played, until: float) -> list[str]:
        """The product's own judgement: until it seals, or time is over."""
        while True:
            output, pid = self._brand.house.begin("close", played.show)
            for _ in range(round(CLOSE_S / LOOK_S)):
                if not self._brand.house.is_running(pid):
                    break
                await asyncio.sleep(LOOK_S)
            said = output.read_text("utf-8", "replace")
            output.unlink()
            if "\nsealed " in said:
                return []
            if time.monotonic() > until:
                lines = [line for line in said.splitlines() if line.startswith(("difference ", "waiting "))]
                return [f"close: {line}" for line in lines or said.splitlines()[-3:] or ["it said nothing"]]
            await asyncio.sleep(AGAIN_S)


QUERIES: Final[dict[str, LiteralString]] = {
    "claims": """SELECT c.benefit_id::text AS benefit, c.member_id::text AS member, c.rank, r.core
        FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
        LEFT JOIN benefit_receipts r ON r.claim_id = c.id WHERE b.show_id = %(show)s ORDER BY c.rank""",
    "misses": """SELECT o.member_id::text AS member, m.why FROM benefit_misses m
        JOIN payments p ON p.id = m.payment_id JOIN orders o ON o.id = p.order_id
        WHERE o.show_id = %(show)s""",
    "orders": """SELECT o.id::text AS id, o.member_id::text AS member, o.kind, o.state, o.total_fen,
        o.paid_at IS NOT NULL AS paid FROM orders o WHERE o.show_id = %(show)s""",
    "sold": """SELECT coalesce(sum(l.quantity) FILTER (WHERE o.paid_at IS NOT NULL), 0)::int AS sold,
        coalesce(sum(l.quantity) FILTER (WHERE o.state = 'placed'), 0)::int AS held,
        max(f.taken) AS taken, max(p.stock) AS stock
        FROM offers f JOIN products p ON p.id = f.product_id
        LEFT JOIN order_lines l ON l.offer_id = f.id AND l.kind = 'goods'
        LEFT JOIN orders o ON o.id = l.order_id WHERE f.id = %(offer)s""",
    "payments": """SELECT p.ref, p.order_id::text AS order_id, p.amount_fen, p.outcome, p.reason
        FROM payments p JOIN orders o ON o.id = p.order_id WHERE o.show_id = %(show)s""",
    "returns": """SELECT p.ref, r.amount_fen, d.done_at IS NOT NULL AS done FROM payment_returns r
        JOIN payments p ON p.id = r.payment_id JOIN orders o ON o.id = p.order_id
        LEFT JOIN payment_returns_done d ON d.return_id = r.id WHERE o.show_id = %(show)s""",
}


async def _rows(conn: psycopg.AsyncConnection[Row], query: LiteralString, played: Played) -> list[Row]:
    found = await conn.execute(query, {"show": played.show, "offer": played.offer})
    return await found.fetchall()


# --- what follows from what was told ---


def against_claims(played: Played, claims: list[Row], misses: list[Row]) -> list[str]:
    """No rank is lost, none given twice, none above the quota, none other than was told."""
    wrong = []
    told = played.told
    booked = {(row["benefit"], row["member"]): row["rank"] for row in claims}
    for (benefit, member), rank in told.ranks.items():
        now = booked.get((benefit, member))
        if now != rank:
            wrong.append(f"member {member} was told rank {rank}, the books say {now or 'none'}")
    for row in claims:
        receipt = told.receipts.get((row["benefit"], row["member"]))
        if receipt is not None and core_in(receipt) != row["core"]:
            wrong.append(f"the receipt of rank {row['rank']} is not the one that was handed out")
    for name, benefit, quota in (("入会礼", played.join, SEATS), ("试吃装", played.claim, GIFTS)):
        ranks = sorted(row["rank"] for row in claims if row["benefit"] == benefit)
        if ranks != list(range(1, len(ranks) + 1)) or len(ranks) > quota:
            wrong.append(f"{name}: ranks {ranks}, at most 1 to {quota} and no gap")
    gifts = sum(row["benefit"] == played.claim for row in claims)
    if gifts != min(GIFTS, CLAIMANTS):
        wrong.append(f"{gifts} of {GIFTS} gifts were claimed though {CLAIMANTS} asked")
    both = {row["member"] for row in misses} & {
        row["member"] for row in claims if row["benefit"] == played.join
    }
    if both:
        wrong.append(f"{len(both)} members have the gift and were told that they missed it")
    return wrong


def core_in(receipt: str) -> str:
    """What the receipt says, as it was signed: the middle of its three parts."""
    part = receipt.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


def against_orders(played: Played, orders: list[Row], sold: list[Row]) -> list[str]:
    """No order is lost, none double; never more pieces than there are."""
    wrong = []
    told = played.told
    known = {row["id"]: row for row in orders}
    for order in sorted(told.placed.keys() - known.keys()):
        wrong.append(f"order {order} was confirmed and is not in the books")
    for order in sorted(told.paid.keys() & known.keys()):
        row = known[order]
        if not row["paid"] and order not in told.given_up:
            wrong.append(f"order {order} was paid for and is {row['state']}")
    for order in sorted(told.given_up & known.keys()):
        if known[order]["state"] not in ("cancelled", "expired"):
            wrong.append(f"order {order} was given up and is {known[order]['state']}")
    for kind in ("goods", "plan"):
        each = Counter(row["member"] for row in orders if row["kind"] == kind)
        wrong += [
            f"member {member} has {count} orders for one" for member, count in each.items() if count > 1
        ]
    for row in sold:
        if row["sold"] + row["held"] > PIECES:
            wrong.append(f"{row['sold']} pieces sold and {row['held']} held of {PIECES}")
        if row["stock"] + row["sold"] + row["held"] != PIECES:
            wrong.append(f"{row['stock']} pieces in stock after {row['sold']} of {PIECES} were sold")
    return wrong


def against_money(
    played: Played, payments: list[Row], returns: list[Row], ledger: dict[str, Any]
) -> list[str]:
    """To the fen: what the provider took is recorded once, what went back went back once."""
    wrong = []
    ours = set(played.told.placed)
    theirs = {p["ref"]: p for p in ledger["payments"] if p["order"] in ours and p["status"] == "paid"}
    booked = {row["ref"]: row for row in payments}
    if len(booked) != len(payments):
        wrong.append("a payment is recorded twice")
    for ref in sorted(theirs.keys() | booked.keys()):
        took = theirs[ref]["paid_fen"] if ref in theirs else 0
        recorded = booked[ref]["amount_fen"] if ref in booked else 0
        if took != recorded:
            wrong.append(f"payment {ref}: the provider took {took} fen, recorded are {recorded}")
    back: Counter[str] = Counter()
    for row in returns:
        back[row["ref"]] += row["amount_fen"] if row["done"] else 0
    for ref, payment in theirs.items():
        if payment["returned_fen"] != back[ref]:
            wrong.append(
                f"payment {ref}: the provider sent {payment['returned_fen']} fen back, recorded {back[ref]}"
            )
        is_returned = ref in booked and booked[ref]["outcome"] == "returned"
        if is_returned and payment["returned_fen"] != payment["paid_fen"]:
            wrong.append(f"payment {ref}: bought nothing and is not back")
    return wrong
