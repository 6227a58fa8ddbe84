"""The grace of a plan: said on the member's own page, and set with the plan at the desk."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Route, expect

from tests.browser.stage import DESK, PHONE, Peopled, Shop, nameless, sideways
from tests.browser.wording import Lang, Words


def in_grace(route: Route) -> None:
    """The server's own answer, as if the paid time were over and a renewal had failed."""
    answer = route.fetch()
    told = answer.json()
    told["plan"]["grace"] = True
    route.fulfill(response=answer, json=told)


@pytest.mark.parametrize(("size", "lang"), [(PHONE, "zh-CN"), (DESK, "en-GB")], ids=["phone-zh", "desk-en"])
def test_a_member_in_a_grace_is_told_until_when_and_may_renew(
    one_size: Peopled, shop: Shop, size: str, lang: Lang
) -> None:
    say = Words(lang)
    token = shop.member("许六")
    shop.join(token, shop.make_show())
    context = one_size(size).context(token=token, lang=lang)
    context.route("**/v1/me", in_grace)
    page = context.new_page()
    page.goto("/me/orders")
    page.get_by_role("tab", name=say("mine.me"), exact=True).click()
    card = page.locator(".plan-card").first
    until = re.compile(re.escape(say("me.grace")).replace(r"\{date\}", r".*\d.*"))
    expect(card).to_contain_text(until)
    expect(card).to_contain_text(say("me.grace.why"))
    expect(card.get_by_role("button", name=say("leave.open"))).to_have_count(0)
    assert nameless(page) == [] and sideways(page) == []
    card.get_by_role("button", name=say("me.renew")).click()
    until = re.compile(re.escape(say("join.grace.until")).replace(r"\{date\}", r".*\d.*"))
    expect(page.get_by_role("dialog")).to_contain_text(until)
    assert nameless(page) == [] and sideways(page) == []


def test_the_days_of_grace_are_set_with_the_plan_and_bounded_by_its_months(
    one_size: Peopled, shop: Shop
) -> None:
    say = Words("zh-CN", panel=True)
    panel = one_size(DESK).page("/panel/money#plans", staff=True)
    panel.get_by_role("button", name=say("plan_new")).click()
    dialog = panel.get_by_role("dialog")
    dialog.get_by_label(say("plan_name")).fill("宽限月卡")
    dialog.get_by_label(say("plan_fee")).fill("29")
    dialog.get_by_label(say("plan_months"), exact=True).fill("1")
    grace = dialog.get_by_label(say("plan_grace"), exact=True)
    expect(grace).to_have_value("0")
    grace.fill("15")
    dialog.get_by_role("button", name=say("plan_sell")).click()
    expect(grace).to_be_focused()
    expect(dialog).to_contain_text(say("field_number", min=0, max=14))
    assert nameless(panel) == [] and sideways(panel) == []
    grace.fill("14")
    dialog.get_by_role("button", name=say("plan_sell")).click()
    row = panel.get_by_role("listitem", name="宽限月卡")
    try:
        expect(row).to_contain_text(say("plan_grace_n", n=14))
    finally:
        for one in shop.staff("GET", "/v1/plans")["items"]:
            if one["id"] != shop.plan["id"]:
                shop.staff("PATCH", f"/v1/plans/{one['id']}", {"on_sale": False})
