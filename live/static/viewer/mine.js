// Mine: orders, benefits, and what the house knows of a person — with the way to have it forgotten.

import { useEffect, useId, useState } from "preact/hooks";

import { ask } from "./actions.js";
import { AddressBook, GiftTo } from "./addresses.js";
import { call, get } from "./api.js";
import { Meter } from "./bill.js";
import { Cases } from "./cases.js";
import { Grain, Icon, html } from "./dom.js";
import { dateText, money, shortTime } from "./format.js";
import { Gifts, parcelText, useGifts } from "./gifts.js";
import { plans, readPlans } from "./join.js";
import { OtherLanguage } from "./language.js";
import { OrderRow } from "./orders.js";
import { toBeSent } from "./receipt.js";
import { Busy, Field, Notice, Sheet, openSheet } from "./sheet.js";
import { applyYou, boot, isMember, orderNews, sheet, toast, won, you } from "./state.js";
import { signOut } from "./sign_in.js";
import { refusalText, t } from "./words.js";

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

function Orders() {
  const changed = Object.keys(orderNews.value).length + Object.values(orderNews.value).reduce((sum, one) => sum + (one.state?.length ?? 0) + (one.turn ?? 0), 0);
  const { list, error, more, read } = useList("/v1/me/orders", changed);
  if (list === null) return html`<${Waiting} error=${error} />`;
  if (!list.length) return html`<p class="empty">${t("orders.none")}</p>`;
  return html`<ul class="stack">${list.map((order) => html`<${OrderRow} key=${order.id} order=${order} changed=${read} />`)}</ul>
    ${more && html`<button type="button" class="button button--block" onClick=${more}>${t("more")}</button>`}
    <${Cases} />`;
}

export function Won({ benefit }) {
  const { state, parcel } = benefit;
  const word = parcel && state === "confirmed" ? (parcel.returned_at ? "gift.returned" : "gift.sent") : `benefit.${state}`;
  return html`<li class="card card--flat row" style=${{ "--gap": "12px" }}>
    <span class="rank"><${Grain} size="16" /><b class="num">${benefit.rank}</b></span>
    <span class="grow">
      <strong>${benefit.title}</strong><br />
      <span class="small muted">${[t("benefit.rank", { rank: benefit.rank, of: benefit.of }), benefit.value_fen ? t("benefit.worth", { sum: money(benefit.value_fen) }) : ""].filter(Boolean).join(" · ")}</span>
      ${parcel && html`<span class="small discount__more num">${parcelText(parcel)}</span>`}
      ${benefit.receipt && html`<br /><button type="button" class="link-button small" onClick=${() => openSheet("receipt", { benefit })}>${t("receipt.see")}</button>`}
    </span>
    <span class=${`badge ${state === "confirmed" ? "badge--ok" : "badge--warn"}`}>${t(word)}</span>
  </li>`;
}

const COUPONS_SHOWN = new Set(["free", "held"]);

/** What a coupon takes off, from which sum. */
function couponText(one) {
  const from = one.threshold_fen ? t("coupon.from", { sum: money(one.threshold_fen) }) : t("coupon.any");
  const most = one.max_off_fen ?? (one.kind === "freight" ? one.off_fen : null);
  const off =
    one.kind === "percent"
      ? t("coupon.percent", { fold: one.percent / 10, percent: 100 - one.percent })
      : one.kind === "freight"
        ? t("coupon.freight")
        : t("coupon.amount", { sum: money(one.off_fen) });
  return [from, off, most ? t("coupon.most", { sum: money(most) }) : ""].filter(Boolean).join(" ");
}

function Coupons() {
  const { list, more } = useList("/v1/me/coupons");
  const shown = (list ?? []).filter((one) => COUPONS_SHOWN.has(one.state));
  if (!shown.length) return null;
  return html`<section class="stack mine__cases">
    <h3>${t("coupon.mine")}</h3>
    <ul class="stack" style=${{ "--gap": "8px" }}>
      ${shown.map(
        (one) => html`<li key=${one.id} class="option coupon coupon--own">
          <span class="grow"><strong>${one.title}</strong><span class="small discount__more">${couponText(one)}</span>
            ${one.expires_at && html`<span class="tiny muted discount__more num">${t("coupon.until", { time: shortTime(one.expires_at) })}</span>`}</span>
          ${one.state === "held" && html`<span class="badge badge--warn">${t("coupon.held")}</span>`}
        </li>`,
      )}
    </ul>
    ${more && html`<button type="button" class="button button--block" onClick=${more}>${t("more")}</button>`}
  </section>`;
}

function Benefits() {
  const { list, error, more } = useList("/v1/me/benefits");
  const gifts = useGifts();
  const { plan } = you.value;
  useEffect(() => {
    if (plan) readPlans().catch(() => {}); // a gift of the plan itself is not known then; the list stands
  }, [plan?.id]);
  const planGift = plan && !plan.trial && plans.value?.find((one) => one.id === plan.id)?.gift_text;
  const to = (planGift || list?.some(toBeSent)) && html`<${GiftTo} />`;
  if (list === null) return html`<${Waiting} error=${error} />`;
  if (!list.length) return html`${to}<${Gifts} gifts=${gifts} />${!gifts.items?.length && html`<p class="empty">${t("benefits.none")}</p>`}<${Coupons} />`;
  return html`${to}<${Gifts} gifts=${gifts} /><ul class="stack">${list.map((one, i) => html`<${Won} key=${one.id ?? one.benefit ?? i} benefit=${one} />`)}</ul>
    <${Coupons} />
    ${more && html`<button type="button" class="button button--block" onClick=${more}>${t("more")}</button>`}`;
}

/** What the plan has saved since it began, part by part, against its fee. */
function Savings() {
  const [savings, setSavings] = useState(null);
  useEffect(() => {
    get("/v1/me/savings").then((answer) => setSavings(answer.savings), () => {}); // the plan's card stands without it
  }, [you.value.plan?.name]);
  if (!savings) return null;
  return html`<div class="saved">
    <h3 class="small">${t("savings.title", { sum: money(savings.total_fen) })}</h3>
    <${Meter} saves=${{ ...savings, goods_fen: savings.price_fen }} />
    ${savings.kind === "paid" && html`<p class="tiny">${savings.left_fen > 0 ? t("savings.left", { sum: money(savings.left_fen) }) : t("savings.back")}</p>`}
  </div>`;
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
          <p class="small">${plan ? t(plan.grace ? "me.grace" : plan.trial ? "me.trial" : "me.until", { date: dateText(plan.ends_at) }) : t("me.noplan")}</p>
        </div>
        <button type="button" class="button button--member" onClick=${() => openSheet("join")}>${plan && !plan.trial ? t("me.renew") : t("me.join")}</button>
      </div>
      ${plan?.grace && html`<p class="small">${t("me.grace.why")}</p>`}
      ${plan && !plan.trial && !plan.grace && html`<button type="button" class="link-button small plan-card__leave" onClick=${() => openSheet("leave")}>${t("leave.open")}</button>`}
    </section>
    ${plan && html`<${Savings} />`}
    <form class="stack" onSubmit=${save}>
      <${Field} id=${`${id}-name`} label=${t("me.nickname")} hint=${t("me.nickname.hint")} error=${error}>
        <div class="row">
          <input id=${`${id}-name`} class="input" value=${name} maxlength="20" autocomplete="nickname" onInput=${(event) => setName(event.target.value)} aria-describedby=${`${id}-name-${error ? "error" : "hint"}`} />
          <${Busy} busy=${busy} block=${false} kind="" type="submit">${t("save")}<//>
        </div>
      <//>
    </form>
    <section class="stack" style=${{ "--gap": "8px" }}>
      <h3>${t("address.label")}</h3>
      <${AddressBook} />
    </section>
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
      <${OtherLanguage} />
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
