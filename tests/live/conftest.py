"""A served shop for tests of the socket and the road: one a module, each test with a show of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from live.engines import Addresses
from tests.conftest import database_url
from tests.live.serving import Served, serve


@pytest.fixture(scope="module")
async def served(
    engines: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    name = "served_" + "".join(sign for sign in folder.name if sign.isalnum())
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(name), sql.Identifier(template))
        )
        async with serve(engines, database_url(engines, name), folder) as made:
            yield made
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
