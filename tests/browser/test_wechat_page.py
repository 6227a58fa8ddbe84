"""The page that opens WeChat Pay inside WeChat: what its browser is handed, and where it leads back to."""

from __future__ import annotations

import base64
import json

import pytest
from playwright.sync_api import Page, expect

from tests.browser.stage import PHONE, Peopled, Shop

OPENING = {"appId": "wx8888888888888888", "package": "prepay_id=wx21", "signType": "RSA"}
# WeChat's browser, as far as the page knows it: each call answers the next of these words.
BRIDGE = """
(words) => {
  window.opened = [];
  window.WeixinJSBridge = { invoke: (name, given, then) => {
    window.opened.push([name, given]);
    then({ err_msg: `get_brand_wcpay_request:${words.shift()}` });
  } };
}
"""


def fragment(back: str) -> str:
    said = json.dumps({"opening": OPENING, "back": back}).encode()
    return base64.urlsafe_b64encode(said).decode().rstrip("=")


@pytest.fixture
def page(one_size: Peopled) -> Page:
    return one_size(PHONE).context().new_page()


def test_a_cancelled_payment_may_be_tried_again_and_a_paid_one_leads_back(shop: Shop, page: Page) -> None:
    page.add_init_script(f"({BRIDGE})(['cancel', 'fail', 'ok'])")
    page.goto(f"{shop.url}/pay/wechat#{fragment('/?payment=')}")
    expect(page.locator("#state")).to_have_attribute("data-state", "cancelled")
    page.click("#again")
    expect(page.locator("#state")).to_have_attribute("data-state", "failed")
    assert page.evaluate("window.opened") == [["getBrandWCPayRequest", OPENING]] * 2
    page.click("#again")
    page.wait_for_url("**/?payment=paid")


@pytest.mark.parametrize(
    "back", ["//evil.test/?payment=", "https://evil.test/?payment=", "javascript:alert(1)//"]
)
def test_a_link_that_leads_elsewhere_opens_nothing(shop: Shop, page: Page, back: str) -> None:
    page.add_init_script(f"({BRIDGE})(['ok'])")
    page.goto(f"{shop.url}/pay/wechat#{fragment(back)}")
    expect(page.locator("#state")).to_have_attribute("data-state", "nothing")
    assert page.evaluate("window.opened") == []
    assert page.url.startswith(shop.url)


def test_outside_wechat_the_page_says_where_to_open_it(shop: Shop, page: Page) -> None:
    page.goto(f"{shop.url}/pay/wechat#{fragment('/me/orders?order=o1&payment=')}")
    expect(page.locator("#state")).to_have_attribute("data-state", "outside")
    expect(page.locator("#back")).to_have_attribute("href", "/me/orders?order=o1&payment=returned")
