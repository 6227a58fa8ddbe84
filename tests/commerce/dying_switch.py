"""A process that throws or ends the switch for money and is killed in the middle of telling the shows.

Run as `python -m tests.commerce.dying_switch <redis url> <database url> <begin|end> <shows to tell before>`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from commerce.incidents import Incidents
from live.database import Database, make_pool, open_redis
from live.lua import Scripts
from membership.notices import Notices
from tests.commerce.guard_stage import HOST


async def die(redis_url: str, database_url: str, act: str, told: int) -> None:
    redis = open_redis(redis_url)
    async with make_pool(database_url, size_max=2) as pool:
        incidents = Incidents(Scripts(redis), Notices(redis))
        put = incidents._put

        async def put_some(*given: Any) -> Any:
            nonlocal told
            if told == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            told -= 1
            return await put(*given)

        incidents._put = put_some
        async with Database(pool).transaction() as t:
            if act == "begin":
                await incidents.begin(t, HOST, "支付故障", 600)
            else:
                await incidents.end(t, HOST)


if __name__ == "__main__":
    asyncio.run(die(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
