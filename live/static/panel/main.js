// The panel's entry: who is at the desk, which page this is, and what holds for all of them.

import { render } from "preact";
import { useState } from "preact/hooks";
import { get, post } from "./api.js";
import { lang } from "./format.js";
import { Home } from "./home.js";
import { Money } from "./money.js";
import { Show } from "./show.js";
import { Button, Icon, IconButton, Menu, Problem, html, remember, t, useWide, whenSignedOut } from "./ui.js";

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function Tools({ me }) {
  const [night, setNight] = useState(dark);
  const [failure, setFailure] = useState(null);
  const turn = () => {
    const theme = night ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember("panel.theme", theme);
    setNight(!night);
  };
  const speak = () => {
    const other = lang() === "zh" ? "en" : "zh";
    const address = new URL(location.href);
    address.searchParams.set("lang", other);
    location.replace(address);
  };
  const out = async () => {
    try {
      await post("/v1/staff/sign-out");
      location.href = "/panel/sign-in";
    } catch (error) {
      if (error.status === 401) location.href = "/panel/sign-in";
      setFailure(error);
    }
  };
  return html`
    <${IconButton} name=${night ? "sun" : "moon"} label=${t(night ? "theme_light" : "theme_dark")} onClick=${turn} />
    <button type="button" class="tool-words" lang=${lang() === "zh" ? "en" : "zh-CN"} onClick=${speak}>${t("language")}</button>
    <span class="top__me small muted clip" title=${me.name}>${me.name}</span>
    <${IconButton} name="out" label=${failure ? t("named", { what: t("sign_out"), name: failure.message }) : t("sign_out")} onClick=${out} />
  `;
}

function Panel({ me, show, failure }) {
  const [out, setOut] = useState(null);
  const signedOut = (reason) => setOut(reason);
  const wide = useWide();
  whenSignedOut(signedOut);
  const tools = html`<${Tools} me=${me} />`;
  return html`
    ${out &&
    html`<div class="bar-notice bar-notice--top" role="alert">
      <div class="notice notice--bad"><${Icon} name="warn" /><p class="grow">${t("signed_out")}</p><a class="link-button" href=${`/panel/sign-in?next=${encodeURIComponent(location.pathname)}`}>${t("sign_in_title")}</a></div>
    </div>`}
    ${failure
      ? html`<main class="home" id="main"><${Problem} failure=${failure} onRetry=${() => location.reload()} /><a class="button" href="/panel">${t("back_to_list")}</a></main>`
      : location.pathname === "/panel/money"
        ? html`<${Money} me=${me} tools=${tools} />`
      : show
        ? html`<${Show} me=${me} show=${show} onSignedOut=${signedOut} tools=${tools} />`
        : html`<div class="screen screen--home">
            <header class="top">
              <span class="top__mark" aria-hidden="true"></span>
              <div class="top__title"><p class="strong">${t("panel")}</p></div>
              <a class="button" href="/panel/money">${t("money_desk")}</a>
              <${Menu} wide=${wide}>${tools}<//>
            </header>
            <${Home} me=${me} onSignedOut=${signedOut} />
          </div>`}
  `;
}

function Fatal({ failure }) {
  return html`<main class="home" id="main"><${Problem} failure=${failure} /><${Button} onClick=${() => location.reload()}>${t("retry")}<//></main>`;
}

async function start() {
  const place = document.getElementById("panel");
  const id = place.dataset.show || null;
  let me;
  try {
    me = await get("/v1/staff/me");
  } catch (failure) {
    if (failure.status === 401) {
      location.replace(`/panel/sign-in?next=${encodeURIComponent(location.pathname)}`);
      return;
    }
    render(html`<${Fatal} failure=${failure} />`, place);
    return;
  }
  let show = null;
  let failure = null;
  if (id) {
    try {
      const answer = await get(`/v1/shows/${id}`);
      show = answer.staff ?? answer;
      document.title = `${show.title} · ${t("panel")}`;
    } catch (error) {
      failure = error;
    }
  }
  place.textContent = "";
  render(html`<${Panel} me=${me} show=${show} failure=${failure} />`, place);
}

start();
