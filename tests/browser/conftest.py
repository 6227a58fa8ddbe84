"""One Chromium and one served shop for all browser tests."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from psycopg import sql
from redis import Redis

from live.engines import Addresses
from tests.browser.stage import DESK, FLAGS, INSTALL, PHONE, People, Peopled, Shop, find_chromium, serve_shop
from tests.conftest import database_url

WAIT_MS = 15_000  # for a visible condition: a busy machine may stall for seconds


@pytest.fixture(scope="package")
def shop(engines: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The sample brand, served by processes of its own."""
    with Redis.from_url(engines.redis_url) as redis:
        redis.flushall()
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE browsed TEMPLATE {}").format(sql.Identifier(template)))
        with serve_shop(
            engines, database_url(engines, "browsed"), tmp_path_factory.mktemp("browsed")
        ) as made:
            yield made
        conn.execute("DROP DATABASE browsed WITH (FORCE)")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    executable = find_chromium()
    if executable is None:
        pytest.fail(INSTALL)
    with sync_playwright() as playwright:
        expect.set_options(timeout=WAIT_MS)
        started = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(params=[PHONE, DESK])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def people(shop: Shop, browser: Browser, size: str) -> Iterator[People]:
    made = People(browser, shop, size)
    yield made
    made.leave()


@pytest.fixture
def one_size(shop: Shop, browser: Browser) -> Iterator[Peopled]:
    """For what does not depend on the window: the size is said by the test."""
    made: list[People] = []

    def people_of(size: str) -> People:
        made.append(People(browser, shop, size))
        return made[-1]

    yield people_of
    for one in made:
        one.leave()
