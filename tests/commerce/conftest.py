"""What the tests of commerce share."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from live.database import Database
from live.lua import Scripts
from tests.commerce.benefit_stage import Stage, TransactionFactory
from tests.commerce.shop_stage import Shop


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, tx: TransactionFactory) -> Stage:
    return Stage(redis, scripts, tx)


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> Shop:
    return Shop(redis, scripts, database)
