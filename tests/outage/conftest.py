"""Engines that may be broken, one set for the package, and a server in this process for each module."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from live.database import migrate
from live.engines import Binaries
from tests.live.serving import Served, serve
from tests.outage.stand import Stand


@pytest.fixture(scope="package")
def stand(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    made = Stand(tmp_path_factory.mktemp("stand"), binaries)
    try:
        migrate(made.addresses.database_url)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
async def serving(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serve(stand.addresses, stand.addresses.database_url, folder, comments_shown_per_s=0) as made:
        yield made


@pytest.fixture
async def served(serving: Served) -> AsyncIterator[Served]:
    """Who sat in a test leaves with it: read by nobody, a seat would fill up and close late."""
    yield serving
    await serving.leave_all()
