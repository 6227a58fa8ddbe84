"""The host's evening at the panel, on a phone and at a desk, and what viewers see of it."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect

from tests.browser.stage import DESK, PHONE, People, Peopled, Shop, connected

LEARNT_MS = 60_000  # the end card and the tags are there by then


def tab(panel: Page, people: People, name: str) -> None:
    """On a phone one thing is shown at a time."""
    if people.size == PHONE:
        panel.get_by_role("navigation").get_by_role("button", name=name).click()


def cue(panel: Page, title: str) -> Locator:
    return panel.locator(".cue").filter(has_text=title)


def say_as_host(panel: Page, text: str) -> None:
    """The lines stand still while the mouse is over them, and move when one's own has come."""
    say = panel.get_by_label("以主播身份发言")
    expect(say).to_be_focused()
    say.hover()
    say.fill(text)
    say.press("Enter")
    expect(say).to_have_value("")
    expect(panel.locator(".line").filter(has_text=text)).to_be_visible()


def act_on(line: Locator, act: str, people: People) -> None:
    """What may be done about a comment shows when one points at it."""
    if people.size == PHONE:
        line.tap()
    else:
        line.hover()
    line.get_by_role("button", name=act).click()


def test_the_link_opens_the_panel_once(people: People, shop: Shop) -> None:
    show = shop.make_show("waiting")
    link = shop.sign_in_link()
    panel = people.page(link)
    row = panel.locator(f'a[href="/panel/{show}"]')
    expect(row).to_have_accessible_name("进入控制台：秋收专场：新米上市夜")
    assert "#" not in panel.url
    row.click()
    expect(panel.get_by_role("heading", name="秋收专场：新米上市夜")).to_be_visible()
    expect(panel.get_by_text("候场中")).to_be_visible()
    for key, title in zip("ABCD", ("有机大米", "厨房三件套", "下一款粥", "菜籽油"), strict=True):
        expect(cue(panel, title).locator("kbd")).to_have_text(key)
    people.expected.update({401, 409, 410})
    again = people.page(link)
    expect(again.get_by_role("alert")).to_contain_text("这个链接已经用过了")
    assert again.url.endswith("/panel/sign-in")


def test_cues_are_run_by_their_keys_and_reach_a_waiting_viewer(people: People, shop: Shop) -> None:
    show = shop.make_show("waiting")
    viewer = people.viewer(show)
    expect(viewer.get_by_role("timer", name="距离开播")).to_be_visible()
    panel = people.panel(show)
    expect(cue(panel, "有机大米")).to_be_visible()
    panel.keyboard.press("b")
    expect(cue(panel, "厨房三件套").locator(".cue__hint")).to_have_text("开播后才能执行")
    panel.get_by_role("button", name="开始直播").click()
    checks = panel.get_by_role("dialog", name="开播前看一下")
    expect(checks).to_contain_text("还没有填视频地址")
    checks.get_by_role("button", name="开始直播").click()
    expect(checks).to_have_count(0)
    expect(panel.get_by_role("group", name="直播中")).to_be_visible()
    for key in "abcd":
        panel.keyboard.press(key)
    for title in ("有机大米", "厨房三件套", "下一款粥", "菜籽油"):
        expect(cue(panel, title).get_by_text("进行中")).to_be_visible()
    for name in ("有机大米 5kg", "厨房三件套", "投票", "浓香菜籽油 1.8L"):
        expect(viewer.get_by_role("article", name=name)).to_have_count(1)
    (benefit,) = shop.staff("GET", f"/v1/shows/{show}/benefits")["items"]
    for act, body, word in (("pause", {"reason": "补货"}, "已暂停"), ("resume", {}, "进行中")):
        shop.staff("POST", f"/v1/benefits/{benefit['id']}/{act}", body)
        expect(cue(panel, "厨房三件套").locator(".cue__running .badge")).to_have_text(word)
    panel.keyboard.press("Shift+D")
    expect(cue(panel, "菜籽油")).to_contain_text("再按一次停止")
    panel.keyboard.press("Shift+D")
    expect(cue(panel, "菜籽油")).to_contain_text("已完成")
    expect(viewer.get_by_role("article", name="浓香菜籽油 1.8L")).to_have_count(0)
    tab(panel, people, "数据")
    expect(panel.get_by_role("radio", name="在线 1")).to_be_visible()
    expect(panel.get_by_role("article", name="厨房三件套")).to_contain_text("共 100 份")
    if people.size == PHONE:
        tab(panel, people, "预览")
    else:
        panel.get_by_role("button", name="观众手机").click()
    phone = panel.frame_locator("iframe")
    rice = phone.get_by_role("article", name="有机大米 5kg")
    expect(phone.get_by_text("游客预览")).to_be_visible()
    expect(rice).to_contain_text("非会员价")
    expect(rice).not_to_contain_text("你的价")
    panel.get_by_role("button", name="会员看到的").click()
    expect(phone.get_by_text("会员预览")).to_be_visible()
    expect(rice).to_contain_text("会员价 · 你的价")


def test_the_host_speaks_replies_hides_and_mutes(people: People, shop: Shop) -> None:
    show = shop.make_show()
    panel = people.panel(show)
    viewer = people.viewer(show, token=shop.member("孙八"))
    field = connected(viewer).get_by_label("说点什么")
    for line in ("这个米是新米吗？", "加微信低价卖米"):
        field.fill(line)
        viewer.get_by_role("button", name="发送评论").click()
        expect(viewer.locator(".line--own:not(.line--pending)").filter(has_text=line)).to_be_visible()

    tab(panel, people, "评论")
    panel.get_by_role("button", name="修改", exact=True).click()
    panel.get_by_label("公告", exact=True).fill("今晚全场包邮")
    panel.get_by_role("button", name="发布公告").click()
    expect(viewer.get_by_text("今晚全场包邮")).to_be_visible()

    panel.keyboard.press("/")
    say_as_host(panel, "大家晚上好")
    hello = viewer.get_by_role("listitem").filter(has_text="大家晚上好")
    expect(hello).to_contain_text("主播")

    question = panel.locator(".line").filter(has_text="这个米是新米吗？")
    expect(question).to_contain_text("提问")
    act_on(question, "回复", people)
    say_as_host(panel, "是今年的新米")
    expect(viewer.get_by_role("listitem").filter(has_text="是今年的新米")).to_contain_text("回复 孙八：")

    spam = panel.locator(".line").filter(has_text="加微信低价卖米")
    act_on(spam, "隐藏", people)
    expect(spam).to_contain_text("已隐藏")
    expect(viewer.get_by_role("listitem").filter(has_text="加微信低价卖米")).to_have_count(0)
    act_on(spam, "禁言", people)
    spam.get_by_role("button", name="1 分钟").click()
    expect(spam).to_contain_text("已禁言")
    # told at once, not when they try to speak
    expect(field).to_have_attribute("placeholder", re.compile("^你暂时不能发言，还有 [0-9]+ 秒"))
    field.fill("还是加微信吧")
    expect(viewer.get_by_role("button", name="发送评论")).to_be_disabled()
    field.press("Enter")
    expect(field).to_have_value("还是加微信吧")
    expect(panel.locator(".line").filter(has_text="还是加微信吧")).to_have_count(0)
    panel.get_by_text("已禁言 1 人").click()
    panel.get_by_role("button", name="解除禁言").click()
    expect(field).to_have_attribute("placeholder", "说点什么…")
    viewer.get_by_role("button", name="发送评论").click()
    expect(viewer.locator(".line--own:not(.line--pending)").filter(has_text="还是加微信吧")).to_be_visible()


def test_after_the_end_come_the_card_and_tags_with_their_evidence(one_size: Peopled, shop: Shop) -> None:
    """One evening, looked at in both sizes: the card and the tags take their seconds to be made."""
    show = shop.make_show()
    shop.run_cues(show, "AB")
    token = shop.member("周九")
    phone, desk = one_size(PHONE), one_size(DESK)
    viewer = phone.viewer(show, token=token)
    connected(viewer).get_by_label("说点什么").fill("有机大米什么时候发货？")
    viewer.get_by_role("button", name="发送评论").click()
    expect(viewer.locator(".line--own:not(.line--pending)")).to_be_visible()
    shop.join(token, show)
    shop.buy(token, show)
    panels = [(people, people.panel(show)) for people in (phone, desk)]
    for people, panel in panels:
        people.expected.add(404)  # asked for until the job has made it
        tab(panel, people, "数据")
        orders = panel.get_by_role("region", name="订单与加入")
        # told by the welcome: nobody was at the panel then
        expect(orders).to_contain_text("已付款 有机大米 5kg")
        expect(orders).to_contain_text("第 1 位")
    panels[0][1].get_by_role("button", name="结束", exact=True).click()
    panels[0][1].get_by_role("dialog", name="结束这场直播？").get_by_role("button", name="确认结束").click()
    for people, panel in panels:
        report = panel.get_by_role("region", name="本场总结")
        figures = report.locator(".stat")
        expect(figures.filter(has_text="观看人数")).to_contain_text("1", timeout=LEARNT_MS)
        expect(figures.filter(has_text="新加入会员")).to_contain_text("1")
        expect(figures.filter(has_text="成交额")).to_contain_text("308")
        expect(figures.filter(has_text="付款订单")).to_contain_text("商品订单已退 0 元")
        expect(report.get_by_role("row", name="厨房三件套")).to_contain_text("1 / 100")
        expect(report.get_by_role("region", name="大家问得最多")).to_contain_text("有机大米什么时候发货")
        if people.size == PHONE:
            tab(panel, people, "标签")
        tags = panel.get_by_role("region", name="会员标签")
        tag = tags.get_by_role("button", name="对有机大米感兴趣")
        expect(tag).to_be_visible(timeout=LEARNT_MS)
        tag.click()
        expect(tags).to_contain_text("规则：")
        expect(tags.locator(".evidence")).to_contain_text("评论提到：有机大米什么时候发货？")
        expect(tags.locator(".evidence")).to_contain_text("付款")
