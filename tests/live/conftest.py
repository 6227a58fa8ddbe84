"""A served shop for tests of the socket and the road: one a module, each test with a show of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from live.engines import Addresses
from tests.conftest import copied
from tests.live.serving import Served, serve


@pytest.fixture(scope="module")
async def served(
    engines: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    name = "served_" + "".join(sign for sign in folder.name if sign.isalnum())
    with copied(engines, template, name) as url:
        async with serve(engines, url, folder) as made:
            yield made
