"""Whether payments come through: told by the provider in time, or found only by asking, or not at all.

The provider's news (the webhook) is down when the latest payment was found by asking, long after it was made,
and none has been told of since. The provider itself is down when orders wait and it answers no question.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from msgspec import Struct

from membership.moment import in_ms
from membership.refusal import Refusal
from membership.transaction import Connection

WAITS_S = 60  # an order whose payment was begun so long ago, and of which nothing is known, waits
LATE_S = 15  # found by asking so long after it was paid: the news did not come, it was not merely overtaken
LOOKED_BACK_S = 600

HealthState = Literal["ok", "webhook_down", "provider_down"]


class PaymentsDown(Refusal):
    """Payments do not come through: nothing that people rush for is started now."""

    code = "payments_down"


class PaymentHealth(Struct, frozen=True, kw_only=True):
    """`waiting` orders whose payment was begun over a minute ago; `since` (ms) it is not as it should be."""

    state: HealthState
    waiting: int
    oldest_s: int
    since: int | None


async def read_health(conn: Connection, provider: str) -> PaymentHealth:
    """How payments of this provider fare now."""
    row = await (
        await conn.execute(
            """
            WITH waiting AS (
                SELECT s.started_at, s.asked FROM payment_starts s JOIN orders o ON o.id = s.order_id
                WHERE s.provider = %(provider)s AND s.ref IS NOT NULL AND o.state = 'placed'
                  AND s.started_at <= clock_timestamp() - %(waits)s::interval
                  AND NOT EXISTS (SELECT 1 FROM payments p WHERE p.provider = s.provider AND p.ref = s.ref)
            ), late AS (
                SELECT min(f.found_at) AS first, max(f.found_at) AS last
                FROM payments_found f JOIN payments p ON p.id = f.payment_id
                WHERE p.provider = %(provider)s AND f.found_at > clock_timestamp() - %(back)s::interval
                  AND f.found_at - p.provider_paid_at >= %(late)s::interval
                  AND NOT EXISTS (
                      SELECT 1 FROM payments heard
                      WHERE heard.provider = p.provider AND heard.recorded_at > f.found_at
                        AND NOT EXISTS (SELECT 1 FROM payments_found g WHERE g.payment_id = heard.id))
            )
            SELECT (SELECT count(*) FROM waiting) AS waiting,
                (SELECT min(started_at) FROM waiting) AS oldest,
                (SELECT min(started_at) FROM waiting WHERE asked = 0) AS unanswered,
                late.first AS found, clock_timestamp() AS now
            FROM late
            """,
            {
                "provider": provider,
                "waits": timedelta(seconds=WAITS_S),
                "back": timedelta(seconds=LOOKED_BACK_S),
                "late": timedelta(seconds=LATE_S),
            },
        )
    ).fetchone()
    assert row is not None
    state: HealthState = "ok"
    since = None
    if row["unanswered"] is not None:
        state, since = "provider_down", row["unanswered"]
    elif row["found"] is not None:
        state, since = "webhook_down", row["found"]
    oldest_s = 0 if row["oldest"] is None else int((row["now"] - row["oldest"]).total_seconds())
    return PaymentHealth(
        state=state,
        waiting=row["waiting"],
        oldest_s=oldest_s,
        since=None if since is None else in_ms(since),
    )
