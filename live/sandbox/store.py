"""What the sandbox remembers: one SQLite file, so that several server processes are one provider.

Calls are plain and short (well under a millisecond): a sandbox has one buyer at a time.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path
from typing import Literal

from msgspec import Struct

Status = Literal["open", "paid", "failed", "superseded"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS payments (
    ref TEXT PRIMARY KEY, order_id TEXT NOT NULL, amount_fen INTEGER NOT NULL, currency TEXT NOT NULL,
    description TEXT NOT NULL, return_url TEXT NOT NULL, notify_url TEXT NOT NULL, payer TEXT NOT NULL,
    hold_until INTEGER, status TEXT NOT NULL, created_at REAL NOT NULL, paid_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0, next_at REAL, delivered_at REAL
);
CREATE INDEX IF NOT EXISTS payments_of_order ON payments (order_id);
CREATE TABLE IF NOT EXISTS returns (
    key TEXT PRIMARY KEY, ref TEXT NOT NULL, amount_fen INTEGER NOT NULL, at REAL NOT NULL
);
"""
_COLUMNS = (
    "ref, order_id, amount_fen, currency, description, return_url, notify_url, payer, hold_until, status,"
    " created_at, paid_at, attempts, next_at, delivered_at"
)


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
    attempts: int
    next_at: float | None
    delivered_at: float | None


class SandboxStore:
    """`path` None keeps everything in this process's memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._db = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False, timeout=5
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

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
            ref = "sb_" + secrets.token_hex(12)
            self._db.execute(
                "INSERT INTO payments (ref, order_id, amount_fen, currency, description, return_url,"
                " notify_url, payer, hold_until, status, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?)",
                (
                    ref,
                    order,
                    amount_fen,
                    currency,
                    description,
                    return_url,
                    notify_url,
                    payer,
                    hold_until,
                    time.time(),
                ),
            )
        made = self.get(ref)
        assert made is not None
        return made

    def get(self, ref: str) -> SandboxPayment | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM payments WHERE ref = ?", (ref,)).fetchone()  # noqa: S608
        return None if row is None else SandboxPayment(*row)

    def pay(self, ref: str, payer: str) -> bool:
        """Paid by this account; False when it is not open (again changes nothing)."""
        now = time.time()
        changed = self._db.execute(
            "UPDATE payments SET status = 'paid', payer = ?, paid_at = ?, next_at = ?"
            " WHERE ref = ? AND status IN ('open', 'failed')",
            (payer, now, now, ref),
        )
        return changed.rowcount == 1

    def fail(self, ref: str) -> None:
        """The buyer's bank said no; it may be tried again."""
        self._db.execute("UPDATE payments SET status = 'failed' WHERE ref = ? AND status = 'open'", (ref,))

    def undelivered(self) -> list[SandboxPayment]:
        """Paid, and the shop has not yet answered for it."""
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM payments WHERE next_at IS NOT NULL ORDER BY next_at"  # noqa: S608
        ).fetchall()
        return [SandboxPayment(*row) for row in rows]

    def attempted(self, ref: str, *, delivered: bool, next_at: float | None) -> None:
        """One webhook was sent: answered, to be tried again at `next_at`, or given up (None)."""
        self._db.execute(
            "UPDATE payments SET attempts = attempts + 1, delivered_at = coalesce(delivered_at, ?),"
            " next_at = CASE WHEN delivered_at IS NOT NULL OR ? THEN NULL ELSE ? END WHERE ref = ?",
            (time.time() if delivered else None, delivered, next_at, ref),
        )

    def give_back(self, ref: str, amount_fen: int, key: str) -> bool:
        """Send part or all of a paid payment back, once a key; False when it is more than was paid."""
        with _Immediate(self._db):
            seen = self._db.execute("SELECT ref, amount_fen FROM returns WHERE key = ?", (key,)).fetchone()
            if seen is not None:
                return bool(seen == (ref, amount_fen))
            found = self.get(ref)
            if found is None or found.status != "paid" or amount_fen > found.amount_fen - self.returned(ref):
                return False
            self._db.execute(
                "INSERT INTO returns (key, ref, amount_fen, at) VALUES (?, ?, ?, ?)",
                (key, ref, amount_fen, time.time()),
            )
        return True

    def returned(self, ref: str) -> int:
        row = self._db.execute(
            "SELECT coalesce(sum(amount_fen), 0) FROM returns WHERE ref = ?", (ref,)
        ).fetchone()
        return int(row[0])

    def _of_order(self, order: str) -> list[SandboxPayment]:
        rows = self._db.execute(
            f"SELECT {_COLUMNS} FROM payments WHERE order_id = ? ORDER BY created_at DESC",  # noqa: S608
            (order,),
        ).fetchall()
        return [SandboxPayment(*row) for row in rows]


class _Immediate:
    """A write transaction from its first statement on: two processes take turns."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")
