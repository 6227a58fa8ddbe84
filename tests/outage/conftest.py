"""Engines that may be broken, one set for the package, and a server in this process for each module."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from live.database import migrate
from live.engines import Binaries
from tests.live.serving import Served, serve
from tests.outage.stand import Stand

MEMORY_MIN = 2 << 30  # bytes


@pytest.fixture(scope="package")
def stand(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """In memory where the machine has some to spare: a slow disk would be one more outage, and none that is meant."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > MEMORY_MIN
    folder = Path(tempfile.mkdtemp(dir=shared)) if roomy else tmp_path_factory.mktemp("stand")
    made = Stand(folder, binaries)
    try:
        migrate(made.addresses.database_url)
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
async def serving(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serve(stand.addresses, stand.addresses.database_url, folder, comments_shown_per_s=0) as made:
        yield made


@pytest.fixture
async def served(serving: Served) -> AsyncIterator[Served]:
    """Who sat in a test leaves with it: read by nobody, a seat would fill up and close late.

    A circuit that the test before left open would refuse this one's first calls.
    """
    serving.parts.scripts.forget_failures()
    yield serving
    await serving.leave_all()
