"""What the sandbox remembers: one SQLite file, so that several processes are one provider.

Payments and returns are its ledger; news are the webhooks it owes the shop; faults are how it was told to
misbehave. Calls are plain and short (well under a millisecond): a sandbox has one buyer at a time.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

Status = Literal["open", "paid", "failed", "superseded"]
ReturnState = Literal["done", "under_way", "declined"]
NewsType = Literal["payment.succeeded", "payment.returned"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    ref TEXT PRIMARY KEY, order_id TEXT NOT NULL, amount_fen INTEGER NOT NULL, currency TEXT NOT NULL,
    description TEXT NOT NULL, return_url TEXT NOT NULL, notify_url TEXT NOT NULL, payer TEXT NOT NULL,
    hold_until INTEGER, status TEXT NOT NULL, created_at REAL NOT NULL, paid_at REAL,
    paid_fen INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS payments_of_order ON payments (order_id);
CREATE TABLE IF NOT EXISTS returns (
    key TEXT PRIMARY KEY, ref TEXT NOT NULL, amount_fen INTEGER NOT NULL, at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'done'
);
CREATE TABLE IF NOT EXISTS news (
    id TEXT PRIMARY KEY, ref TEXT NOT NULL, type TEXT NOT NULL, data TEXT NOT NULL, made_at REAL NOT NULL,
    next_at REAL, attempts INTEGER NOT NULL DEFAULT 0, delivered_at REAL
);
CREATE TABLE IF NOT EXISTS faults (one INTEGER PRIMARY KEY CHECK (one = 1), said TEXT NOT NULL);
PRAGMA user_version = 2;
"""
# A file of the first form: the webhook stood in the payment's row.
_FROM_FIRST = """
ALTER TABLE payments ADD COLUMN paid_fen INTEGER NOT NULL DEFAULT 0;
UPDATE payments SET paid_fen = amount_fen WHERE status = 'paid';
ALTER TABLE returns ADD COLUMN state TEXT NOT NULL DEFAULT 'done';
"""
_COLUMNS = (
    "ref, order_id, amount_fen, currency, description, return_url, notify_url, payer, hold_until, status,"
    " created_at, paid_at, paid_fen"
)
LISTED_MAX = 200


class SandboxPayment(Struct, frozen=True):
    ref: str
    order: str
    amount_fen: int
    currency: str
    description: str
    return_url: str
    notify_url: str
    payer: str
    hold_until: int | None  # ms
    status: Status
    created_at: float
    paid_at: float | None
    paid_fen: int


class News(Struct, frozen=True):
    """A webhook the shop is owed: its id stays the same over all tries."""

    id: str
    ref: str
    type: NewsType
    data: dict[str, Any]
    made_at: float
    next_at: float | None
    attempts: int
    delivered_at: float | None


class Faults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the provider misbehaves. All off: it behaves.

    Webhooks: `delay_s` late, `copies` of each, `reorder` (the second before the first), `hold` (none is sent
    until told), `vanish` (none is ever sent). Its own API: `api` answers 500, or not within the shop's
    patience. Money: `charge_off_fen` more is charged than was asked; the next `failing_returns` returns fail,
    `declined_returns` are declined, `slow_returns` are done only when told.
    """

    delay_s: Annotated[float, Meta(ge=0, le=3600)] = 0
    copies: Annotated[int, Meta(ge=1, le=20)] = 1
    reorder: bool = False
    hold: bool = False
    vanish: bool = False
    api: Literal["ok", "error", "silent"] = "ok"
    charge_off_fen: Annotated[int, Meta(ge=-100_000, le=100_000)] = 0
    failing_returns: Annotated[int, Meta(ge=0, le=1000)] = 0
    declined_returns: Annotated[int, Meta(ge=0, le=1000)] = 0
    slow_returns: bool = False


class SandboxStore:
    """`path` None keeps everything in this process's memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._db = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False, timeout=5
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        with _Immediate(self._db):
            form = self._db.execute("PRAGMA user_version").fetchone()[0]
            there = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'payments'").fetchone()
            if form < 2 and there is not None:
                self._run(_FROM_FIRST)
            self._run(_SCHEMA)

    def _run(self, statements: str) -> None:
        """Several statements in the transaction at hand; `executescript` would commit it."""
        for statement in statements.split(";"):
            if statement.strip():
                self._db.execute(statement)

    def close(self) -> None:
        self._db.close()

    # --- payments ---

    def create(
        self,
        *,
        order: str,
        amount_fen: int,
        currency: str,
        description: str,
        return_url: str,
        notify_url: str,
        payer: str,
        hold_until: int | None,
    ) -> SandboxPayment:
        """A payment for this order and amount. The same again is the same; another amount supersedes it."""
        with _Immediate(self._db):
            for found in self._of_order(order):
                if found.amount_fen == amount_fen and found.status in ("open", "paid"):
                    return found
            self._db.execute(
                "UPDATE payments SET status = 'superseded'"
                " WHERE order_id = ? AND status IN ('open', 'failed')",
                (order,),
            )
            return self._insert(
                SandboxPayment(
                    ref=_new_ref(),
                    order=order,
                    amount_fen=amount_fen,
                    currency=currency,
                    description=description,
                    return_url=return_url,
                    notify_url=notify_url,
                    payer=payer,
                    hold_until=hold_until,
                    status="open",
                    created_at=time.time(),
                    paid_at=None,
                    paid_fen=0,
                )
            )

    def pay_again(self, ref: str, payer: str) -> SandboxPayment | None:
        """A second payment of the same order, as from another account; None when the first is not there."""
        first = self.get(ref)
        if first is None:
            return None
        now = time.time()
        return self._insert(
            msgspec.structs.replace(
                first,
                ref=_new_ref(),
                payer=payer,
                status="paid",
                created_at=now,
                paid_at=now,
                paid_fen=first.amount_fen,
            )
        )

    def get(self, ref: str) -> SandboxPayment | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM payments WHERE ref = ?", (ref,)).fetchone()  # noqa: S608
        return None if row is None else SandboxPayment(*row)

    def latest(self) -> list[SandboxPayment]:
        """The payments made last, newest first."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM payments ORDER BY created_at DESC LIMIT {LISTED_MAX}"  # noqa: S608
        ).fetchall()
        return [SandboxPayment(*row) for row in rows]

    def pay(self, ref: str, payer: str, off_fen: int = 0) -> bool:
        """Paid by this account; False when it is not open (again changes nothing). `off_fen` is charged
        beside the amount."""
        changed = self._db.execute(
            "UPDATE payments SET status = 'paid', payer = ?, paid_at = ?, paid_fen = amount_fen + ?"
            " WHERE ref = ? AND status IN ('open', 'failed') AND amount_fen + ? > 0",
            (payer, time.time(), off_fen, ref, off_fen),
        )
        return changed.rowcount == 1

    def fail(self, ref: str) -> None:
        """The buyer's bank said no; it may be tried again."""
        self._db.execute("UPDATE payments SET status = 'failed' WHERE ref = ? AND status = 'open'", (ref,))

    # --- money back ---

    def give_back(
        self, ref: str, amount_fen: int, key: str, state: ReturnState = "done"
    ) -> ReturnState | None:
        """Send part or all of a paid payment back, once a key; None when it is more than was paid."""
        with _Immediate(self._db):
            seen = self._db.execute(
                "SELECT ref, amount_fen, state FROM returns WHERE key = ?", (key,)
            ).fetchone()
            if seen is not None and seen[2] != "declined":
                return seen[2] if seen[:2] == (ref, amount_fen) else None
            found = self.get(ref)
            if found is None or found.status != "paid" or amount_fen > found.paid_fen - self.returned(ref):
                return None
            self._db.execute(
                "INSERT OR REPLACE INTO returns (key, ref, amount_fen, at, state) VALUES (?, ?, ?, ?, ?)",
                (key, ref, amount_fen, time.time(), state),
            )
        return state

    def finish_return(self, key: str, state: ReturnState) -> tuple[str, int] | None:
        """End a return that was under way; (ref, amount), None when none is."""
        row = self._db.execute(
            "UPDATE returns SET state = ? WHERE key = ? AND state = 'under_way' RETURNING ref, amount_fen",
            (state, key),
        ).fetchone()
        return None if row is None else (str(row[0]), int(row[1]))

    def returned(self, ref: str) -> int:
        """What went back or is on its way back."""
        row = self._db.execute(
            "SELECT coalesce(sum(amount_fen), 0) FROM returns WHERE ref = ? AND state <> 'declined'", (ref,)
        ).fetchone()
        return int(row[0])

    def returns(self) -> list[dict[str, Any]]:
        """The returns made last, newest first."""
        rows = self._db.execute(
            f"SELECT key, ref, amount_fen, state FROM returns ORDER BY at DESC LIMIT {LISTED_MAX}"  # noqa: S608
        ).fetchall()
        return [dict(zip(("key", "ref", "amount_fen", "state"), row, strict=True)) for row in rows]

    # --- webhooks ---

    def owe(self, name: str, ref: str, kind: NewsType, data: dict[str, Any], next_at: float | None) -> bool:
        """A webhook to be sent at `next_at`; None waits until told. False when it is owed already."""
        made = self._db.execute(
            "INSERT OR IGNORE INTO news (id, ref, type, data, made_at, next_at) VALUES (?, ?, ?, ?, ?, ?)",
            (name, ref, kind, msgspec.json.encode(data).decode(), time.time(), next_at),
        )
        return made.rowcount == 1

    def news(self, name: str) -> News | None:
        found = self._news("WHERE id = ?", (name,))
        return found[0] if found else None

    def undelivered(self) -> list[News]:
        """To be sent: the shop has not yet answered for it."""
        return self._news("WHERE next_at IS NOT NULL ORDER BY next_at")

    def all_news(self) -> list[News]:
        """The webhooks made last, newest first."""
        return self._news(f"ORDER BY made_at DESC LIMIT {LISTED_MAX}")

    def held(self) -> list[str]:
        """Kept back and never sent, the oldest first."""
        return [news.id for news in self._news("WHERE next_at IS NULL AND attempts = 0 ORDER BY made_at")]

    def send_at(self, name: str, next_at: float) -> None:
        self._db.execute("UPDATE news SET next_at = ? WHERE id = ?", (next_at, name))

    def attempted(self, name: str, *, delivered: bool, next_at: float | None) -> None:
        """One webhook was sent: answered, to be tried again at `next_at`, or given up (None)."""
        self._db.execute(
            "UPDATE news SET attempts = attempts + 1, delivered_at = coalesce(delivered_at, ?),"
            " next_at = CASE WHEN delivered_at IS NOT NULL OR ? THEN NULL ELSE ? END WHERE id = ?",
            (time.time() if delivered else None, delivered, next_at, name),
        )

    # --- faults ---

    def faults(self) -> Faults:
        row = self._db.execute("SELECT said FROM faults").fetchone()
        return Faults() if row is None else msgspec.json.decode(row[0], type=Faults)

    def set_faults(self, faults: Faults) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO faults (one, said) VALUES (1, ?)", (msgspec.json.encode(faults).decode(),)
        )

    def use_up(self, name: Literal["failing_returns", "declined_returns"]) -> bool:
        """Take one of the faults that are counted; False when none is left."""
        with _Immediate(self._db):
            faults = self.faults()
            left: int = getattr(faults, name)
            if left:
                self.set_faults(msgspec.structs.replace(faults, **{name: left - 1}))
        return left > 0

    # --- parts ---

    def _insert(self, payment: SandboxPayment) -> SandboxPayment:
        values = msgspec.structs.astuple(payment)
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT INTO payments ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608
        return payment

    def _of_order(self, order: str) -> list[SandboxPayment]:
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM payments WHERE order_id = ? ORDER BY created_at DESC",  # noqa: S608
            (order,),
        ).fetchall()
        return [SandboxPayment(*row) for row in rows]

    def _news(self, rest: str, values: tuple[object, ...] = ()) -> list[News]:
        rows = self._db.execute(
            f"SELECT id, ref, type, data, made_at, next_at, attempts, delivered_at FROM news {rest}",  # noqa: S608
            values,
        ).fetchall()
        return [News(row[0], row[1], row[2], msgspec.json.decode(row[3]), *row[4:]) for row in rows]


def _new_ref() -> str:
    return "sb_" + secrets.token_hex(12)


class _Immediate:
    """A write transaction from its first statement on: two processes take turns."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
