"""The desk where money is watched: what a show costs, who grants what, odd payments, parcels, and the switch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.stage import DESK, PHONE, People, Peopled, Shop, connected, nameless, sideways
from tests.browser.wording import Lang, Words

GIFT_FEN = 5_900  # stated value of the kitchen set


class Desk:
    """Staff at their panel, in their language."""

    def __init__(self, people: People, lang: Lang) -> None:
        self.people = people
        self.lang: Lang = lang
        self.say = Words(lang, panel=True)

    def money(self, part: str) -> Page:
        return self.people.page(f"/panel/money#{part}", staff=True, lang=self.lang)

    def show(self, show: str) -> Page:
        return self.people.panel(show, lang=self.lang)

    def costs(self, panel: Page) -> Locator:
        """The cost meter: beside the talk at a desk, below the numbers on a phone."""
        if self.people.size == PHONE:
            panel.get_by_role("navigation").get_by_role("button", name=self.say("tab_numbers")).click()
        else:
            panel.get_by_role("button", name=self.say("costs"), exact=True).click()
        return panel.get_by_role("region", name=self.say("costs"))


@pytest.fixture(params=[(PHONE, "en-GB"), (DESK, "zh-CN")], ids=["phone-en", "desk-zh"])
def desk(request: pytest.FixtureRequest, shop: Shop, browser: Browser) -> Iterator[Desk]:
    size, lang = request.param
    people = People(browser, shop, size)
    yield Desk(people, lang)
    people.leave()


def test_the_cost_meter_follows_what_is_promised_and_spent(desk: Desk, shop: Shop) -> None:
    show = shop.make_show()
    shop.staff("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 900_000})
    shop.run_cues(show, "AB")
    panel = desk.show(show)
    costs = desk.costs(panel)
    figures = {name: costs.locator(f".cost-key__{name} dd") for name in ("spent", "committed", "left")}
    expect(figures["committed"]).to_have_text("5,900")
    expect(figures["spent"]).to_have_text("0")
    expect(figures["left"]).to_have_text("3,100")
    shop.join(shop.member("吴十"), show)
    expect(figures["spent"]).to_have_text("59")
    expect(costs.get_by_role("img").first).to_have_accessible_name(
        desk.say("costs_said", committed="¥5,900", spent="¥59", left="¥3,100", budget="¥9,000")
    )
    expect(costs.get_by_role("row").filter(has_text="厨房三件套")).to_contain_text("59")
    expect(costs.get_by_role("img", name=desk.say("costs_plot")).locator("canvas")).to_be_visible()
    assert nameless(panel) == [] and sideways(panel) == []


def test_a_second_person_grants_what_passes_the_budget(one_size: Peopled, shop: Shop) -> None:
    desk = Desk(one_size(DESK), "en-GB")
    show = shop.make_show()
    shop.run_cues(show, "B")
    benefit = shop.staff("GET", f"/v1/shows/{show}/benefits")["items"][0]
    shop.staff("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 100 * GIFT_FEN})
    say = desk.say
    panel = desk.show(show)
    desk.people.expected.add(409)
    panel.get_by_role("button", name=say("raise")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_label(say("raise_to")).fill("110")
    expect(dialog).to_contain_text(say("raise_title_number", n=100))
    expect(dialog.locator(".raise-read")).to_contain_text(say("of_quota", n=110))
    go = dialog.get_by_role("button", name=say("raise_sure", n=110))
    go.click()
    expect(dialog.get_by_role("alert")).to_contain_text(say("fail_over_budget").partition("{")[0].strip())

    other = shop.staff("POST", "/v1/staff", {"name": "运营小周", "role": "operator"})
    link = shop.staff("POST", f"/v1/staff/{other['id']}/links", {})["url"]
    second = desk.people.page(link, lang=desk.lang)
    expect(second.get_by_role("link", name=say("money_desk"))).to_be_visible()
    second.goto("/panel/money#budgets")
    asked = second.get_by_role("region", name=say("approvals")).get_by_role("listitem").filter(has_text="110")
    asked.get_by_role("button", name=say("grant"), exact=True).click()
    sure = second.get_by_role("dialog")
    sure.get_by_role("button", name=say("grant"), exact=True).click()
    expect(sure).to_have_count(0)

    go.click()
    expect(dialog).to_have_count(0)
    assert shop.staff("GET", f"/v1/benefits/{benefit['id']}")["benefit"]["quota"] == 110


def test_the_switch_stops_sales_tells_viewers_and_ends_as_it_began(one_size: Peopled, shop: Shop) -> None:
    desk = Desk(one_size(PHONE), "zh-CN")
    show = shop.make_show()
    shop.run_cues(show, "AB")
    words = Words(desk.lang)
    viewer = connected(desk.people.viewer(show, token=shop.member("郑一"), lang=desk.lang))
    buy = viewer.get_by_role("article", name="有机大米 5kg").get_by_role("button")
    expect(buy).to_be_enabled()
    panel = desk.money("payments")
    panel.get_by_role("button", name=desk.say("incident_throw")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_role("button", name=desk.say("incident_confirm")).click()
    expect(dialog.get_by_text(desk.say("field_needed"))).to_be_visible()
    dialog.get_by_label(desk.say("incident_reason")).fill("支付通道故障")
    dialog.get_by_role("button", name=desk.say("incident_confirm")).click()
    try:
        bar = panel.get_by_role("region", name=desk.say("incident_on"))
        expect(bar).to_contain_text("支付通道故障")
        expect(viewer.get_by_role("alert")).to_contain_text(words("incident.title", reason="支付通道故障"))
        expect(buy).to_be_disabled()
        expect(viewer.get_by_role("article", name="厨房三件套")).to_contain_text(words("seats.paused"))
        assert nameless(panel) == [] and sideways(panel) == [] and sideways(viewer) == []
        bar.get_by_role("button", name=desk.say("incident_end")).click()
        expect(bar).to_have_count(0)
    finally:
        if shop.staff("GET", "/v1/incident")["incident"]:
            shop.staff("DELETE", "/v1/incident")
    expect(viewer.get_by_role("alert")).to_have_count(0)
    expect(buy).to_be_enabled()


def test_money_of_another_amount_waits_for_a_person_and_late_payments_are_said(
    one_size: Peopled, shop: Shop
) -> None:
    desk = Desk(one_size(PHONE), "zh-CN")
    show = shop.make_show()
    shop.run_cues(show, "A")
    shop.faults(charge_off_fen=-1_000)
    try:
        shop.buy(shop.member("王五"), show)
    finally:
        shop.faults()
    context = desk.people.context(staff=True)
    late = {"state": "webhook_down", "waiting": 3, "oldest_s": 75, "since": 1}
    context.route("**/v1/incident", lambda route: route.fulfill(json={"incident": None, "payments": late}))
    panel = context.new_page()
    panel.goto("/panel/money#payments")
    banner = panel.get_by_role("alert").filter(has_text=desk.say("payments_webhook_down"))
    expect(banner).to_contain_text(desk.say("payments_waiting", n=3, s=75))
    row = panel.get_by_role("listitem").filter(has_text=desk.say("odd_wrong_amount"))
    expect(row).to_contain_text("¥118")
    expect(panel.get_by_role("link", name=desk.say("money_payments"))).to_contain_text("1")
    row.get_by_role("button", name=desk.say("odd_act_return"), exact=True).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_role("button", name=desk.say("odd_act_return"), exact=True).click()
    expect(dialog.get_by_text(desk.say("field_needed"))).to_be_visible()
    dialog.get_by_label(desk.say("note_audit")).fill("金额不符，退回")
    dialog.get_by_role("button", name=desk.say("odd_act_return"), exact=True).click()
    expect(dialog).to_have_count(0)
    expect(row.get_by_role("button")).to_have_count(0)
    context.unroute_all(behavior="ignoreErrors")


def test_parcels_go_out_by_the_list_and_come_back_as_numbers(one_size: Peopled, shop: Shop) -> None:
    desk = Desk(one_size(DESK), "zh-CN")
    show = shop.make_show()
    shop.run_cues(show, "A")
    token = shop.member("冯二")
    viewer = connected(desk.people.viewer(show, token=token))
    shop.buy(token, show)
    expect(viewer.locator(".toast", has_text=Words("zh-CN")("order.toast.paid"))).to_be_visible()
    order = shop.viewer(token, "GET", "/v1/me/orders")["items"][0]["id"]
    panel = desk.money("sending")
    panel.get_by_role("combobox").select_option(show)
    with panel.expect_download() as download:
        panel.get_by_role("link", name=desk.say("sending_download")).click()
    assert order in Path(download.value.path()).read_text("utf-8-sig")
    panel.get_by_label(desk.say("tracking_rows")).fill(f"{order}，顺丰，SF1234567890\n{show}，顺丰，SF1")
    panel.get_by_role("button", name=desk.say("tracking_send"), exact=True).click()
    outcomes = panel.get_by_role("row")
    expect(outcomes.filter(has_text="SF1234567890")).to_contain_text(desk.say("sent_sent"))
    expect(outcomes.filter(has_text=re.compile(r"SF1(?!\d)"))).to_contain_text(desk.say("sent_refused"))
    viewer.get_by_role("button", name=Words("zh-CN")("mine.open")).click()
    viewer.get_by_role("button", name=re.compile("^查看详情")).click()
    page = viewer.get_by_role("dialog", name=Words("zh-CN")("order.title"))
    expect(page.locator(".order-page__state")).to_have_text(Words("zh-CN")("order.fulfilled"))
    expect(page.locator(".parcel")).to_contain_text("SF1234567890")


def test_stock_is_brought_up_to_date_by_rows_and_its_ledger_tells_of_each(
    one_size: Peopled, shop: Shop
) -> None:
    desk = Desk(one_size(PHONE), "en-GB")
    made = {"sku": "TEST-STOCK", "name": "试吃小米 200g", "list_fen": 990, "stock": 5}
    product = shop.staff("POST", "/v1/products", made)
    panel = desk.money("products")
    panel.get_by_label(desk.say("stock_rows")).fill("TEST-STOCK +24\nTEST-STOCK 10=5\nNO-SUCH +1")
    panel.get_by_label(desk.say("stock_reason")).fill("delivery of today")
    panel.get_by_role("button", name=desk.say("stock_do")).click()
    rows = panel.get_by_role("row")
    expect(rows.nth(1)).to_contain_text(desk.say("stock_changed"))
    expect(rows.nth(1)).to_contain_text("29")
    expect(rows.nth(2)).to_contain_text(desk.say("row_stock_changed"))
    expect(rows.nth(3)).to_contain_text(desk.say("row_not_found"))
    ledger = panel.get_by_role("region", name=desk.say("ledger"), exact=True)
    ledger.get_by_role("combobox").select_option(product["id"])
    expect(ledger.get_by_role("row")).to_have_count(3)
    expect(ledger.get_by_role("row").nth(1)).to_contain_text("delivery of today")
    expect(ledger.get_by_role("row").nth(1)).to_contain_text("+24")
    expect(ledger.get_by_role("row").nth(2)).to_contain_text(desk.say("ledger_opening"))
    item = panel.get_by_role("listitem", name="试吃小米 200g")
    expect(item).to_contain_text(desk.say("stock_n", n=29))
    item.get_by_role("button", name=desk.say("edit")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_label(desk.say("stock_mode")).select_option("on_payment")
    dialog.get_by_label(desk.say("max_per_member")).fill("2")
    dialog.get_by_role("button", name=desk.say("save")).click()
    expect(dialog).to_have_count(0)
    expect(item).to_contain_text(desk.say("mode_on_payment"))
    expect(item).to_contain_text(desk.say("limit_member", n=2))
    assert shop.staff("GET", f"/v1/products/{product['id']}")["product"]["stock_mode"] == "on_payment"


def test_a_points_campaign_is_made_and_ended_at_the_desk(one_size: Peopled, shop: Shop) -> None:
    desk = Desk(one_size(PHONE), "zh-CN")
    say = desk.say
    panel = desk.money("campaigns")
    panel.get_by_role("button", name=say("campaign_new")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_label(say("campaign_name")).fill("秋收双倍积分")
    dialog.get_by_role("button", name=say("create")).click()
    expect(dialog.get_by_text(say("field_needed"))).to_be_visible()
    expect(dialog).to_contain_text(say("campaign_times", n=2))
    dialog.get_by_label(say("campaign_until"), exact=True).fill("2098-12-31T20:00")
    assert nameless(panel) == [] and sideways(panel) == []
    dialog.get_by_role("button", name=say("create")).click()
    row = panel.get_by_role("listitem", name="秋收双倍积分")
    expect(row).to_contain_text(say("campaign_running"))
    row.get_by_role("button", name=say("campaign_end"), exact=True).click()
    row.get_by_role("button", name=say("campaign_end_sure")).click()
    expect(row).to_contain_text(say("campaign_over"))
    expect(row.get_by_role("button")).to_have_count(0)


def test_a_benefit_with_conditions_is_prepared_and_told_in_words(one_size: Peopled, shop: Shop) -> None:
    desk = Desk(one_size(DESK), "zh-CN")
    say, words = desk.say, Words("zh-CN")
    show = shop.make_show("waiting")
    panel = desk.show(show)
    viewer = connected(desk.people.viewer(show, token=shop.member("陈三")))
    panel.get_by_role("button", name=say("rundown_edit")).click()
    form = panel.get_by_role("dialog", name=say("rundown_edit"))
    form.get_by_role("group", name=say("cue_new")).get_by_role("button", name=say("kind_benefit")).click()
    draft = form.locator(".cue-draft--open")
    draft.get_by_label(say("cue_title"), exact=True).fill("看播积分")
    draft.get_by_label(say("cue_key"), exact=True).fill("Z")
    draft.get_by_label(say("cue_benefit_title"), exact=True).fill("看满三分钟领积分")
    draft.get_by_label(say("cue_benefit_what"), exact=True).select_option("points")
    draft.get_by_label(say("cue_needs"), exact=True).select_option("nothing")
    draft.get_by_label(re.compile(say("cue_countdown").split("（")[0])).fill("120")
    draft.get_by_label(re.compile(say("cue_watched").split("（")[0])).fill("180")
    form.get_by_role("button", name=say("cues_save")).click()
    expect(draft.get_by_text(say("field_number", min=1, max=1_000_000))).to_be_visible()
    draft.get_by_label(say("cue_points"), exact=True).fill("300")
    form.get_by_role("button", name=say("cues_save")).click()
    expect(form).to_have_count(0)
    shop.staff("POST", f"/v1/shows/{show}/start", {})
    expect(panel.get_by_role("group", name=say("status_live"))).to_be_visible()
    panel.keyboard.press("z")
    card = viewer.get_by_role("article", name="看满三分钟领积分")
    expect(card).to_contain_text(words("what.points.n", n=300))
    expect(card.get_by_role("list", name=words("needs.label"))).to_have_text(
        words("needs.watched", time=words("lasting.minutes", n=3))
    )
    expect(card.get_by_role("button")).to_contain_text(words("seats.starts"))
    expect(card.get_by_role("button")).to_be_disabled()
