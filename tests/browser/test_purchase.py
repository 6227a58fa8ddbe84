"""One purchase from its first press to the money coming back, on a phone in Chinese and at a desk in English."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.stage import (
    DESK,
    PHONE,
    ROOT,
    People,
    Peopled,
    Shop,
    connected,
    nameless,
    sideways,
)
from tests.browser.wording import Lang, Words

PICTURE = ROOT / "live" / "static" / "demo" / "poster.jpg"
SETTLED_S = 15  # a job has sent the money back by then


class Buyer:
    """One person's page, spoken to in its language."""

    def __init__(self, people: People, shop: Shop, lang: Lang) -> None:
        self.people = people
        self.shop = shop
        self.lang: Lang = lang
        self.say = Words(lang)
        self.desk = Words(lang, panel=True)
        self.token = shop.member("李四")
        self.page: Page

    def come(self, show: str) -> Page:
        self.page = connected(self.people.viewer(show, token=self.token, lang=self.lang))
        return self.page

    def card(self, name: str) -> Locator:
        return self.page.get_by_role("article", name=name)

    def press(self, key: str, within: Page | Locator | None = None, **values: object) -> None:
        (within or self.page).get_by_role("button", name=self.say(key, **values), exact=True).click()

    def mine(self, tab: str) -> Locator:
        self.press("mine.open")
        self.page.get_by_role("tab", name=self.say(tab)).click()
        return self.page.get_by_role("tabpanel")

    def pay(self, show: str) -> None:
        """On the provider's own page, and back in the show."""
        self.page.wait_for_url("**/sandbox/pay/**")
        self.page.locator("button[value=pay]").click()
        self.page.wait_for_url(f"**/s/{show}*")
        connected(self.page)

    def reads_well(self) -> None:
        assert nameless(self.page) == []
        assert sideways(self.page) == []

    def asks(self, path: str) -> Any:
        return self.shop.viewer(self.token, "GET", path)


@pytest.fixture(params=[(PHONE, "zh-CN"), (DESK, "en-GB")], ids=["phone-zh", "desk-en"])
def buyer(request: pytest.FixtureRequest, shop: Shop, browser: Browser) -> Iterator[Buyer]:
    size, lang = request.param
    people = People(browser, shop, size)
    yield Buyer(people, shop, lang)
    people.leave()


def coupons_for_a_hundred(shop: Shop, show: str) -> str:
    """A benefit that brings a coupon of 10 yuan; its title."""
    rule = shop.staff(
        "POST",
        "/v1/coupon-rules",
        {"title": "秋收满减券", "kind": "amount", "off_fen": 1_000, "threshold_fen": 5_000, "days": 7},
    )
    terms = {"title": "百人满减券", "what": "coupon", "coupon_rule": rule["id"], "quota": 100}
    return str(shop.staff("POST", f"/v1/shows/{show}/benefits", terms)["title"])


def test_from_a_claim_to_the_money_that_comes_back(buyer: Buyer, shop: Shop) -> None:
    show = shop.make_show()
    shop.run_cues(show, "A")
    title = coupons_for_a_hundred(shop, show)
    shop.address(buyer.token)
    say, desk = buyer.say, buyer.desk
    page = buyer.come(show)

    # claimed, with a receipt that anybody can check
    buyer.press("seats.claim", buyer.card(title))
    expect(buyer.card(title)).to_contain_text(say("seats.rank", rank=1))
    won = buyer.mine("mine.benefits")
    expect(won).to_contain_text("秋收满减券")
    buyer.press("receipt.see", won)
    receipt = page.get_by_role("dialog", name=say("receipt"))
    expect(receipt.locator(".receipt__rank")).to_contain_text("1")
    expect(receipt.locator(".receipt__rank")).to_contain_text("/ 100")
    buyer.press("receipt.check", receipt)
    expect(receipt.get_by_role("status").first).to_contain_text(say("receipt.good"))
    buyer.reads_well()
    signed = buyer.asks("/v1/me/benefits")["items"][0]["receipt"]
    stranger = buyer.people.page(f"/receipt#{signed}", lang=buyer.lang)
    expect(stranger.locator(".notice--ok")).to_contain_text(say("receipt.good"))
    assert nameless(stranger) == [] and sideways(stranger) == []
    stranger.get_by_role("textbox").fill(signed[:20] + ("B" if signed[20] == "A" else "A") + signed[21:])
    stranger.get_by_role("button", name=say("receipt.check")).click()
    expect(stranger.get_by_role("alert")).to_contain_text(say("receipt.bad"))
    stranger.context.close()
    buyer.press("close", receipt)

    # bought with the coupon it brought
    buyer.press("deal.buy", buyer.card("有机大米 5kg"))
    sheet = page.get_by_role("dialog", name=say("buy.title"))
    expect(sheet.locator(".discount")).to_contain_text("秋收满减券")
    expect(sheet.locator(".total")).to_contain_text("118")
    buyer.press("buy.why", sheet)
    expect(sheet.locator(".why__won")).to_contain_text(say("candidate.list"))
    buyer.reads_well()
    buyer.press("buy.place", sheet)
    buyer.pay(show)

    # the order's page says where it stands, and takes the complaint
    buyer.press("order.see.of", buyer.mine("mine.orders"), name="有机大米 5kg")
    order = page.get_by_role("dialog", name=say("order.title"))
    expect(order.locator(".order-page__state")).to_have_text(say("order.paid"))
    steps = order.get_by_role("list", name=say("order.timeline"))
    expect(steps.locator("[aria-current=step]")).to_contain_text(say("step.fulfilled"))
    expect(order.locator(".bill")).to_contain_text("−¥10")
    buyer.reads_well()
    buyer.press("case.open", order)
    form = page.get_by_role("dialog", name=say("case.open"))
    buyer.press("case.send", form)
    expect(form.get_by_role("alert").first).to_have_text(say("case.kind.needed"))
    form.get_by_role("radio", name=say("case.kind.damaged")).check()
    form.get_by_label(say("case.reason")).fill("袋子破了，米撒了一些")
    expect(form.get_by_role("alert")).to_have_count(0)
    form.locator("input[type=file]").set_input_files(PICTURE)
    expect(form.locator(".photo img")).to_have_count(1)
    buyer.reads_well()
    buyer.press("case.send", form)
    case = order.locator(".case")
    expect(case).to_contain_text(say("case.state.open"))
    expect(case).to_contain_text("袋子破了，米撒了一些")
    photo = case.get_by_role("img", name=say("photo.nth", n=1))
    expect(photo).to_have_js_property("complete", True)
    assert photo.evaluate("picture => picture.naturalWidth") > 0

    # staff look at it and settle it
    panel = buyer.people.page("/panel/money#cases", staff=True, lang=buyer.lang)
    row = panel.get_by_role("listitem").filter(has_text="袋子破了，米撒了一些")
    expect(row.get_by_role("img", name=desk("photo_n", n=1))).to_have_js_property("complete", True)
    assert nameless(panel) == [] and sideways(panel) == []
    row.get_by_role("button", name=desk("case_decide")).click()
    decision = panel.get_by_role("dialog")
    decision.get_by_role("switch", name=desk("case_restock")).check()
    decision.get_by_label(desk("case_note")).fill("抱歉，已为您全额退款")
    # who, which order and how much, before the act
    expect(decision.locator(".case-facts")).to_contain_text(desk("case_unsent"))
    expect(decision.locator(".case-facts")).to_contain_text(re.compile(r"\d{3}\*{4}\d{4}"))
    expect(decision.locator(".case-back")).to_contain_text("¥118")
    decision.get_by_role("button", name=desk("case_do_refund_sum", sum="¥118"), exact=True).click()
    expect(row).to_have_count(0)

    # the page that was open all the while tells it, and the provider has sent the money back
    expect(order.locator(".order-page__state")).to_have_text(say("order.refunded"))
    expect(case).to_contain_text(say("case.state.settled"))
    expect(case).to_contain_text("抱歉，已为您全额退款")
    expect(case).to_contain_text("¥118")
    mine = buyer.asks("/v1/me/orders")["items"][0]
    until = time.monotonic() + SETTLED_S
    while (sent := returned(shop, mine["id"])) != 11_800:
        assert time.monotonic() < until, f"{sent} of 11800 have gone back"
        time.sleep(0.1)
    assert [one["state"] for one in buyer.asks("/v1/me/coupons")["items"]] == ["free"]


def returned(shop: Shop, order: str) -> int:
    """How much the provider has sent back of this order."""
    payments = shop.staff("GET", f"/v1/orders/{order}")["payments"]
    return sum(int(one["returned_fen"]) for one in payments)


def test_a_refunded_order_says_first_that_the_money_is_on_its_way_and_then_that_it_is_back(
    buyer: Buyer, shop: Shop
) -> None:
    show = shop.make_show()
    shop.run_cues(show, "A")
    shop.join(buyer.token, show)
    shop.buy(buyer.token, show)
    say = buyer.say
    until = time.monotonic() + SETTLED_S
    while (bought := buyer.asks("/v1/me/orders")["items"][0])["state"] != "paid":
        assert time.monotonic() < until, "paid, and the order does not know it"
        time.sleep(0.05)
    page = buyer.come(show)
    buyer.press("order.see.of", buyer.mine("mine.orders"), name="有机大米 5kg")
    order = page.get_by_role("dialog", name=say("order.title"))
    state = order.locator(".order-page__state")
    expect(state).to_have_text(say("order.paid"))
    expect(order.locator(".order-line")).to_have_count(2)
    expect(order.locator(".saved")).to_contain_text("¥34")
    path = f"/v1/me/orders/{bought['id']}/cases"
    asked = {"kind": "refund", "reason": "买错了"}
    case = shop.viewer(buyer.token, "POST", path, asked)["id"]
    try:
        shop.faults(api="error")  # the provider takes nothing back just now
        shop.staff("POST", f"/v1/cases/{case}/decision", {"act": "refund", "note": "退给您"})
        expect(state).to_have_text(say("order.refunding"))
        expect(order).to_contain_text(say("order.refunding.means"))
        expect(order).not_to_contain_text(say("order.refunded.means"))
        expect(order.locator(".order-line")).to_have_count(1)  # no gift comes with it
        expect(order.locator(".saved")).to_have_count(0)
        buyer.reads_well()
    finally:
        shop.faults()
    expect(state).to_have_text(say("order.refunded"), timeout=60_000)
    expect(order).to_contain_text(say("order.refunded.means"))
    expect(order).not_to_contain_text(say("order.refunding.means"))
    buyer.reads_well()


def test_a_payment_that_failed_is_said_at_once_and_tried_again_for_the_same_order(
    buyer: Buyer, shop: Shop
) -> None:
    show = shop.make_show()
    shop.run_cues(show, "AB")
    shop.address(buyer.token)
    say = buyer.say
    page = buyer.come(show)
    dialog = page.get_by_role("dialog")

    def fail() -> str:
        page.wait_for_url("**/sandbox/pay/**")
        paid_at = page.url
        page.locator("button[value=fail]").click()
        page.wait_for_url(f"**/s/{show}*")
        connected(page)
        return paid_at

    # what came first at the seat is its own order still, and no sales talk
    buyer.press("seats.join", buyer.card("厨房三件套"))
    buyer.press("join.go", dialog, sum="¥199")
    buyer.press("join.pay", dialog, sum="¥199")
    first = fail()
    failed = page.get_by_role("dialog", name=say("order.failed"))
    expect(failed.get_by_role("alert")).to_have_text(say("order.failed.means"))
    expect(failed.get_by_role("timer")).to_be_visible()
    buyer.reads_well()
    buyer.press("order.failed.again", failed, sum="¥199")
    assert fail() == first
    buyer.press("order.failed.later", failed)
    buyer.card("厨房三件套").get_by_role("button", name=say("seats.pay")).click()
    held = page.get_by_role("dialog", name=say("join.pay.title"))
    expect(held.get_by_role("timer")).to_be_visible()
    buyer.reads_well()
    buyer.press("join.pay", held, sum="¥199")
    assert fail() == first

    # what is open is not replaced: it is said beside it
    buyer.press("order.failed.later", failed)
    page.route("**/v1/me/orders/*", lambda route: None)  # its answer takes its time
    buyer.card("厨房三件套").get_by_role("button", name=say("seats.pay")).click()
    buyer.press("join.pay", held, sum="¥199")
    assert fail() == first
    buyer.press("deal.buy", buyer.card("有机大米 5kg"))
    checkout = page.get_by_role("dialog", name=say("buy.title"))
    checkout.get_by_role("button", name=say("buy.more")).click()
    page.unroute("**/v1/me/orders/*")  # and what was held goes its way
    expect(page.locator(".toast--bad")).to_have_text(say("order.toast.failed"))
    expect(checkout.get_by_role("status")).to_have_text("2")
    buyer.reads_well()

    # paid at last: believed as the server says so
    buyer.press("close", checkout)
    buyer.card(say("order.placed")).get_by_role("button", name=say("order.pay"), exact=True).click()
    buyer.pay(show)
    expect(buyer.card("厨房三件套")).to_contain_text(say("seats.rank", rank=1))
    assert [one["state"] for one in buyer.asks("/v1/me/orders")["items"]] == ["paid"]


def test_that_a_payment_came_is_not_taken_from_the_address(one_size: Peopled, shop: Shop) -> None:
    buyer = Buyer(one_size(PHONE), shop, "zh-CN")
    show = shop.make_show()
    shop.run_cues(show, "A")
    shop.buy(buyer.token, show, paid=False)
    [order] = [one["id"] for one in buyer.asks("/v1/me/orders")["items"]]
    page = connected(
        buyer.people.page(f"/s/{show}?order={order}&payment=paid", token=buyer.token, lang=buyer.lang)
    )
    expect(page.locator(".toast")).to_have_text(buyer.say("order.toast.checking"))
    expect(page.get_by_role("article", name=buyer.say("order.placed"))).to_be_visible()
    assert page.url == f"{shop.url}/s/{show}"


def test_a_plan_is_given_back_after_its_bill_was_read(one_size: Peopled, shop: Shop) -> None:
    buyer = Buyer(one_size(DESK), shop, "en-GB")
    show = shop.make_show()
    shop.join(buyer.token, show)
    say = buyer.say
    page = buyer.come(show)
    buyer.press("leave.open", buyer.mine("mine.me"))
    sheet = page.get_by_role("dialog", name=say("leave.title"))
    expect(sheet).to_contain_text(say("leave.way.whole"))
    expect(sheet.locator(".bill__total")).to_contain_text("¥199")
    buyer.reads_well()
    words = re.escape(say("leave.end", date="DATE")).replace("DATE", ".+")
    ends = sheet.get_by_role("button", name=re.compile(words))
    ends.click()
    buyer.press("leave.undo", sheet)
    expect(ends).to_be_visible()
    buyer.press("leave.refund", sheet, sum="¥199")
    buyer.press("leave.sure", sheet, sum="¥199")
    expect(sheet).to_have_count(0)
    expect(page.get_by_role("tabpanel")).to_contain_text(say("me.registered"))
    assert buyer.asks("/v1/me")["kind"] == "registered"


def test_a_not_covered_address_is_said_before_the_order(one_size: Peopled, shop: Shop) -> None:
    buyer = Buyer(one_size(PHONE), shop, "zh-CN")
    show = shop.make_show()
    shop.run_cues(show, "A")
    rows = [{"region": "", "flat_fen": 800, "free_from_fen": 9_900, "days_min": 2, "days_max": 4}]
    before = shop.staff("GET", "/v1/freight")["rows"]
    shop.staff("PUT", "/v1/freight", {"rows": [*rows, {"region": "西藏", "covered": False}]})
    given = {"name": "王小明", "phone": "13800000000", "region": "西藏自治区 拉萨市", "detail": "示例路 1 号"}
    try:
        shop.viewer(buyer.token, "POST", "/v1/me/addresses", given)
        buyer.people.expected.update({409, 403, 400})
        buyer.come(show)
        buyer.press("deal.buy", buyer.card("有机大米 5kg"))
        sheet = buyer.page.get_by_role("dialog", name=buyer.say("buy.title"))
        expect(sheet.get_by_role("alert")).to_have_text(buyer.say("refused.not_covered"))
        expect(sheet.get_by_role("button", name=buyer.say("buy.place"))).to_be_disabled()
        shop.address(buyer.token)
    finally:
        shop.staff("PUT", "/v1/freight", {"rows": before})


def test_a_bundle_says_its_parts_a_presale_its_day_and_both_their_limits(
    one_size: Peopled, shop: Shop
) -> None:
    show = shop.make_show()
    say = Words("zh-CN")
    part = {"list_fen": 1_990, "stock": 50}
    rice = shop.staff("POST", "/v1/products", {**part, "sku": "PART-1", "name": "小米 500g"})["id"]
    bean = shop.staff("POST", "/v1/products", {**part, "sku": "PART-2", "name": "绿豆 500g"})["id"]
    parts = [{"product": rice, "quantity": 2}, {"product": bean, "quantity": 1}]
    bundle = {"sku": "BUNDLE-1", "name": "杂粮三袋装", "list_fen": 4_990, "parts": parts, "max_per_member": 2}
    presale = {
        "sku": "EARLY-1",
        "name": "新米预售 2.5kg",
        "list_fen": 5_990,
        "stock_mode": "presale",
        "presale_cap": 30,
        "ship_by": "2030-01-05",
        "max_per_household": 3,
    }
    for product in (bundle, presale):
        made = shop.staff("POST", "/v1/products", product)["id"]
        shop.staff("POST", f"/v1/shows/{show}/offers", {"product": made, "kind": "pin"})
    people = one_size(PHONE)
    page = connected(people.viewer(show, token=shop.member("褚四")))
    shelf = page.get_by_role("button", name=re.compile("^在售商品"))
    shelf.click()
    rows = page.get_by_role("dialog").get_by_role("listitem")
    expect(rows.filter(has_text="杂粮三袋装")).to_contain_text("含 小米 500g × 2 · 绿豆 500g × 1")
    expect(rows.filter(has_text="杂粮三袋装")).to_contain_text(say("limit.member", n=2, days=30))
    expect(rows.filter(has_text="新米预售")).to_contain_text("1月5日")
    expect(rows.filter(has_text="新米预售")).to_contain_text(say("limit.household", n=3, days=30))
    rows.filter(has_text="杂粮三袋装").get_by_role("button", name=say("deal.buy")).click()
    sheet = page.get_by_role("dialog", name=say("buy.title"))
    expect(sheet).to_contain_text("小米 500g × 2")
    sheet.get_by_role("button", name=say("buy.more")).click()
    expect(sheet.get_by_role("button", name=say("buy.more"))).to_be_disabled()
    assert nameless(page) == [] and sideways(page) == []


def test_points_a_struck_price_and_coupons_from_the_desk_that_leave_nothing_to_pay(
    one_size: Peopled, shop: Shop
) -> None:
    show = shop.make_show()
    people = one_size(PHONE)
    say, desk = Words("zh-CN"), Words("zh-CN", panel=True)
    bean = {"sku": "STRUCK-1", "name": "红小豆 1kg", "list_fen": 5_000, "stock": 50}
    product = shop.staff("POST", "/v1/products", bean)["id"]
    pinned = shop.staff("POST", f"/v1/shows/{show}/offers", {"product": product})["id"]
    first = shop.member("前一位")
    shop.buy(first, show)
    until = time.monotonic() + SETTLED_S
    while shop.viewer(first, "GET", "/v1/me/orders")["items"][0]["state"] != "paid":
        assert time.monotonic() < until, "paid, and the order does not know it"
        time.sleep(0.05)
    shop.staff("POST", f"/v1/offers/{pinned}/close", {})
    flash = {"product": product, "kind": "flash", "flash_fen": 3_990, "quota": 20, "seconds": 600}
    shop.staff("POST", f"/v1/shows/{show}/offers", flash)
    gift = {"title": "见面积分", "what": "points", "points": 300, "quota": 9}
    shop.staff("POST", f"/v1/shows/{show}/benefits", gift)
    token = shop.member("券中人")
    shop.address(token)

    # the price before the cut is struck through; points come off by hundreds
    page = connected(people.viewer(show, token=token))
    page.get_by_role("article", name="见面积分").get_by_role("button", name=say("seats.claim")).click()
    expect(page.get_by_role("article", name="见面积分")).to_contain_text(say("seats.rank", rank=1))
    card = page.get_by_role("article", name="红小豆 1kg")
    expect(card.locator("s")).to_contain_text("¥50")
    card.get_by_role("button").click()
    sheet = page.get_by_role("dialog", name=say("buy.title"))
    expect(sheet.locator(".total")).to_contain_text("47.90")
    sheet.get_by_role("switch", name=re.compile("300")).check()
    expect(sheet.locator(".total")).to_contain_text("44.90")
    expect(sheet.locator(".bill")).to_contain_text("−¥3")
    sheet.get_by_role("button", name=say("close")).click()

    # staff find the member: one coupon is taken back, two are granted
    member = shop.staff("GET", "/v1/members?query=券中人")["items"][0]["id"]
    rules = {}
    for title, kind, group, other in [
        ("整单券", "amount", "whole", "sending"),
        ("免邮券", "freight", "sending", "whole"),
        ("发错的券", "amount", "wrong", "none"),
    ]:
        rule = {"title": title, "kind": kind, "stack_group": group, "stacks_with": [other], "days": 3}
        made = shop.staff("POST", "/v1/coupon-rules", rule | ({"off_fen": 9_000} if kind == "amount" else {}))
        rules[title] = made["id"]
    for title in ("免邮券", "发错的券"):
        body = {"members": [member], "cause": "test"}
        shop.staff("POST", f"/v1/coupon-rules/{rules[title]}/grants", body)
    panel = people.page("/panel/money#coupons", staff=True)
    panel.get_by_role("searchbox").fill("券中人")
    panel.get_by_role("button", name=desk("holders_find")).click()
    wrong = panel.get_by_role("listitem", name="发错的券").last
    wrong.get_by_role("button", name=desk("holder_void"), exact=True).click()
    wrong.get_by_role("button", name=desk("holder_void_sure")).click()
    expect(wrong).to_contain_text(desk("coupon_state_void"))
    panel.get_by_label(desk("holder_rule")).select_option(rules["整单券"])
    panel.get_by_role("button", name=desk("holder_grant")).click()
    expect(panel.get_by_text(desk("field_needed"))).to_be_visible()
    panel.get_by_label(desk("holder_cause"), exact=True).fill("破损补偿")
    panel.get_by_role("button", name=desk("holder_grant")).click()
    expect(panel.locator(".holder").get_by_role("listitem", name="整单券")).to_contain_text(
        desk("coupon_state_free")
    )
    assert nameless(panel) == [] and sideways(panel) == []

    # together they are all of it: the order is paid where it is placed
    card.get_by_role("button").click()
    expect(sheet.locator(".total")).to_have_text(re.compile(r"¥\s*0$"))
    sheet.get_by_role("button", name=say("buy.place")).click()
    order = page.get_by_role("dialog", name=say("order.title"))
    expect(order.locator(".order-page__state")).to_have_text(say("order.paid"))
    expect(order.locator(".order-page__total")).to_have_text("¥0")
