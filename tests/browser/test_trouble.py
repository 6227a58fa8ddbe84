"""When a show is pressed or its server cannot read the log: calm words for viewers, plain ones for staff."""

from __future__ import annotations

import time

from playwright.sync_api import expect

from tests.browser.stage import PHONE, People, Peopled, Shop, connected, sideways, tell

LOG_DOWN = "互动暂时中断，正在恢复；你的订单和名额不受影响"
UNTOUCHED = "订单、名额和通知不受影响。"


def since(seconds: int) -> int:
    return int(time.time() * 1000) - seconds * 1000


def test_a_viewer_is_told_calmly_that_the_log_is_down_and_may_still_act(people: People, shop: Shop) -> None:
    show = shop.make_show()
    page = people.viewer(show, token=shop.member("郑一"), listening=True)
    connected(page).get_by_label("说点什么").fill("还在吗")
    tell(page, log={"up": False, "since": since(3)})
    banner = page.get_by_role("status").filter(has_text=LOG_DOWN)
    expect(banner).to_be_visible()
    assert sideways(page) == []
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="发送评论").click()
    expect(page.locator(".line--own:not(.line--pending)")).to_contain_text("还在吗")
    tell(page, log=None)
    expect(banner).to_have_count(0)


def test_who_waits_for_the_start_is_told_too(one_size: Peopled, shop: Shop) -> None:
    page = one_size(PHONE).viewer(shop.make_show("waiting"), listening=True)
    tell(page, log={"up": False, "since": since(3)})
    expect(page.get_by_text(LOG_DOWN)).to_be_visible()


def test_a_viewer_reads_one_line_about_sampling_and_none_about_likes(people: People, shop: Shop) -> None:
    page = people.viewer(shop.make_show(), listening=True)
    note = page.locator(".talk__note")
    viewers = page.locator(".top__viewers")
    tell(page, degraded={"step": "reactions", "since": since(60)})
    tell(page, sampling={"shown_per_s": 20, "posted_per_s": 180})
    expect(note).to_have_text("评论很多，每秒显示约 20 条，全部都会保存")
    assert sideways(page) == []
    tell(page, sampling=None)
    expect(note).to_have_count(0)
    tell(page, degraded={"step": "presence", "since": since(60)})
    expect(note).to_have_text("评论很多，只显示一部分，全部都会保存")
    expect(viewers).to_have_attribute("aria-label", "1 人在看，人数暂停更新")
    tell(page, degraded=None)
    expect(note).to_have_count(0)
    expect(viewers).to_have_attribute("aria-label", "1 人在看")


def test_the_panel_says_which_step_is_taken_since_when_and_what_it_never_touches(
    people: People, shop: Shop
) -> None:
    panel = people.panel(shop.make_show(), listening=True)
    health = panel.locator(".health")
    expect(health).to_have_text("实时")
    steps = {
        "reactions": "点赞数暂停更新",
        "comments": "观众只看到一部分评论",
        "presence": "在线人数和点赞数暂停更新",
    }
    for number, (step, words) in enumerate(steps.items(), 1):
        tell(panel, degraded={"step": step, "since": since(130)})
        line = panel.get_by_role("status").filter(has_text=words)
        expect(line).to_contain_text(UNTOUCHED)
        expect(line).to_contain_text("已 2:1")
        expect(health).to_have_text(f"已精简 {number}/3")
        assert sideways(panel) == []
    tell(panel, degraded=None)
    expect(panel.get_by_text(UNTOUCHED)).to_have_count(0)
    expect(health).to_have_text("实时")


def test_the_panel_says_how_long_the_log_is_down_and_what_to_do(people: People, shop: Shop) -> None:
    panel = people.panel(shop.make_show(), listening=True)
    tell(panel, log={"up": False, "since": since(70)}, degraded={"step": "reactions", "since": since(80)})
    alarm = panel.get_by_role("alert").filter(has_text="互动中断")
    expect(alarm).to_contain_text("检查 Redis")
    expect(alarm).to_contain_text("都不会丢")
    expect(alarm).to_contain_text("已 1:1")
    expect(panel.locator(".health")).to_have_text("互动中断")
    assert sideways(panel) == []
    tell(panel, log=None)
    expect(alarm).to_have_count(0)
    expect(panel.locator(".health")).to_have_text("已精简 1/3")


def test_the_panel_says_how_many_comments_are_shown_of_how_many(people: People, shop: Shop) -> None:
    panel = people.panel(shop.make_show(), listening=True)
    if people.size == PHONE:
        panel.get_by_role("navigation").get_by_role("button", name="评论").click()
    tell(panel, sampling={"shown_per_s": 20, "posted_per_s": 180})
    said = panel.get_by_text("评论抽样中：每秒 180 条，显示 20 条（主播、已购、会员优先）")
    expect(said).to_be_visible()
    tell(panel, sampling=None)
    expect(said).to_have_count(0)
