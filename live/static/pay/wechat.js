// Opens WeChat Pay inside WeChat's own browser, with what the shop signed, and goes back to the shop.
// What to open stands in the fragment of the address: it reaches no server and no log.

const state = document.getElementById("state");
const again = document.getElementById("again");
const back = document.getElementById("back");

/** {opening, back} from the fragment, or null for one that is none. */
export function readFragment(hash) {
  try {
    const text = atob(hash.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const said = JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (sign) => sign.charCodeAt(0))));
    const path = new URL(said.back, location.origin);
    return path.origin === location.origin && said.opening ? { opening: said.opening, back: said.back } : null;
  } catch {
    return null;
  }
}

const said = readFragment(location.hash);

function show(name) {
  state.textContent = state.dataset[name];
  state.dataset.state = name;
}

function open() {
  again.hidden = true;
  show("opening");
  window.WeixinJSBridge.invoke("getBrandWCPayRequest", said.opening, (answer) => {
    // What the browser says decides nothing: the order shows what the shop was told by WeChat.
    if (answer.err_msg === "get_brand_wcpay_request:ok") location.replace(`${said.back}paid`);
    else {
      show(answer.err_msg === "get_brand_wcpay_request:cancel" ? "cancelled" : "failed");
      again.hidden = false;
    }
  });
}

if (said === null) show("nothing");
else {
  back.href = `${said.back}returned`;
  again.addEventListener("click", open);
  if (window.WeixinJSBridge) open();
  else {
    show("outside");
    document.addEventListener("WeixinJSBridgeReady", open, { once: true });
  }
}
