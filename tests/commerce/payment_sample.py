"""What a payment provider is asked for: a goods order of 109 yuan, unless a test says otherwise."""

from __future__ import annotations

import time
from typing import Any

from commerce.provider import PaymentRequest
from membership.actor import MemberId, OrderId, ShowId, new_id


def payment_request(**changes: Any) -> PaymentRequest:
    given: dict[str, Any] = {
        "order": OrderId(new_id()),
        "kind": "goods",
        "show": ShowId("abcdefgh23"),
        "member": MemberId(new_id()),
        "amount_fen": 10_900,
        "currency": "CNY",
        "description": "有机大米 × 1",
        "hold_until": int(time.time() * 1000) + 600_000,
    }
    return PaymentRequest(**{**given, **changes})
