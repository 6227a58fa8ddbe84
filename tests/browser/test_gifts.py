"""Gifts of a plan by their periods: taken by a member; put on sale, with a group price, at the money desk."""

from __future__ import annotations

import csv
import io

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.stage import DESK, PHONE, Peopled, Shop, connected, nameless, sideways
from tests.browser.wording import Lang, Words

SIZES = pytest.mark.parametrize(
    ("size", "lang"), [(PHONE, "zh-CN"), (DESK, "en-GB")], ids=["phone-zh", "desk-en"]
)


def give_address(form: Locator, say: Words, detail: str) -> None:
    for name, text in (
        ("name", "许四"),
        ("phone", "13800000000"),
        ("region", "浙江省 杭州市"),
        ("detail", detail),
    ):
        form.get_by_label(say(f"address.{name}"), exact=True).fill(text)
    form.get_by_role("button", name=say("address.save")).click()


@SIZES
def test_a_winner_is_asked_where_the_gift_is_sent_and_may_change_it(
    one_size: Peopled, shop: Shop, size: str, lang: Lang
) -> None:
    say = Words(lang)
    show, token = shop.make_show(), shop.member("许九")
    shop.run_cues(show, "B")
    shop.join(token, show)
    page = connected(one_size(size).viewer(show, token=token, lang=lang))
    dialog = page.get_by_role("dialog")

    def sent_to() -> str:
        """As the warehouse is told."""
        owner = {"authorization": f"Bearer {shop.staff_token}"}
        table = shop.http.get("/v1/fulfilment.csv", params={"show": show}, headers=owner).text
        rows = csv.DictReader(io.StringIO(table.removeprefix("\ufeff")))
        return next(row["detail"] for row in rows if row["name"] == "前 100 名开通会员 送厨房三件套")

    card = page.get_by_role("article", name="厨房三件套")
    expect(card.get_by_role("button", name=say("gift.to.add"))).to_be_visible()
    assert nameless(page) == [] and sideways(page) == []
    assert sent_to() == ""

    # the rank leads to its receipt, which asks too
    card.get_by_role("button", name=say("seats.rank.see", rank=1)).click()
    expect(dialog).to_contain_text(say("gift.to.ask"))
    assert nameless(page) == [] and sideways(page) == []
    dialog.get_by_role("button", name=say("address.first")).click()
    assert nameless(page) == [] and sideways(page) == []
    give_address(dialog, say, "示例路 1 号")
    expect(dialog.locator(".gift-to")).to_contain_text("示例路 1 号")
    assert nameless(page) == [] and sideways(page) == []
    assert sent_to() == "示例路 1 号"

    # another one, from what one has won; and back to the first in the address book
    dialog.get_by_role("button", name=say("back")).click()
    expect(dialog.locator(".gift-to")).to_contain_text("示例路 1 号")
    assert nameless(page) == [] and sideways(page) == []
    dialog.get_by_role("button", name=say("gift.to.change")).click()
    dialog.get_by_role("button", name=say("address.add")).click()
    give_address(dialog, say, "示例路 2 号")
    here = dialog.get_by_role("listitem").filter(has_text=say("gift.to.here"))
    expect(here).to_contain_text("示例路 2 号")
    assert sent_to() == "示例路 2 号"
    dialog.get_by_role("button", name=say("back")).click()
    dialog.get_by_role("tab", name=say("mine.me")).click()
    use = say("gift.to.use.named", name="许四", detail="示例路 1 号")
    dialog.get_by_role("button", name=use).click()
    expect(here).to_contain_text("示例路 1 号")
    here.scroll_into_view_if_needed()
    assert nameless(page) == [] and sideways(page) == []
    assert sent_to() == "示例路 1 号"
    dialog.get_by_role("button", name=say("close")).click()
    expect(card).to_contain_text(say("gift.to.name", name="许四"))
    assert nameless(page) == [] and sideways(page) == []


@SIZES
def test_a_gift_that_was_claimed_says_by_which_parcel_it_was_sent_and_asks_for_no_address_then(
    one_size: Peopled, shop: Shop, size: str, lang: Lang
) -> None:
    say = Words(lang)
    show, token = shop.make_show(), shop.member("许七")
    shop.address(token)
    shop.staff(
        "POST",
        f"/v1/shows/{show}/benefits",
        {"title": "见面小样", "what": "gift", "value_fen": 900, "quota": 9},
    )
    people = one_size(size)
    page = connected(people.viewer(show, token=token, lang=lang))
    card = page.get_by_role("article", name="见面小样")
    card.get_by_role("button", name=say("seats.claim")).click()
    expect(card).to_contain_text(say("gift.to.name", name="王小明"))
    page.goto(f"{page.url.split('/s/')[0]}/me/benefits")
    won = page.get_by_role("listitem").filter(has_text="见面小样")
    expect(won.locator(".badge")).to_have_text(say("benefit.confirmed"))
    expect(page.locator(".gift-to")).to_be_visible()

    [mine] = shop.viewer(token, "GET", "/v1/me/benefits")["items"]
    desk = people.page("/panel/money#sending", staff=True, lang=lang)
    words = Words(lang, panel=True)
    desk.get_by_label(words("tracking_rows")).fill(f"order,claim,carrier,tracking\n,{mine['id']},顺丰,SF0077")
    desk.get_by_role("button", name=words("tracking_send"), exact=True).click()
    outcome = desk.get_by_role("row").filter(has_text="SF0077")
    expect(outcome).to_contain_text(mine["id"])
    expect(outcome).to_contain_text(words("sent_sent"))
    assert nameless(desk) == []
    for returned, key in ((False, "gift.sent"), (True, "gift.returned")):
        parcel = {"claim": mine["id"], "carrier": "顺丰", "tracking": "SF0077", "returned": returned}
        shop.staff("POST", "/v1/fulfilment", {"rows": [parcel]})
        page.reload()
        expect(won).to_contain_text("顺丰 SF0077")
        expect(won.locator(".badge")).to_have_text(say(key))
        expect(page.locator(".gift-to")).to_have_count(0)
        assert nameless(page) == [] and sideways(page) == []


def test_a_member_takes_the_gift_of_the_month_and_tells_the_birthday(one_size: Peopled, shop: Shop) -> None:
    gifts = [
        {"title": "当季鲜米 1kg", "value_fen": 2_900, "every": "month"},
        {"title": "生日面礼盒", "value_fen": 5_900, "every": "birthday"},
    ]
    plan = shop.staff(
        "POST", "/v1/plans", {"name": "鲜米月卡", "fee_fen": 59_900, "period_months": 12, "gifts": gifts}
    )["id"]
    try:
        token = shop.member("许四")
        shop.join(token, shop.make_show(), plan)
    finally:
        shop.staff("PATCH", f"/v1/plans/{plan}", {"on_sale": False})
    say = Words("zh-CN")
    page = one_size(PHONE).page("/me/benefits", token=token)
    fresh = page.get_by_role("listitem", name="当季鲜米 1kg")
    expect(fresh).to_contain_text("¥29")
    fresh.get_by_role("button", name=say("gift.take.named", title="当季鲜米 1kg")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=say("address.add")).click()
    give_address(dialog, say, "示例路 1 号")
    expect(dialog.get_by_role("button", name=say("address.change"))).to_contain_text("示例路 1 号")
    assert nameless(page) == [] and sideways(page) == []
    dialog.get_by_role("button", name=say("gift.take.send")).click()
    expect(fresh).to_contain_text(say("gift.claimed"))
    expect(fresh.get_by_role("button")).to_have_count(0)

    month, day = page.get_by_role("combobox").all()
    month.select_option("02")
    expect(day.get_by_role("option")).to_have_count(30)  # 29 February is a birthday
    page.get_by_role("button", name=say("birthday.save")).click()
    expect(page.get_by_text(say("birthday.needed"))).to_be_visible()
    day.select_option("29")
    assert nameless(page) == [] and sideways(page) == []
    page.get_by_role("button", name=say("birthday.save")).click()
    expect(page.get_by_role("combobox")).to_have_count(0)
    mine = shop.viewer(token, "GET", "/v1/me/gifts")
    assert mine["birthday"] == "02-29"
    assert mine["items"][0]["state"] == "claimed"

    [order] = [one["id"] for one in shop.viewer(token, "GET", "/v1/me/orders")["items"]]
    parcel = {"order": order, "carrier": "顺丰", "tracking": "SF0042", "gift": mine["items"][0]["claim"]}
    for returned, key in ((False, "gift.sent"), (True, "gift.returned")):
        shop.staff("POST", "/v1/fulfilment", {"rows": [{**parcel, "returned": returned}]})
        page.reload()
        expect(fresh).to_contain_text("顺丰 SF0042")
        expect(fresh.locator(".badge")).to_have_text(say(key))
        assert nameless(page) == [] and sideways(page) == []


@SIZES
def test_a_gift_that_the_plan_took_with_it_is_said_to_be_left_out(
    one_size: Peopled, shop: Shop, size: str, lang: Lang
) -> None:
    say = Words(lang)
    show, token = shop.make_show(), shop.member("许五")
    shop.run_cues(show, "A")
    shop.join(token, show)
    shop.buy(token, show)
    page = one_size(size).page("/me/orders", token=token, lang=lang)
    see = page.get_by_role("button", name=say("order.see.of", name="有机大米 5kg"))
    see.click()
    gift = page.locator(".order-line").filter(has_text="杂粮试吃装")
    expect(gift).to_contain_text("¥15")
    expect(gift).not_to_contain_text(say("order.line.left_out"))
    bill = shop.viewer(token, "GET", "/v1/me/plan/refund")
    shop.viewer(token, "POST", "/v1/me/plan/refund", {"payable_fen": bill["payable_fen"]})
    page.reload()
    expect(page.get_by_role("tabpanel").get_by_text(say("order.line.left_out"))).to_be_visible()
    see.click()
    expect(gift).to_contain_text(say("order.line.left_out"))
    expect(gift).to_contain_text(say("order.line.left_out.why"))
    expect(gift).not_to_contain_text("¥15")
    expect(page.locator(".saved")).not_to_contain_text("¥15")
    assert nameless(page) == [] and sideways(page) == []


def test_a_plan_with_gifts_and_a_group_price_are_made_at_the_desk(one_size: Peopled, shop: Shop) -> None:
    say = Words("en-GB", panel=True)
    made = {"sku": "TEST-GROUP", "name": "小米 500g", "list_fen": 1_990, "stock": 50}
    product = shop.staff("POST", "/v1/products", made)["id"]
    panel = one_size(DESK).page("/panel/money#plans", staff=True, lang="en-GB")
    panel.get_by_role("button", name=say("plan_new")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_label(say("plan_name")).fill("Half a year")
    dialog.get_by_label(say("plan_months"), exact=True).fill("6")
    dialog.get_by_role("button", name=say("plan_gift_add")).click()
    gift = dialog.get_by_role("group", name=say("plan_gift_n", n=1))
    expect(gift.get_by_label(say("gift_title"))).to_be_focused()
    gift.get_by_label(say("gift_title")).fill("Birthday noodles")
    gift.get_by_label(say("gift_value")).fill("39.90")
    gift.get_by_label(say("gift_every")).select_option("birthday")
    gift.get_by_role("switch").uncheck()
    dialog.get_by_role("button", name=say("plan_sell")).click()
    expect(dialog.get_by_label(say("plan_fee"))).to_be_focused()  # what is missing
    dialog.get_by_label(say("plan_fee")).fill("899")
    assert nameless(panel) == [] and sideways(panel) == []
    dialog.get_by_role("button", name=say("plan_sell")).click()
    row = panel.get_by_role("listitem", name="Half a year")
    try:
        expect(row).to_contain_text("Birthday noodles")
        expect(row).to_contain_text("¥39.90")
        sold = next(one for one in shop.staff("GET", "/v1/plans")["items"] if one["name"] == "Half a year")
        assert [(one["every"], one["value_fen"], one["needs_address"]) for one in sold["gifts"]] == [
            ("birthday", 3_990, False)
        ]
        row.get_by_role("button", name=say("plan_stop"), exact=True).click()
        row.get_by_role("button", name=say("plan_stop_sure")).click()
        expect(row).to_contain_text(say("plan_off"))
        panel.reload()  # who comes later puts it back
        expect(row).to_contain_text(say("plan_off"))
        row.get_by_role("button", name=say("plan_sell"), exact=True).click()
        expect(row).to_contain_text(say("plan_on"))
    finally:
        for one in shop.staff("GET", "/v1/plans")["items"]:
            if one["id"] != shop.plan["id"]:
                shop.staff("PATCH", f"/v1/plans/{one['id']}", {"on_sale": False})

    panel.get_by_role("link", name=say("money_products")).click()
    panel.get_by_role("listitem", name="小米 500g").get_by_role("button", name=say("prices")).click()
    dialog.get_by_label(say("price_sum")).fill("15")
    dialog.get_by_label(say("price_pieces")).fill("3")
    assert nameless(panel) == [] and sideways(panel) == []
    dialog.get_by_role("button", name=say("price_add")).click()
    line = dialog.get_by_role("listitem").filter(has_text=say("price_group_n", sum="¥15", n=3))
    expect(line).to_contain_text(say("price_holds"))
    [entry] = shop.staff("GET", f"/v1/products/{product}")["prices"]
    assert (entry["unit_fen"], entry["min_quantity"]) == (1_500, 3)
    line.get_by_role("button").click()
    expect(line).to_have_count(0)
