from tests.browser.stage import *
from tests.browser.test_panel import *
from playwright.sync_api import expect
def test_x(people, shop):
    show = shop.make_show()
    panel = people.panel(show)
    viewer = people.viewer(show, token=shop.member("孙八"))
    field = viewer.get_by_label("说点什么")
    for line in ("这个米是新米吗?", "加微信低价卖米"):
        field.fill(line)
        viewer.get_by_role("button", name="发送评论").click()
        expect(viewer.locator(".line--own:not(.line--pending)").filter(has_text=line)).to_be_visible()
    tab(panel, people, "评论")
    panel.keyboard.press("/")
    say_as_host(panel, "大家晚上好")
    panel.evaluate("""() => { window.told = []; const l = document.querySelector('.comments__list');
      for (const k of ['pointerenter','pointerleave','focusin','focusout','click','scroll','pointerdown']) l.addEventListener(k, e => told.push([k, Math.round(performance.now()), e.target.dataset?.seq ?? e.target.className, l.scrollTop, l.scrollHeight, l.clientHeight]), true); }""")
    q = panel.locator(".line").filter(has_text="这个米是新米吗?")
    q.click()
    panel.wait_for_timeout(600)
    print(people.size, panel.evaluate("told"), panel.evaluate("document.activeElement.outerHTML.slice(0,100)"))
    panel.screenshot(path=f"/tmp/w/x_{people.size}.png")
    print(q.inner_text())
