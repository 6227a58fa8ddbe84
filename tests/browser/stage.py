"""A shop served by its own processes, and people who look at it in a real browser."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx2
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, ViewportSize, expect

from commerce.sandbox import control_key
from live import process
from live.brand import Demo
from live.demo import load_demo
from live.engines import Addresses
from live.http import CSRF_COOKIE, STAFF_COOKIE, VIEWER_COOKIE
from live.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
PHONE = "phone"
DESK = "desk"
VIEWPORTS = {PHONE: ViewportSize(width=390, height=844), DESK: ViewportSize(width=1280, height=800)}
NARROW = ViewportSize(width=320, height=640)
ANSWER_MS = 8_000

# Of the tests and of docs/screenshots.py: a browser that asks nobody anything.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONTROLS = {
    "button",
    "checkbox",
    "combobox",
    "dialog",
    "Iframe",
    "link",
    "radio",
    "spinbutton",
    "switch",
    "tab",
    "textbox",
    "Video",
}
# Keeps the page's socket at hand once it is welcomed, so that a test can say what a server says only in trouble.
LISTENING = """
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", () => (window.hearing = this));
  }
};
"""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "The pages are looked at in Chromium with a Chinese font: apt-get install chromium fonts-wqy-zenhei"


def find_chromium() -> str | None:
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


class Shop:
    """The served shop, by its API: what a test prepares before anybody looks."""

    def __init__(self, url: str, demo: Demo, control_key: str = "") -> None:
        self.url = url
        self.http = httpx2.Client(base_url=url, timeout=15, trust_env=False)
        self.key = {"authorization": f"Bearer {demo.crowd_key}"}
        signed_in = (
            self.http.post("/v1/staff/sign-in", json={"token": demo.panel_link}).raise_for_status().json()
        )
        self.http.cookies.clear()
        self.owner: str = signed_in["staff"]["id"]
        self.staff_token: str = signed_in["token"]
        cues = self.staff("GET", f"/v1/shows/{demo.show}/cues")["items"]
        self.cues = [{name: cue[name] for name in ("kind", "title", "shortcut", "payload")} for cue in cues]
        self.rooms = {room["slug"]: room["id"] for room in self.staff("GET", "/v1/rooms")["items"]}
        self.control_key = control_key
        self.plan: dict[str, Any] = self.http.get("/v1/plans").json()["items"][0]
        self._numbers = itertools.count(1)

    def _ask(self, headers: dict[str, str], method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body, headers=headers)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def staff(self, method: str, path: str, body: Any = None) -> Any:
        return self._ask({"authorization": f"Bearer {self.staff_token}"}, method, path, body)

    def viewer(self, token: str, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {token}", "idempotency-key": secrets.token_hex(8)}
        return self._ask(headers, method, path, body)

    def sign_in_link(self) -> str:
        return str(self.staff("POST", f"/v1/staff/{self.owner}/links", {})["url"])

    def make_show(self, status: str = "live", *, members_only: bool = False, moving: bool = False) -> str:
        """A room of its own (one show at a time is on air in a room), and the sample brand's evening in it.

        Most are without a moving picture: drawing it takes this machine's time.
        """
        room = self.staff(
            "POST",
            "/v1/rooms",
            {
                "title": "会员专场" if members_only else "会员健康夜",
                "host_name": "小禾",
                "audience": {"kind": "plan_members" if members_only else "everyone"},
            },
        )
        show = self.staff(
            "POST",
            "/v1/shows",
            {
                "room": room["id"],
                "title": "秋收专场：新米上市夜",
                "summary": "今年的新米、十谷粥和小榨菜籽油，边煮边聊。",
                "starts_at": (datetime.now(UTC) + timedelta(minutes=10)).isoformat(),
                "video_url": "/static/demo/loop.mp4" if moving else "",
                "video_kind": "mp4",
                "poster_url": "/static/demo/poster.jpg",
            },
        )["id"]
        self.staff("PUT", f"/v1/shows/{show}/cues", {"cues": self.cues})
        for act in {"waiting": ["open"], "live": ["open", "start"]}.get(status, ["open", "start", "end"]):
            self.staff("POST", f"/v1/shows/{show}/{act}", {})
        return str(show)

    def run_cues(self, show: str, shortcuts: str) -> None:
        """Run prepared cues the way a key at the desk does."""
        for cue in self.staff("GET", f"/v1/shows/{show}/cues")["items"]:
            if cue["shortcut"] in shortcuts:
                self.staff("POST", f"/v1/shows/{show}/cues/{cue['id']}/run", {})

    def member(self, nickname: str, *, trial: bool = False) -> str:
        """A registered member's token."""
        number = next(self._numbers)
        row = {"external_id": f"b{number}", "phone": f"1390000{number:04}", "nickname": nickname}
        fed = self._ask(self.key, "PUT", "/v1/members", {"members": [row]})["members"][0]
        token = str(self._ask(self.key, "POST", "/v1/tokens", {"member": fed["member"]})["token"])
        if trial:
            self.viewer(token, "POST", "/v1/me/trial", {"plan": self.plan["id"]})
        return token

    def comment(self, show: str, text: str) -> None:
        self.staff("POST", f"/v1/shows/{show}/comments", {"text": text})

    def join(self, token: str, show: str, plan: str | None = None) -> None:
        """Pay for the year's plan, or another, on the sandbox's page; wait until its webhook has been taken in."""
        body = {"plan": plan or self.plan["id"], "show": show, "key": secrets.token_hex(8)}
        self._pay(self.viewer(token, "POST", "/v1/me/joins", body)["payment_url"])
        until = time.monotonic() + ANSWER_MS / 1000
        while self.viewer(token, "GET", "/v1/me")["kind"] != "plan":
            assert time.monotonic() < until, "paid, and the plan did not begin"
            time.sleep(0.05)

    def address(self, token: str) -> str:
        given = {
            "name": "王小明",
            "phone": "13800000000",
            "region": "浙江省 杭州市 西湖区",
            "detail": "示例路 1 号 2 幢 301",
        }
        return str(self.viewer(token, "POST", "/v1/me/addresses", given)["id"])

    def buy(self, token: str, show: str, *, paid: bool = True) -> None:
        """One piece of what is on offer."""
        offer = self.staff("GET", f"/v1/shows/{show}/offers")["items"][0]["id"]
        quote = self.viewer(
            token, "POST", f"/v1/shows/{show}/quotes", {"lines": [{"offer": offer, "quantity": 1}]}
        )
        body = {"quote": quote["token"], "address": self.address(token), "key": secrets.token_hex(8)}
        order = self.viewer(token, "POST", f"/v1/shows/{show}/orders", body)["order"]
        if paid:
            self._pay(self.viewer(token, "POST", f"/v1/me/orders/{order}/payment", {})["payment_url"])

    def faults(self, **faults: Any) -> None:
        """What goes wrong at the payment provider from now on; nothing named: all is well again."""
        answer = self.http.put("/sandbox/control/faults", json=faults, auth=("", self.control_key))
        assert answer.status_code < 300, answer.text

    def _pay(self, url: str) -> None:
        answer = self.http.post(url, data={"result": "pay"})
        assert answer.status_code < 400, answer.text


class People:
    """Browser windows of one test. Whatever a page complains of is kept and judged at its end."""

    def __init__(self, browser: Browser, shop: Shop, size: str) -> None:
        self._browser = browser
        self.shop = shop
        self.size = size
        self.complaints: list[str] = []
        self.expected: set[int] = set()  # statuses that this test means to get
        self._contexts: list[BrowserContext] = []

    def context(
        self,
        *,
        token: str | None = None,
        staff: bool = False,
        lang: str = "zh-CN",
        viewport: ViewportSize | None = None,
        listening: bool = False,
        scheme: Literal["light", "dark"] = "light",
    ) -> BrowserContext:
        """A browser of one person's own. `listening`: the test may `tell` its pages something."""
        made = self._browser.new_context(
            locale=lang,
            viewport=viewport or VIEWPORTS[self.size],
            is_mobile=self.size == PHONE,
            has_touch=self.size == PHONE,
            base_url=self.shop.url,
            reduced_motion="reduce",
            timezone_id="Asia/Shanghai",
            color_scheme=scheme,
        )
        made.set_default_timeout(ANSWER_MS)
        if listening:
            made.add_init_script(LISTENING)
        if token is not None or staff:
            session = {VIEWER_COOKIE: token} if token is not None else {STAFF_COOKIE: self.shop.staff_token}
            made.add_cookies(
                [
                    {"name": name, "value": str(value), "url": self.shop.url}
                    for name, value in {**session, CSRF_COOKIE: secrets.token_urlsafe(24)}.items()
                ]
            )
        made.on("console", self._on_console)
        made.on("weberror", lambda error: self.complaints.append(f"uncaught: {error.error.stack}"))
        made.on("response", self._on_response)
        self._contexts.append(made)
        return made

    def page(self, address: str, **about: Any) -> Page:
        opened = self.context(**about).new_page()
        opened.goto(address)
        return opened

    def viewer(self, show: str, **about: Any) -> Page:
        return self.page(f"/s/{show}", **about)

    def panel(self, show: str, **about: Any) -> Page:
        return self.page(f"/panel/{show}", staff=True, **about)

    def _on_console(self, message: ConsoleMessage) -> None:
        # A refusal is said twice by the browser: here without its status, and by the response.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"{message.type}: {message.text}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.complaints.append(f"{response.request.method} {response.url}: {response.status}")

    def leave(self) -> None:
        for context in self._contexts:
            context.close()
        if self.complaints:
            raise AssertionError("the browser complained:\n" + "\n".join(self.complaints))


Peopled = Callable[[str], People]  # the people of a test that says its size itself


def connected(page: Page) -> Page:
    """Wait until the page has its socket: what is said before is not sent, and the page says so."""
    expect(page.locator("html[data-link=open]")).to_be_attached(timeout=3 * ANSWER_MS)
    return page


def tell(page: Page, **states: dict[str, Any] | None) -> None:
    """Let the page hear these states by its socket, newer than any it has; None: gone."""
    version = 10 * round(datetime.now(UTC).timestamp() * 1000)
    page.evaluate(
        """async messages => {
          for (let i = 0; i < 400 && !window.hearing; i += 1) await new Promise(go => setTimeout(go, 20));
          hearing.onmessage({ data: JSON.stringify(messages) });
        }""",
        [{"type": "state", "key": key, "version": version, "data": data} for key, data in states.items()],
    )


def moving(page: Page) -> None:
    """Wait until the picture plays."""
    page.locator("video").evaluate(
        """video => new Promise(done => {
          const look = () => video.currentTime > 0.3 && done();
          video.addEventListener("timeupdate", look);
          look();
        })"""
    )


def sign_in(page: Page, phone: str) -> None:
    """By the open sheet: phone, then the code that the sandbox shows."""
    number = page.locator("input[autocomplete=tel]")
    number.fill(phone)
    number.press("Enter")
    code = page.locator("[data-sandbox-code]").get_attribute("data-sandbox-code")
    assert code is not None
    page.locator("input[autocomplete=one-time-code]").fill(code)


def pay_in_sandbox(page: Page) -> None:
    page.wait_for_url("**/sandbox/pay/**")
    page.get_by_role("button", name="确认支付").click()


def nameless(page: Page) -> list[str]:
    """Controls that a screen reader would call by no name, as the browser's accessibility tree has them."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [
        node["role"]["value"]
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in CONTROLS
        and not node.get("name", {}).get("value", "").strip()
    ]


def sideways(page: Page) -> list[str]:
    """What reaches out of the window at its sides, but for what may be scrolled there on purpose."""
    found: list[str] = page.evaluate(
        """() => {
          const root = document.documentElement;
          const wider = root.scrollWidth - root.clientWidth;
          const out = wider > 0 ? [`the page by ${wider} px`] : [];
          const may = (element) => {
            for (let up = element; up && up !== document.body; up = up.parentElement) {
              const { overflowX, clip } = getComputedStyle(up);
              if (overflowX === 'auto' || overflowX === 'scroll' || clip !== 'auto') return true;
            }
            return false;
          };
          for (const one of document.querySelectorAll('a, button, input, textarea, h1, h2, h3, p, li, label')) {
            const box = one.getBoundingClientRect();
            if (!one.checkVisibility() || !box.width || one.closest('[aria-hidden=true]')) continue;
            const inside = box.left >= -1 && box.right <= root.clientWidth + 1;
            if (!inside && !may(one)) out.push(one.outerHTML.slice(0, 120));
          }
          return out;
        }"""
    )
    return found


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _await_serving(server: subprocess.Popen[bytes]) -> None:
    """The line that `serve` prints once it serves; what comes after it is dropped."""
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line.decode()
        if line.startswith(b"serving "):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return
    raise AssertionError(f"the server did not start: {said}")


@contextmanager
def serve_shop(engines: Addresses, database_url: str, folder: Path) -> Iterator[Shop]:
    """`companion serve` and `companion work` on engines that run already, with the sample brand."""
    url = f"http://127.0.0.1:{(port := _free_port())}"
    environment = {
        "COMPANION_REDIS_URL": engines.redis_url,
        "COMPANION_DATABASE_URL": database_url,
        "COMPANION_SECRET": secrets.token_hex(20),
        "COMPANION_DATA_DIR": str(folder),
        "COMPANION_PORT": str(port),
        "COMPANION_PUBLIC_URL": url,
        "COMPANION_SHOP_NAME": "穗里人家",
        "COMPANION_SANDBOX": "yes",
        "COMPANION_SMS": "sandbox",
        "COMPANION_DRAIN_S": "0.2",
        "COMPANION_LOG_LEVEL": "warning",
        "COMPANION_MEMBER_DAY": "0",
    }
    with ThreadPoolExecutor(1) as aside:  # where a browser runs, this thread has an event loop already
        demo = aside.submit(asyncio.run, load_demo(read_settings(environment))).result()
    children: list[subprocess.Popen[bytes]] = []

    def start(command: str, log: int) -> subprocess.Popen[bytes]:
        child = process.start(
            [sys.executable, "-P", "-m", "live", command],
            death_signal=signal.SIGTERM,
            environment={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            log=log,
        )
        children.append(child)
        return child

    try:
        start("work", subprocess.DEVNULL)
        _await_serving(start("serve", subprocess.PIPE))
        shop = Shop(url, demo, control_key(environment["COMPANION_SECRET"]))
        try:
            yield shop
        finally:
            shop.http.close()
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            process.stop(child, [(signal.SIGTERM, 10.0)])
            if child.stdout is not None:
                child.stdout.close()
