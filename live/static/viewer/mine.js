// Mine: orders, benefits, and what the house knows of a person — with the way to have it forgotten.

import { useEffect, useId, useState } from "preact/hooks";

import { ask } from "./actions.js";
import { call, get, once, post } from "./api.js";
import { Countdown } from "./deck.js";
import { Grain, Icon, html } from "./dom.js";
import { dateText, money, shortTime } from "./format.js";
import { pay } from "./join.js";
import { Busy, Field, Notice, Sheet, openSheet } from "./sheet.js";
import { applyYou, boot, isMember, missed, orderNews, sheet, tick, toast, won, you } from "./state.js";
import { signOut } from "./sign_in.js";
import { lang, refusalText, t } from "./words.js";

const keys = new Map();
const TABS = ["orders", "benefits", "me"];

/** Read a list part by part; read again when `again` changes. */
function useList(path, again = 0) {
  const [list, setList] = useState(null);
  const [more, setMore] = useState(null);
  const [error, setError] = useState("");
  const read = async (cursor) => {
    try {
      const answer = await get(cursor ? `${path}?cursor=${encodeURIComponent(cursor)}` : path);
      setList((old) => (cursor ? [...(old ?? []), ...answer.items] : answer.items));
      setMore(answer.next);
      setError("");
    } catch (refusal) {
      setError(refusalText(refusal));
    }
  };
  useEffect(() => {
    read(null);
  }, [path, again]);
  return { list, error, more: more && (() => read(more)), read: () => read(null) };
}

function Waiting({ error }) {
  if (error) return html`<${Notice} kind="bad" icon="warn">${error}<//>`;
  return html`<div class="stack">${[0, 1, 2].map((i) => html`<div key=${i} class="skeleton" style=${{ height: "84px" }}></div>`)}</div>`;
}

const BADGES = { placed: "warn", held: "warn", paid: "ok", cancelled: "", expired: "", refunded: "info", returning: "info" };

function Order({ order, onChanged }) {
  const [busy, setBusy] = useState("");
  const news = orderNews.value[order.id];
  const state = news?.state ?? order.state;
  const until = order.hold_until;
  const refundUntil = order.kind === "plan" && state === "paid" ? (order.refund_until ?? missed.value?.refund_until ?? 0) : 0;
  const open = state === "placed" && until > tick.value;
  const lapsed = state === "placed" && !open;
  const act = (name, work) => async () => {
    setBusy(name);
    try {
      await work();
    } catch (error) {
      toast(refusalText(error), "bad");
      onChanged();
    } finally {
      setBusy("");
    }
  };
  const shown = lapsed ? "expired" : state;
  const lines = order.lines ?? [];
  return html`<li class="order card card--flat">
    <div class="row row--apart">
      <span class="small muted num">${order.placed_at ? shortTime(order.placed_at) : ""}</span>
      <span class=${`badge ${BADGES[shown] ? `badge--${BADGES[shown]}` : ""}`}>${t(`order.${shown}`)}</span>
    </div>
    <ul class="order__lines">
      ${lines.length
        ? lines.map(
            (line, i) => html`<li key=${i} class="row row--apart"><span class="grow">${line.name} <span class="muted num">× ${line.quantity}</span></span><span class="num">${line.kind === "gift" ? t("order.gift") : money(line.line_fen)}</span></li>`,
          )
        : html`<li class="row row--apart"><span>${order.plan_name ?? t(`order.kind.${order.kind}`)}</span></li>`}
    </ul>
    <div class="row row--apart">
      <strong class="num">${t("order.total", { sum: money(order.total_fen) })}</strong>
      ${open &&
      html`<span class="row">
        <button type="button" class="button button--small button--quiet" onClick=${act("cancel", async () => {
          await post(`/v1/me/orders/${encodeURIComponent(order.id)}/cancel`);
          onChanged();
        })}>${t("order.cancel")}</button>
        <${Busy} busy=${busy === "pay"} block=${false} onClick=${act("pay", () => pay(order.id))}>${t("order.pay")} <${Countdown} until=${until} /><//>
      </span>`}
    </div>
    ${refundUntil > tick.value &&
    html`<div class="row row--apart">
      <span class="small">${t("order.refund.why")}</span>
      <${Busy} busy=${busy === "refund"} block=${false} kind="danger" onClick=${act("refund", async () => {
        await once(keys, ["refund", order.id], (key) => post(`/v1/me/orders/${encodeURIComponent(order.id)}/refund`, {}, { key }));
        onChanged();
      })}>${t("order.refund")}<//>
    </div>`}
    ${order.returning_fen > 0 && html`<p class="small">${t("order.returning", { sum: money(order.returning_fen) })}</p>`}
  </li>`;
}

function Orders() {
  const changed = Object.keys(orderNews.value).length + Object.values(orderNews.value).reduce((sum, one) => sum + one.state.length, 0);
  const { list, error, more, read } = useList("/v1/me/orders", changed);
  if (list === null) return html`<${Waiting} error=${error} />`;
  if (!list.length) return html`<p class="empty">${t("orders.none")}</p>`;
  return html`<ul class="stack">${list.map((order) => html`<${Order} key=${order.id} order=${order} onChanged=${read} />`)}</ul>
    ${more && html`<button type="button" class="button button--block" onClick=${more}>${t("more")}</button>`}`;
}

/** The signed receipt: its text can be selected where there is no clipboard (plain http). */
function Receipt({ text }) {
  const copy = () => navigator.clipboard.writeText(text).then(() => toast(t("receipt.copied"), "ok"), () => {});
  return html`<details class="small">
    <summary>${t("receipt")}</summary>
    <p class="num" style=${{ overflowWrap: "anywhere", userSelect: "all" }}>${text}</p>
    ${navigator.clipboard && html`<button type="button" class="button button--small" onClick=${copy}>${t("receipt.copy")}</button>`}
    <p class="muted">${t("receipt.how")}</p>
  </details>`;
}

export function Won({ benefit }) {
  const { state } = benefit;
  return html`<li class="card card--flat row" style=${{ "--gap": "12px" }}>
    <span class="rank"><${Grain} size="16" /><b class="num">${benefit.rank}</b></span>
    <span class="grow">
      <strong>${benefit.title}</strong><br />
      <span class="small muted">${[t("benefit.rank", { rank: benefit.rank, of: benefit.of }), benefit.value_fen ? t("benefit.worth", { sum: money(benefit.value_fen) }) : ""].filter(Boolean).join(" · ")}</span>
      ${benefit.receipt && html`<${Receipt} text=${benefit.receipt} />`}
    </span>
    <span class=${`badge ${state === "confirmed" ? "badge--ok" : "badge--warn"}`}>${t(`benefit.${state}`)}</span>
  </li>`;
}

function Benefits() {
  const { list, error, more } = useList("/v1/me/benefits");
  if (list === null) return html`<${Waiting} error=${error} />`;
  if (!list.length) return html`<p class="empty">${t("benefits.none")}</p>`;
  return html`<ul class="stack">${list.map((one, i) => html`<${Won} key=${one.id ?? one.benefit ?? i} benefit=${one} />`)}</ul>
    ${more && html`<button type="button" class="button button--block" onClick=${more}>${t("more")}</button>`}`;
}

function Me() {
  const id = useId();
  const [name, setName] = useState(you.value.name ?? "");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const tags = useList("/v1/me/tags");
  const plan = you.value.plan;
  const save = async (event) => {
    event?.preventDefault();
    setBusy(true);
    setError("");
    try {
      const answer = await call("PATCH", "/v1/me", { nickname: name.trim() });
      applyYou({ ...you.value, name: answer.name });
      toast(t("me.saved"), "ok");
    } catch (refusal) {
      setError(refusalText(refusal));
    } finally {
      setBusy(false);
    }
  };
  const forget = async (tag) => {
    try {
      await call("DELETE", `/v1/me/tags/${encodeURIComponent(tag.id)}`);
      tags.read();
    } catch (refusal) {
      toast(refusalText(refusal), "bad");
    }
  };
  return html`<div class="stack" style=${{ "--gap": "20px" }}>
    <section class="plan-card">
      <div class="row row--apart">
        <div>
          <h3 class="display">${plan ? plan.name : t("me.registered")}</h3>
          <p class="small">${plan ? t(plan.trial ? "me.trial" : "me.until", { date: dateText(plan.ends_at) }) : t("me.noplan")}</p>
        </div>
        <button type="button" class="button button--member" onClick=${() => openSheet("join")}>${plan && !plan.trial ? t("me.renew") : t("me.join")}</button>
      </div>
    </section>
    <form class="stack" onSubmit=${save}>
      <${Field} id=${`${id}-name`} label=${t("me.nickname")} hint=${t("me.nickname.hint")} error=${error}>
        <div class="row">
          <input id=${`${id}-name`} class="input" value=${name} maxlength="20" autocomplete="nickname" onInput=${(event) => setName(event.target.value)} aria-describedby=${`${id}-name-${error ? "error" : "hint"}`} />
          <${Busy} busy=${busy} block=${false} kind="" type="submit">${t("save")}<//>
        </div>
      <//>
    </form>
    ${tags.list?.length > 0 &&
    html`<section class="stack">
      <h3>${t("me.tags")}</h3>
      <p class="small muted">${t("me.tags.hint")}</p>
      <ul class="list">
        ${tags.list.map(
          (tag) => html`<li key=${tag.id} class="list__row">
            <span class="grow">${tag.name}<br /><span class="tiny muted">${t("me.tags.why", { why: tag.rule_text, n: tag.events })}</span></span>
            <button type="button" class="icon-button" onClick=${() => forget(tag)} aria-label=${t("me.tags.drop", { name: tag.name })}><${Icon} name="close" /></button>
          </li>`,
        )}
      </ul>
    </section>`}
    ${tags.error && html`<${Notice} kind="bad" icon="warn">${tags.error}<//>`}
    <div class="row row--apart">
      <a class="link-button" href=${`?lang=${lang === "zh" ? "en" : "zh"}`} lang=${lang === "zh" ? "en" : "zh-CN"} hreflang=${lang === "zh" ? "en" : "zh-CN"}>${lang === "zh" ? "English" : "中文"}</a>
      <button type="button" class="button button--quiet" onClick=${signOut}>${t("sign.out")}</button>
    </div>
  </div>`;
}

let readFor = null;

/** After coming in as a member: what waits for payment, and what was won here before. */
export async function readMine() {
  const who = you.value.id;
  if (boot.preview || !isMember.value || readFor === who) return;
  readFor = who;
  try {
    const [orders, benefits] = await Promise.all([get("/v1/me/orders"), get("/v1/me/benefits")]);
    const news = {};
    for (const order of orders.items) if (order.state === "placed") news[order.id] = { ...order, order: order.id };
    orderNews.value = { ...news, ...orderNews.value };
    const ranks = {};
    for (const one of benefits.items) if (one.rank) ranks[one.benefit] = { rank: one.rank, of: one.of };
    won.value = { ...ranks, ...won.value };
  } catch {
    readFor = null; // asked again at the next welcome
  }
}

export function openMine(tab = "orders") {
  if (boot.preview) {
    toast(t("preview.only"));
    return;
  }
  if (isMember.value) openSheet("mine", { tab });
  else ask("mine", {}, () => openSheet("mine", { tab }));
}

export function MineSheet() {
  const tab = sheet.value.tab ?? "orders";
  const go = (name) => {
    sheet.value = { ...sheet.value, tab: name };
  };
  const onKey = (event) => {
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const next = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
    go(next);
    event.currentTarget.querySelector(`[data-tab="${next}"]`).focus();
  };
  return html`<${Sheet} title=${you.value.name || t("mine.title")}>
    <div class="tabs" role="tablist" aria-label=${t("mine.title")} onKeyDown=${onKey}>
      ${TABS.map(
        (name) => html`<button key=${name} id=${`tab-${name}`} type="button" role="tab" class="tab" data-tab=${name} aria-selected=${name === tab} aria-controls="mine-panel" tabindex=${name === tab ? 0 : -1} onClick=${() => go(name)}>${t(`mine.${name}`)}</button>`,
      )}
    </div>
    <div class="mine" id="mine-panel" role="tabpanel" aria-labelledby=${`tab-${tab}`} tabindex="0">
      ${tab === "orders" ? html`<${Orders} />` : tab === "benefits" ? html`<${Benefits} />` : html`<${Me} />`}
    </div>
  <//>`;
}
