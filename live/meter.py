"""The meter of a show, for staff: what it costs, how payments fare, what waits for a second person."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from commerce.approvals import Approvals
from commerce.costs import Costs, ShowCosts
from commerce.incidents import Incident, Incidents
from commerce.payment_health import PaymentHealth, read_health
from membership.actor import ShowId
from membership.audience import STAFF_BIT
from membership.script import ScriptLoader, json_arg
from membership.transaction import Connection


class Reading(Struct, frozen=True, kw_only=True):
    """The meter at one moment. `approvals` are asks of this show that wait for a decision."""

    costs: ShowCosts
    payments: PaymentHealth
    approvals: int
    incident: Incident | None


class Meter:
    """Reads the meter, and keeps it on the screens of staff."""

    def __init__(
        self, scripts: ScriptLoader, costs: Costs, approvals: Approvals, incidents: Incidents, provider: str
    ) -> None:
        self._costs = costs
        self._approvals = approvals
        self._incidents = incidents
        self._provider = provider
        self._put = scripts.load("commerce", "put_meter")

    async def read(self, conn: Connection, show: ShowId) -> Reading:
        """The meter now."""
        return Reading(
            costs=await self._costs.of_show(conn, show),
            payments=await read_health(conn, self._provider),
            approvals=await self._approvals.waiting(conn, show),
            incident=await self._incidents.now(conn),
        )

    async def show(self, conn: Connection, show: ShowId) -> bool:
        """Put it on the screens of staff, if it changed. Raises Unavailable."""
        reading = await self.read(conn, show)
        costs: dict[str, Any] = msgspec.to_builtins(reading.costs)
        # Without the seconds, which change by themselves: a meter at rest is not sent again.
        shown = {
            **costs,
            "payments": {
                "state": reading.payments.state,
                "waiting": reading.payments.waiting,
                "since": reading.payments.since,
            },
            "approvals": reading.approvals,
        }
        return bool(int(await self._put(show, [], [json_arg([{"a": STAFF_BIT, "d": shown}])])))
