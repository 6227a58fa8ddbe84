"""Takes the pictures in docs/screenshots: the host's panel and the viewer's page through one evening.

    make screenshots

It starts a demo of its own with a crowd, plays the host and one viewer, and stops it again. Needs the
system's Chromium and a Chinese font (deploy/install_browser).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from tests.browser.stage import FLAGS, INSTALL, find_chromium

OUT = Path(__file__).resolve().parent / "screenshots"
ROOT = OUT.parent.parent
VIEWERS = 60
BYTES_MAX = 350_000
COLOURS = 256
WAIT_MS = 15_000  # for what one act brings; a busy machine may stall for seconds
LIVELY_MS = 60_000  # the crowd has come, talked, voted and joined by then
LEARNT_MS = 60_000  # the end card and the tags are there by then
SIZES = {
    "phone": (ViewportSize(width=390, height=844), 2.0),
    "desk": (ViewportSize(width=1280, height=800), 1.0),
}

# Counts the colours in cells of 5 bits each, cuts the boxes with the widest spread, and answers palette and
# indices. In the page, because it has the pixels already.
REDUCE = """async ([data, colours]) => {
  const picture = await createImageBitmap(await (await fetch('data:image/png;base64,' + data)).blob());
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const brush = canvas.getContext('2d');
  brush.drawImage(picture, 0, 0);
  const { data: pixels, width, height } = brush.getImageData(0, 0, picture.width, picture.height);
  const cellOf = (i) => (pixels[i] >> 3) << 10 | (pixels[i + 1] >> 3) << 5 | pixels[i + 2] >> 3;
  const sums = new Map();
  for (let i = 0; i < pixels.length; i += 4) {
    const cell = cellOf(i);
    const sum = sums.get(cell) ?? [0, 0, 0, 0, cell];
    for (let c = 0; c < 3; c += 1) sum[c] += pixels[i + c];
    sum[3] += 1;
    sums.set(cell, sum);
  }
  const mean = (sum, c) => sum[c] / sum[3];
  const measure = (cells) => {
    let best = { axis: 0, spread: 0 };
    const weight = cells.reduce((all, sum) => all + sum[3], 0);
    for (let axis = 0; axis < 3; axis += 1) {
      const middle = cells.reduce((all, sum) => all + sum[axis], 0) / weight;
      const spread = cells.reduce((all, sum) => all + Math.sqrt(sum[3]) * (mean(sum, axis) - middle) ** 2, 0);
      if (spread > best.spread) best = { axis, spread };
    }
    return { cells, ...best };
  };
  let boxes = [measure([...sums.values()])];
  while (boxes.length < colours) {
    boxes.sort((a, b) => b.spread - a.spread);
    const widest = boxes[0];
    if (widest.cells.length < 2) break;
    const cells = widest.cells.sort((a, b) => mean(a, widest.axis) - mean(b, widest.axis));
    const middle = cells.reduce((all, sum) => all + mean(sum, widest.axis), 0) / cells.length;
    const at = Math.min(cells.length - 1, Math.max(1, cells.findIndex((sum) => mean(sum, widest.axis) > middle)));
    boxes = [...boxes.slice(1), measure(cells.slice(0, at)), measure(cells.slice(at))];
  }
  const palette = [];
  const index = new Map();
  boxes.forEach(({ cells }, number) => {
    // The commonest colour itself where it rules its box, so that plain areas stay exactly as they are.
    const total = cells.reduce((all, sum) => all.map((value, c) => value + sum[c]), [0, 0, 0, 0]);
    const first = cells.reduce((a, b) => (b[3] > a[3] ? b : a));
    const from = first[3] * 2 > total[3] ? first : total;
    for (let c = 0; c < 3; c += 1) palette.push(Math.round(from[c] / from[3]));
    for (const sum of cells) index.set(sum[4], number);
  });
  // Where the palette has the very colour it is taken; a gradient is broken up, so that it shows no steps.
  const WEAVE = [0, 8, 2, 10, 12, 4, 14, 6, 3, 11, 1, 9, 15, 7, 13, 5].map((n) => n - 7.5);
  const near = new Map();
  const nearest = (r, g, b) => {
    const key = r << 16 | g << 8 | b;
    if (!near.has(key)) {
      let [found, least] = [0, Infinity];
      for (let p = 0; p < palette.length; p += 3) {
        const off = 2 * (palette[p] - r) ** 2 + 4 * (palette[p + 1] - g) ** 2 + 3 * (palette[p + 2] - b) ** 2;
        if (off < least) [found, least] = [p / 3, off];
      }
      near.set(key, found);
    }
    return near.get(key);
  };
  const even = (value) => Math.max(0, Math.min(255, Math.round(value / 2) * 2));
  const indices = new Uint8Array(width * height);
  for (let i = 0; i < indices.length; i += 1) {
    const [r, g, b] = [pixels[i * 4], pixels[i * 4 + 1], pixels[i * 4 + 2]];
    const own = index.get(cellOf(i * 4));
    if (palette[own * 3] === r && palette[own * 3 + 1] === g && palette[own * 3 + 2] === b) indices[i] = own;
    else {
      const shift = WEAVE[i % width % 4 + 4 * (Math.floor(i / width) % 4)];
      indices[i] = nearest(even(r + shift), even(g + shift), even(b + shift));
    }
  }
  let text = '';
  for (let i = 0; i < indices.length; i += 32768) text += String.fromCharCode(...indices.subarray(i, i + 32768));
  return { width, height, palette, indices: btoa(text) };
}"""

SETTLED = """() => Promise.allSettled(
  document.getAnimations()
    .filter((one) => one.effect.getComputedTiming().endTime < 2000)
    .map((one) => one.finished),
)"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def demo() -> Iterator[dict[str, str]]:
    """A demo on a folder that is thrown away; the addresses it printed, by their names."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        running = subprocess.Popen(
            [sys.executable, "-m", "live", "demo", "--tied", "--viewers", str(VIEWERS)],
            cwd=ROOT,
            env={**kept, "COMPANION_DATA_DIR": folder, "COMPANION_PORT": str(free_port())},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert running.stdout is not None
        try:
            addresses: dict[str, str] = {}
            for line in running.stdout:
                if found := re.match(r"  (\w[\w ]+?)  +(http\S+)$", line):
                    addresses[found[1]] = found[2]
                if line.startswith("Data is in"):
                    break
            else:
                raise SystemExit("the demo did not start")
            yield addresses
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=30)


def png(reduced: dict[str, Any]) -> bytes:
    """An indexed PNG. Flat areas and text compress best without a row filter."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height = reduced["width"], reduced["height"]
    indices = b64decode(reduced["indices"])
    rows = b"".join(b"\0" + indices[at : at + width] for at in range(0, width * height, width))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(reduced["palette"]))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


class Camera:
    """Windows in both sizes, and the pictures taken of them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._lab = browser.new_page()  # no page of the shop, so no policy of the shop

    def window(
        self, size: str, *, lang: str = "zh-CN", signed_in: BrowserContext | None = None
    ) -> BrowserContext:
        """A window; with the cookies of another one where the same person looks."""
        viewport, scale = SIZES[size]
        made = self._browser.new_context(
            viewport=viewport,
            device_scale_factor=scale,
            is_mobile=size == "phone",
            has_touch=size == "phone",
            locale=lang,
            timezone_id="Asia/Shanghai",
            storage_state=signed_in.storage_state() if signed_in is not None else None,
        )
        made.set_default_timeout(15_000)
        return made

    def open(self, address: str, size: str, **about: Any) -> Page:
        page = self.window(size, **about).new_page()
        page.goto(address)
        return page

    def take(self, page: Page, name: str) -> None:
        """Once what moves in has moved in."""
        page.mouse.move(0, 0)
        page.evaluate(SETTLED)
        if page.locator(".problem").count():
            raise SystemExit(f"{name}.png would show a failure: take the pictures on a quiet machine")
        raw = page.screenshot()
        reduced = self._lab.evaluate(REDUCE, [b64encode(raw).decode(), COLOURS])
        made = min(raw, png(reduced), key=len)
        if len(made) > BYTES_MAX:
            raise SystemExit(f"{name}.png has {len(made)} bytes, at most {BYTES_MAX} are wanted")
        (OUT / f"{name}.png").write_bytes(made)
        print(f"{name}.png  {len(made) / 1000:.0f} kB", flush=True)


def playing(page: Page) -> None:
    page.locator("video").evaluate(
        """video => new Promise(done => {
          const look = () => video.currentTime > 1 && done();
          video.addEventListener("timeupdate", look);
          look();
        })"""
    )


def main() -> None:
    OUT.mkdir(exist_ok=True)
    executable = find_chromium()
    if executable is None:
        raise SystemExit(INSTALL)
    expect.set_options(timeout=WAIT_MS)
    with demo() as addresses, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        camera = Camera(browser)
        evening(camera, addresses)
        browser.close()


def evening(camera: Camera, addresses: dict[str, str]) -> None:
    show = addresses["viewer page"].rpartition("/")[2]
    panel = camera.open(addresses["host panel"], "desk")
    panel.locator(f'a[href="/panel/{show}"]').click()
    expect(panel.locator(".cue")).to_have_count(8)
    staff = panel.context
    pocket = camera.open(panel.url, "phone", signed_in=staff)
    expect(pocket.locator(".cue")).to_have_count(8)
    guests = {size: camera.open(addresses["viewer page"], size) for size in SIZES}
    for size, page in guests.items():
        expect(page.get_by_text("人在等开播")).to_be_visible(timeout=LIVELY_MS)
        camera.take(page, f"viewer-waiting-{size}")
    camera.take(panel, "panel-before-desk")
    camera.take(pocket, "panel-before-phone")
    for size in SIZES:
        page = camera.open(addresses["members only"], size)
        expect(page.get_by_text("穗里年卡")).to_be_visible()
        camera.take(page, f"viewer-members-only-{size}")
        page.context.close()

    panel.get_by_role("button", name="开始直播").click()
    expect(panel.get_by_role("group", name="直播中")).to_be_visible()
    panel.keyboard.press("A")
    panel.keyboard.press("B")
    seats = panel.get_by_role("article", name="厨房三件套").locator(".seats__got dd")
    expect(seats).to_have_text(re.compile(r"^([5-9]|\d\d)$"), timeout=LIVELY_MS)
    panel.keyboard.press("C")
    panel.keyboard.press("D")
    say = panel.get_by_label("以主播身份发言")
    say.fill("今年的新米到了，十月底才收的")
    say.press("Enter")
    expect(say).to_have_value("")
    say.press("Escape")
    panel.keyboard.press("H")
    voters = panel.locator(".poll").get_by_text(re.compile(r"^\d\d 人已投"))
    expect(voters).to_be_visible(timeout=LIVELY_MS)
    for size, page in guests.items():
        playing(page)
        expect(page.locator(".talk__list .line").nth(5)).to_be_visible()
        camera.take(page, f"viewer-live-{size}")
    english = camera.open(addresses["viewer page"], "phone", lang="en-GB")
    playing(english)
    expect(english.locator(".talk__list .line").nth(5)).to_be_visible()
    camera.take(english, "viewer-live-phone-en")
    english.context.close()
    camera.take(panel, "panel-live-desk")
    pocket.get_by_role("navigation").get_by_role("button", name="评论").click()
    expect(pocket.locator(".line").nth(5)).to_be_visible()
    camera.take(pocket, "panel-live-phone")
    abroad = camera.open(f"{panel.url}?lang=en", "desk", signed_in=staff)
    expect(abroad.locator(".line").nth(5)).to_be_visible()
    camera.take(abroad, "panel-live-desk-en")
    abroad.context.close()
    panel.get_by_role("button", name="观众手机").click()
    preview = panel.frame_locator("iframe")
    panel.get_by_role("button", name="会员看到的").click()
    expect(preview.get_by_text("会员预览")).to_be_visible()
    expect(preview.locator(".talk__list .line").nth(3)).to_be_visible()
    camera.take(panel, "panel-preview-desk")

    phone = guests["phone"]
    phone.get_by_role("article", name="厨房三件套").get_by_role("button", name="去开通").click()
    phone.get_by_role("button", name="¥199 开通").click()
    phone.locator("input[autocomplete=tel]").fill("138 1234 5678")
    phone.get_by_role("button", name="获取验证码").click()
    code = phone.locator("[data-sandbox-code]").get_attribute("data-sandbox-code")
    phone.locator("input[autocomplete=one-time-code]").fill(code or "")
    phone.get_by_role("button", name="去付款 ¥199").click()
    expect(phone.get_by_role("button", name="确认支付")).to_be_visible()
    camera.take(phone, "payment-phone")
    phone.get_by_role("button", name="确认支付").click()
    phone.wait_for_url("**/s/*")
    guests["desk"].context.close()
    guests["desk"] = camera.open(addresses["viewer page"], "desk", signed_in=phone.context)
    for size, page in guests.items():
        playing(page)
        won = page.get_by_role("article", name="厨房三件套").locator(".won")
        expect(won).to_be_visible()
        won.scroll_into_view_if_needed()
        expect(page.locator(".toast")).to_have_count(0)
        camera.take(page, f"viewer-won-{size}")

    purchase(camera, guests, panel, pocket)

    panel.get_by_role("button", name="结束", exact=True).click()
    panel.get_by_role("button", name="确认结束").click()
    for size, page in guests.items():
        expect(page.locator(".tonight .rank")).to_be_visible()
        camera.take(page, f"viewer-ended-{size}")
    expect(panel.locator(".report .stat").first).to_be_visible(timeout=LEARNT_MS)
    expect(pocket.locator(".report .stat").first).to_be_visible(timeout=LEARNT_MS)
    tag = panel.locator(".tag__head").first
    expect(tag).to_be_visible(timeout=LEARNT_MS)
    tag.click()
    camera.take(panel, "panel-ended-desk")
    camera.take(pocket, "panel-ended-phone")


def purchase(camera: Camera, guests: dict[str, Page], panel: Page, pocket: Page) -> None:
    """The same person buys; the desk looks at costs and cases; the switch is thrown and put back."""
    phone = guests["phone"]
    phone.get_by_role("article", name="有机大米 5kg").get_by_role("button", name="购买").click()
    phone.get_by_role("dialog").get_by_role("button", name="填写收货地址").first.click()
    address = {
        "name": "王小明",
        "phone": "13812345678",
        "region": "浙江省 杭州市 西湖区",
        "detail": "示例路 1 号",
    }
    for name, value in address.items():
        phone.locator(f"input[name={name}]").fill(value)
    phone.get_by_role("button", name="保存并使用").click()
    phone.get_by_role("button", name="为什么是这个价").click()
    phone.locator(".bill").scroll_into_view_if_needed()
    camera.take(phone, "checkout-phone")
    phone.get_by_role("button", name="提交订单").click()
    phone.get_by_role("button", name="确认支付").click()
    phone.wait_for_url("**/s/*")
    for size, page in guests.items():
        playing(page)
        page.get_by_role("button", name="我的订单与权益").click()
        page.get_by_role("tab", name="我的权益").click()
        page.get_by_role("button", name="查看签名凭证").first.click()
        page.get_by_role("button", name="核对签名").click()
        expect(page.locator(".notice--ok")).to_be_visible()
        expect(page.locator(".toast")).to_have_count(0)
        camera.take(page, f"receipt-{size}")
        page.get_by_role("button", name="返回").click()
        page.get_by_role("tab", name="我的订单").click()
        page.get_by_role("button", name="查看详情：有机大米 5kg").click()
        expect(page.get_by_role("list", name="订单进度")).to_be_visible()
        camera.take(page, f"order-{size}")
    phone.get_by_role("button", name="申请售后").click()
    phone.get_by_role("radio", name="破损变质").check()
    phone.get_by_label("说明").fill("收到时袋子破了，米撒了一些")
    phone.locator("input[type=file]").set_input_files(ROOT / "live" / "static" / "demo" / "poster.jpg")
    expect(phone.locator(".photo img")).to_be_visible()
    camera.take(phone, "after-sales-phone")
    phone.get_by_role("button", name="提交申请").click()
    expect(phone.locator(".case")).to_be_visible()

    panel.get_by_role("button", name="成本", exact=True).click()
    expect(panel.locator(".costs canvas")).to_be_visible(timeout=LIVELY_MS)  # two samples make a line
    camera.take(panel, "panel-costs-desk")
    pocket.get_by_role("navigation").get_by_role("button", name="数据").click()
    pocket.locator(".costs__table").scroll_into_view_if_needed()
    camera.take(pocket, "panel-costs-phone")
    origin = panel.evaluate("location.origin")
    for size in SIZES:
        money = camera.open(f"{origin}/panel/money#cases", size, signed_in=panel.context)
        photo = money.locator(".evidence-row img")
        expect(photo).to_be_visible()
        photo.evaluate("picture => picture.decode()")
        expect(money.locator(".money__count").first).to_be_visible()
        camera.take(money, f"panel-cases-{size}")
        if size == "desk":
            money.evaluate("location.hash = 'products'")
            expect(money.locator(".row-card").nth(3)).to_be_visible()
            camera.take(money, "panel-products-desk")
        money.context.close()
    panel.get_by_role("button", name="紧急暂停").click()
    panel.get_by_label("原因（观众可见）").fill("支付通道故障，正在处理")
    panel.get_by_role("button", name="马上暂停").click()
    expect(panel.locator(".incident-bar")).to_be_visible()
    camera.take(panel, "panel-incident-desk")
    phone.get_by_role("button", name="关闭").click()
    expect(phone.locator(".incident")).to_be_visible()
    expect(phone.locator(".toast")).to_have_count(0)
    camera.take(phone, "viewer-incident-phone")
    panel.get_by_role("button", name="恢复销售").click()
    expect(panel.locator(".incident-bar")).to_have_count(0)
    panel.get_by_role("button", name="现场", exact=True).click()
    for page in guests.values():
        if page.get_by_role("dialog").count():
            page.get_by_role("button", name="关闭").click()


if __name__ == "__main__":
    main()
