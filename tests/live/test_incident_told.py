"""The switch for money as viewers meet it: on open sockets, for who joins later, and gone again when it ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live.serving import Served

pytestmark = pytest.mark.anyio


def states(welcome: dict[str, Any]) -> dict[str, Any]:
    return {state["key"]: state["data"] for state in welcome["states"]}


@pytest.mark.rule("semantics 2.9a")
async def test_an_incident_is_told_on_open_sockets_and_to_who_joins_later_and_so_is_its_end(
    served: Served,
) -> None:
    show = await served.make_show()
    here = await served.enter(show, await served.member("王小明"))
    assert "incident" not in states(here.welcome)
    async with served.http(await served.staff()) as http:
        gift = {"title": "厨房三件套", "quota": 5, "value_fen": 5_900}
        benefit = (await http.post(f"/v1/shows/{show}/benefits", json=gift)).json()["id"]
        begun = await http.post("/v1/incident", json={"reason": "支付故障", "extend_s": 60})
        assert begun.status_code == 200, begun.text
        assert (await here.event("incident.began"))["reason"] == "支付故障"
        shown = await here.state("incident")
        assert shown == {"reason": "支付故障", "since": begun.json()["began_at"]}
        refused = await here.ask("benefit.claim", key="k1", benefit=benefit)
        assert (refused["type"], refused["code"]) == ("refused", "paused")
        assert "支付故障" in refused["message"]
        late = await served.enter(show)
        assert states(late.welcome)["incident"] == shown
        assert (await http.delete("/v1/incident")).status_code == 200
        for seat in (here, late):
            await seat.event("incident.ended")
            await seat.until(lambda m: m.get("key") == "incident" and m.get("data") is None)
        assert "incident" not in states((await served.enter(show)).welcome)
        won = await here.ask("benefit.claim", key="k1", benefit=benefit)
        assert (won["type"], won["rank"]) == ("ok", 1)
