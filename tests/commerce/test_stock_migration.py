"""A shop that sold before the stock had its books: they begin with what is there, and agree."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from live.database import find_migrations, migrate
from live.engines import Addresses
from membership.actor import new_id

BEFORE = "0012"  # the first number after that version


@pytest.fixture
def old_database_url(engines: Addresses) -> Iterator[str]:
    """A database as the version before left it."""
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE sold_before")
        url = engines.database_url.replace("/companion?", "/sold_before?")
        older = [each for each in find_migrations() if each.number < BEFORE]
        migrate(url, older)
        yield url
        conn.execute("DROP DATABASE sold_before WITH (FORCE)")


def test_the_books_begin_with_what_orders_have_taken(old_database_url: str) -> None:
    member, product, offer, unsold = new_id(), new_id(), new_id(), new_id()
    with psycopg.connect(old_database_url) as conn:
        conn.execute("INSERT INTO members (id, nickname) VALUES (%s, '王小明')", [member])
        for each, stock in ((product, 4), (unsold, 0)):
            conn.execute(
                "INSERT INTO products (id, sku, name, list_fen, stock) VALUES (%s, %s, '大米', 100, %s)",
                [each, each, stock],
            )
        conn.execute(
            "INSERT INTO offers (id, show_id, product_id, kind, audience_bit) VALUES (%s, 's', %s, 'pin', 0)",
            [offer, product],
        )
        for state, quantity in (("placed", 1), ("paid", 2), ("refunded", 3), ("expired", 5)):
            order = new_id()
            conn.execute(
                """
                INSERT INTO orders (id, kind, member_id, show_id, state, key, body_digest, currency, goods_fen,
                    total_fen, address, hold_until, paid_at, closed_at)
                VALUES (%(id)s, 'goods', %(member)s, 's', %(state)s, %(state)s, '', 'CNY', 100, 100, '{}', now(),
                    CASE WHEN %(state)s IN ('paid', 'refunded') THEN now() END,
                    CASE WHEN %(state)s IN ('refunded', 'expired') THEN now() END)
                """,
                {"id": order, "member": member, "state": state},
            )
            conn.execute(
                "INSERT INTO order_lines (order_id, position, kind, offer_id, product_id, name, quantity,"
                " unit_fen, line_fen, winner, piece) VALUES (%s, 1, 'goods', %s, %s, '大米', %s, 100, %s,"
                " 'list', true)",
                [order, offer, product, quantity, 100 * quantity],
            )
    migrate(old_database_url)
    with psycopg.connect(old_database_url) as conn:
        pieces = conn.execute(
            "SELECT o.state, w.quantity, w.state, w.source FROM order_pieces w JOIN orders o ON o.id = w.order_id"
            " ORDER BY w.quantity"
        ).fetchall()
        entries = conn.execute("SELECT product_id::text, delta, kind FROM stock_entries").fetchall()
    assert pieces == [
        ("placed", 1, "taken", "stock"),
        ("paid", 2, "taken", "stock"),
        ("refunded", 3, "taken", "stock"),
        ("expired", 5, "back", "stock"),
    ]
    assert entries == [(product, 10, "opening")]  # 4 at hand, and 6 that orders have
