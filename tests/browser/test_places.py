"""Before the start, at a members' door, after the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from icalendar import Calendar
from playwright.sync_api import WebSocket, expect

from tests.browser.stage import People, Shop, moving, sign_in


def test_before_the_start_there_is_a_countdown_and_a_calendar_file(people: People, shop: Shop) -> None:
    show = shop.make_show("waiting", moving=True)
    page = people.viewer(show)
    clock = page.get_by_role("timer", name="距离开播")
    expect(clock).to_contain_text("00时09分", use_inner_text=False)
    with page.expect_download() as download:
        page.get_by_role("link", name="开播提醒我").click()
    event = Calendar.from_ical(Path(download.value.path()).read_bytes()).walk("VEVENT")[0]
    starts = event.decoded("dtstart")
    assert isinstance(starts, datetime)
    assert "秋收专场" in str(event["summary"])
    assert timedelta(minutes=8) < starts - datetime.now(UTC) < timedelta(minutes=11)
    assert f"/s/{show}" in str(event.get("url", "")) + str(event.get("description", ""))
    shop.staff("POST", f"/v1/shows/{show}/start", {})
    moving(page)


def test_a_guest_at_the_members_door_learns_why_and_a_trial_lets_in(people: People, shop: Shop) -> None:
    show = shop.make_show(members_only=True, moving=True)
    shop.run_cues(show, "G")
    people.expected.update({401, 403})
    frames: list[str] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: frames.append(str(frame)))

    page = people.context().new_page()
    page.on("websocket", listen)
    page.goto(f"/s/{show}")
    expect(page.get_by_text("这间直播间只对付费会员开放")).to_be_visible()
    expect(page.get_by_role("button", name="开通会员并进入")).to_be_visible()
    expect(page.locator("video")).to_have_count(0)
    assert "黑芝麻糊 600g" not in page.content() + "".join(frames)
    assert "loop.mp4" not in page.content() + "".join(frames)
    page.get_by_role("button", name="先免费体验 7 天").click()
    page.get_by_role("dialog", name="开通会员").get_by_role("button", name="先免费体验 7 天").click()
    sign_in(page, "138 0000 2001" if people.size == "phone" else "138 0000 2002")
    moving(page)
    expect(page.get_by_role("article", name="黑芝麻糊 600g")).to_contain_text("会员价 · 你的价")


def test_after_the_end_one_sees_what_one_has_won_and_ordered(people: People, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "AB")
    token = shop.member("钱七")
    page = people.viewer(show, token=token)
    shop.join(token, show)
    shop.buy(token, show)
    expect(page.get_by_role("article", name="厨房三件套")).to_contain_text("第 1 位")
    shop.staff("POST", f"/v1/shows/{show}/end", {})
    expect(page.get_by_text("直播已结束")).to_be_visible()
    expect(page.get_by_role("heading", name="你今晚的收获")).to_be_visible()
    expect(page.get_by_text("第 1 位，共 100 份")).to_be_visible()
    expect(page.get_by_role("button", name="已付款 2 单")).to_be_visible()
    expect(page.locator("video")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("第 1 位，共 100 份")).to_be_visible()
    page.get_by_role("button", name="查看订单与权益").click()
    orders = page.get_by_role("tabpanel").locator(".order")
    expect(orders).to_have_count(2)
    expect(orders.filter(has_text="有机大米 5kg")).to_contain_text("已付款")
