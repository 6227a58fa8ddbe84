"""A viewer's evening, on a phone and at a desk."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.browser.stage import (
    PHONE,
    People,
    Peopled,
    Shop,
    connected,
    moving,
    nameless,
    pay_in_sandbox,
    sideways,
    sign_in,
)


def card(page: Page, name: str) -> Locator:
    """One of the cards of what is open now."""
    return page.get_by_role("article", name=name)


def open_mine(page: Page, tab: str) -> Locator:
    page.get_by_role("button", name="我的订单与权益").click()
    page.get_by_role("tab", name=tab).click()
    return page.get_by_role("tabpanel")


def test_a_guest_sees_the_picture_move_the_prices_the_pieces_and_the_talk(people: People, shop: Shop) -> None:
    show = shop.make_show(moving=True)
    page = people.viewer(show)
    moving(page)
    shop.run_cues(show, "ABDH")
    expect(card(page, "有机大米 5kg")).to_contain_text("非会员价¥128会员价¥109", use_inner_text=False)
    expect(card(page, "有机大米 5kg")).to_contain_text("开通会员，这件省 ¥19")
    flash = card(page, "浓香菜籽油 1.8L")
    expect(flash).to_contain_text("限时价")
    expect(flash).to_contain_text("剩 60 / 60 件")
    clock = flash.get_by_role("timer")
    before = clock.inner_text()
    expect(clock).not_to_have_text(before)
    seats = card(page, "厨房三件套").get_by_role("img")
    expect(seats).to_have_accessible_name("共 100 份，已得 0，付款中 0，剩 100")
    expect(page.get_by_text("今晚下单，明天 16:00 前从仓库发出。")).to_be_visible()
    shop.comment(show, "欢迎来到秋收专场")
    said = page.get_by_role("listitem").filter(has_text="欢迎来到秋收专场")
    expect(said).to_be_visible()
    expect(said).to_contain_text("主播")
    likes = page.get_by_role("button", name="点赞")
    for _ in range(3):
        likes.click()
    expect(likes).to_have_accessible_name("点赞，现在 3 个赞")


def test_a_guest_finds_the_other_language_where_one_signs_in(one_size: Peopled, shop: Shop) -> None:
    page = connected(one_size(PHONE).viewer(shop.make_show()))
    page.get_by_role("button", name="我的订单与权益").click()
    page.get_by_role("dialog").get_by_role("link", name="English").click()
    expect(connected(page).get_by_role("button", name="My orders and benefits")).to_be_visible()
    assert nameless(page) == [] and sideways(page) == []


def test_results_of_a_poll_are_hidden_until_one_has_voted(people: People, shop: Shop) -> None:
    show = shop.make_show()
    page = people.viewer(show)
    shop.run_cues(show, "C")
    poll = card(page, "投票")
    expect(poll).to_contain_text("0 人已投")
    expect(poll).not_to_contain_text("%")
    poll.get_by_role("button", name="山药").click()
    expect(poll.get_by_role("button", name="山药")).to_contain_text("100%")
    expect(poll.get_by_role("button", name="山药")).to_have_attribute("aria-pressed", "true")
    expect(poll).to_contain_text("1 人已投")


def test_a_comment_typed_before_sign_in_is_kept_and_sent_after(people: People, shop: Shop) -> None:
    show = shop.make_show()
    page = people.viewer(show)
    line = "新米什么时候发货？"
    connected(page).get_by_label("说点什么").fill(line)
    page.get_by_role("button", name="发送评论").click()
    sheet = page.get_by_role("dialog", name="登录后发出这条评论")
    expect(sheet).to_contain_text(line)
    sign_in(page, "138 0000 1001" if people.size == "phone" else "138 0000 1002")
    expect(sheet).to_have_count(0)
    own = page.locator(".line--own:not(.line--pending)")
    expect(own).to_contain_text(line)
    expect(page.get_by_label("说点什么")).to_have_value("")
    page.reload()
    expect(page.get_by_role("listitem").filter(has_text=line)).to_have_count(1)


def test_joining_by_payment_returns_to_the_show_and_changes_the_open_page(people: People, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "AB")
    token = shop.member("王小明")
    first = people.viewer(show, token=token)
    expect(card(first, "有机大米 5kg").locator(".price-pair__side--yours")).to_have_count(0)
    first.evaluate("window.stays = true")

    paying = first.context.new_page()
    paying.goto(f"/s/{show}")
    card(paying, "厨房三件套").get_by_role("button", name="去开通").click()
    paying.get_by_role("button", name="¥199 开通").click()
    expect(paying.get_by_role("dialog", name="确认付款")).to_contain_text("已为你留住一个名额")
    expect(card(first, "厨房三件套").get_by_role("img")).to_have_accessible_name(
        "共 100 份，已得 0，付款中 1，剩 99"
    )
    paying.get_by_role("button", name="去付款 ¥199").click()
    pay_in_sandbox(paying)
    paying.wait_for_url(f"**/s/{show}")
    expect(card(paying, "厨房三件套")).to_contain_text("第 1 位")
    paying.close()

    assert first.evaluate("window.stays")
    expect(card(first, "有机大米 5kg").locator(".price-pair__side--yours")).to_contain_text("会员价")
    expect(card(first, "厨房三件套")).to_contain_text("第 1 位")
    first.get_by_label("说点什么").fill("我也是会员了")
    first.get_by_role("button", name="发送评论").click()
    own = first.locator(".line--own:not(.line--pending)")
    expect(own).to_contain_text("会员")
    expect(own).to_contain_text("我也是会员了")
    won = open_mine(first, "我的权益")
    expect(won).to_contain_text("前 100 名开通会员 送厨房三件套")
    expect(won).to_contain_text("第 1 位，共 100 份")
    first.get_by_role("tab", name="我的资料").click()
    expect(first.get_by_role("tabpanel")).to_contain_text("穗里年卡")


def test_an_order_with_its_address_is_paid_and_found_again(people: People, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "D")
    page = people.viewer(show, token=shop.member("李四"))
    card(page, "浓香菜籽油 1.8L").get_by_role("button", name="马上抢").click()
    sheet = page.get_by_role("dialog", name="购买")
    sheet.get_by_role("button", name="加一件").click()
    expect(sheet.get_by_role("button", name="加一件")).to_be_disabled()
    expect(sheet).to_contain_text("每人限 2 件")
    expect(sheet).to_contain_text("¥49.90 × 2")
    sheet.get_by_role("button", name="为什么是这个价？").click()
    expect(sheet.locator(".why__won")).to_contain_text("限时价")
    sheet.get_by_role("button", name="填写收货地址").last.click()
    form = page.get_by_role("dialog", name="新地址")
    form.get_by_label("收货人").fill("李四")
    form.get_by_label("手机号").fill("12")
    form.get_by_label("省市区").fill("浙江省 杭州市 西湖区")
    form.get_by_label("详细地址").fill("示例路 1 号 2 幢 301")
    people.expected.add(400)
    form.get_by_role("button", name="保存并使用").click()
    expect(form.get_by_role("alert")).to_contain_text("手机号不对")
    form.get_by_label("手机号").fill("138 0000 0000")
    form.get_by_role("button", name="保存并使用").click()
    expect(sheet).to_contain_text("138 0000 0000")
    sheet.get_by_role("button", name="提交订单").click()
    pay_in_sandbox(page)
    page.wait_for_url(f"**/s/{show}")
    expect(card(page, "浓香菜籽油 1.8L")).to_contain_text("剩 58 / 60 件")
    orders = open_mine(page, "我的订单").get_by_role("listitem").first
    expect(orders).to_contain_text("已付款")
    expect(orders).to_contain_text("浓香菜籽油 1.8L")


def test_an_order_left_unpaid_stays_at_hand_until_its_time(one_size: Peopled, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "A")
    token = shop.member("赵六")
    shop.buy(token, show, paid=False)
    page = one_size(PHONE).viewer(show, token=token)
    waiting = card(page, "待付款")
    expect(waiting).to_contain_text("有机大米 5kg")
    expect(waiting.get_by_role("timer")).to_contain_text("9:")
    waiting.get_by_role("button", name="付款").click()
    pay_in_sandbox(page)
    page.wait_for_url(f"**/s/{show}")
    expect(card(page, "待付款")).to_have_count(0)
