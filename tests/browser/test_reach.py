"""Whoever comes, on whatever window: names, keyboard, 320 pixels, English."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.stage import DESK, NARROW, PHONE, Peopled, Shop, moving, nameless, sideways, sign_in


def check(page: Page, place: str) -> None:
    assert (place, sideways(page)) == (place, [])
    assert (place, nameless(page)) == (place, [])


def shut(page: Page) -> None:
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_what_a_viewer_meets_fits_320_pixels_and_every_control_has_a_name(
    one_size: Peopled, shop: Shop
) -> None:
    people = one_size(PHONE)
    people.expected.update({401, 403})
    show = shop.make_show("waiting")
    page = people.viewer(show, viewport=NARROW)
    expect(page.get_by_role("timer")).to_be_visible()
    check(page, "the waiting room")
    shop.staff("POST", f"/v1/shows/{show}/start", {})
    shop.run_cues(show, "ABCDEH")
    expect(page.get_by_role("article")).to_have_count(5)
    check(page, "the stage")
    page.get_by_role("button", name="我的订单与权益").click()
    expect(page.get_by_role("dialog", name="登录后继续")).to_be_visible()
    check(page, "the sign-in")
    shut(page)
    page.get_by_role("button", name="在售商品").click()
    expect(page.get_by_role("dialog")).to_contain_text("在售商品 3")
    check(page, "the shelf")
    shut(page)
    page.get_by_role("article", name="厨房三件套").get_by_role("button").click()
    expect(page.get_by_role("button", name="¥199 开通")).to_be_visible()
    check(page, "the way to join")
    shop.staff("POST", f"/v1/shows/{show}/end", {})
    shut(page)
    expect(page.get_by_text("直播已结束")).to_be_visible()
    check(page, "the ended page")
    page.goto(f"/s/{shop.make_show(members_only=True)}")
    expect(page.get_by_role("button", name="开通会员并进入")).to_be_visible()
    check(page, "the members' door")
    page.goto("/")
    check(page, "the shop's page")


def test_what_a_member_meets_fits_320_pixels_and_every_control_has_a_name(
    one_size: Peopled, shop: Shop
) -> None:
    show = shop.make_show()
    shop.run_cues(show, "AB")
    token = shop.member("吴十", trial=True)
    shop.join(token, show)
    shop.buy(token, show)
    page = one_size(PHONE).viewer(show, token=token, viewport=NARROW)
    page.get_by_role("article", name="有机大米 5kg").get_by_role("button", name="购买").click()
    expect(page.get_by_role("button", name="提交订单")).to_be_enabled()
    page.get_by_role("button", name="为什么是这个价？").click()
    check(page, "the order")
    page.get_by_role("button", name="更换收货地址").click()
    page.get_by_role("button", name="新地址").click()
    expect(page.get_by_role("dialog", name="新地址")).to_be_visible()
    check(page, "the address")
    shut(page)
    page.get_by_role("button", name="我的订单与权益").click()
    for name, holds in (("我的订单", "已付款"), ("我的权益", "第 1 位"), ("我的资料", "穗里年卡")):
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_role("tabpanel")).to_contain_text(holds)
        check(page, name)
    shut(page)
    page.get_by_role("article", name="有机大米 5kg").get_by_role("button", name="购买").click()
    page.get_by_role("button", name="提交订单").click()
    expect(page.get_by_role("button", name="确认支付")).to_be_visible()
    check(page, "the payment page")


def test_the_panel_fits_320_pixels_and_every_control_has_a_name(one_size: Peopled, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "ABCD")
    shop.comment(show, "大家晚上好")
    panel = one_size(PHONE).page("/panel", staff=True, viewport=NARROW)
    expect(panel.locator(f'a[href="/panel/{show}"]')).to_be_visible()
    check(panel, "the list of shows")
    panel.goto(f"/panel/{show}")
    for name, holds in (
        ("流程", "讲解 有机大米"),
        ("评论", "大家晚上好"),
        ("数据", "权益名额"),
        ("预览", "访客看到的"),
    ):
        panel.get_by_role("navigation").get_by_role("button", name=name).click()
        expect(panel.get_by_role("main").get_by_text(holds).first).to_be_visible()
        check(panel, name)
    panel.get_by_role("button", name="更多").click()
    panel.get_by_role("button", name="快捷键").click()
    expect(panel.get_by_role("dialog", name="快捷键")).to_be_visible()
    check(panel, "the keys")
    panel.keyboard.press("Escape")
    panel.get_by_role("button", name="结束", exact=True).click()
    expect(panel.get_by_role("dialog", name="结束这场直播？")).to_be_visible()
    check(panel, "the end")


def test_a_sheet_keeps_the_focus_and_gives_it_back(one_size: Peopled, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "A")
    people = one_size(DESK)
    page = people.viewer(show)
    expect(page.get_by_role("article")).to_have_count(1)
    opener = page.get_by_role("button", name="在售商品")
    opener.focus()
    page.keyboard.press("Enter")
    sheet = page.get_by_role("dialog")
    expect(sheet).to_be_visible()
    close, buy = sheet.get_by_role("button", name="关闭"), sheet.get_by_role("button", name="购买")
    page.keyboard.press("Shift+Tab")
    expect(buy).to_be_focused()
    page.keyboard.press("Tab")
    expect(close).to_be_focused()
    page.keyboard.press("Tab")
    expect(buy).to_be_focused()
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
    expect(opener).to_be_focused()

    panel = people.panel(show)
    help_button = panel.get_by_role("button", name="快捷键（?）")
    help_button.focus()
    panel.keyboard.press("Enter")
    dialog = panel.get_by_role("dialog", name="快捷键")
    expect(dialog).to_be_visible()
    for _ in range(4):
        panel.keyboard.press("Tab")
        assert panel.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
    panel.keyboard.press("b")  # a dialog is open: no cue may run behind it
    panel.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(help_button).to_be_focused()
    expect(panel.locator(".cue").nth(1)).not_to_contain_text("进行中")


def test_the_evening_in_english(one_size: Peopled, shop: Shop) -> None:
    show = shop.make_show(moving=True)
    shop.run_cues(show, "ABC")
    people = one_size(PHONE)
    page = people.viewer(show, lang="en-GB")
    assert page.evaluate("document.documentElement.lang") == "en"
    moving(page)
    rice = page.get_by_role("article", name="有机大米 5kg")
    expect(rice).to_contain_text("Non-member")
    expect(rice).to_contain_text("Members save ¥19 on this")
    page.get_by_role("article", name="Poll").get_by_role("button", name="红枣").click()
    expect(page.get_by_role("article", name="Poll")).to_contain_text("1 vote")
    page.get_by_role("textbox", name="Say something").fill("When does it ship?")
    page.get_by_role("button", name="Send comment").click()
    sign_in(page, "138 0000 3001")
    expect(page.locator(".line--own:not(.line--pending)")).to_contain_text("When does it ship?")
    page.get_by_role("article", name="厨房三件套").get_by_role("button", name="Join").click()
    page.get_by_role("button", name="Join for ¥199").click()
    page.get_by_role("button", name="Pay ¥199").click()
    page.get_by_role("button", name="Pay now").click()
    page.wait_for_url(f"**/s/{show}")
    expect(rice).to_contain_text("Member · yours")
    panel = people.panel(show, lang="en-GB")
    expect(panel.get_by_role("button", name="Stop: 讲解 有机大米")).to_be_visible()
    expect(panel.get_by_role("group", name="Live")).to_be_visible()
