// One order in full: where it stands, what is in it and why it costs that, what can be done about it.

import { useEffect, useState } from "preact/hooks";

import { get, once, post } from "./api.js";
import { AskWhy, Meter, Sums, savedBy } from "./bill.js";
import { CasesOf } from "./cases.js";
import { Countdown } from "./deck.js";
import { Icon, classes, html } from "./dom.js";
import { dayText, money, phone, shortTime, toMs } from "./format.js";
import { pay, plans, readPlans } from "./join.js";
import { Busy, Notice, Sheet, closeSheet, openSheet } from "./sheet.js";
import { isPlan, missed, orderNews, sheet, tick, toast, you } from "./state.js";
import { refusalText, t } from "./words.js";

const keys = new Map();
export const BADGES = { placed: "warn", paid: "ok", fulfilled: "ok", cancelled: "", expired: "", refunding: "info", refunded: "info" };
const RETURN_LOOKS_MS = [2_000, 4_000, 8_000, 15_000, 30_000]; // the last one again and again

/** The order as the page knows it now: what the socket told since it was read counts first. */
export function standing(order) {
  const news = orderNews.value[order.id];
  const state = news?.state && news.state !== "placed" ? news.state : order.state;
  const until = Math.max(toMs(order.hold_until) ?? 0, toMs(news?.hold_until) ?? 0);
  const open = state === "placed" && until > tick.value;
  const refundUntil = order.kind === "plan" && state === "paid" ? (toMs(order.refund_until) ?? missed.value?.refund_until ?? 0) : 0;
  // Refunded here, and back with the buyer, are two: the second is true once the provider has said so.
  const underWay = state === "refunded" && (order.state !== "refunded" || order.returning_fen > 0);
  const shown = underWay ? "refunding" : state === "placed" && !open ? "expired" : state;
  return { state, until, open, shown, lateRefund: refundUntil > tick.value ? refundUntil : 0 };
}

export function nameOf(order) {
  return order.lines?.find((line) => line.kind !== "gift")?.name ?? order.plan_name ?? t(`order.kind.${order.kind}`);
}

/** The acts on an order that may be done now. `changed` is called when the order should be read anew. */
export function OrderActs({ order, changed, large = false }) {
  const [busy, setBusy] = useState("");
  const { open, until, lateRefund } = standing(order);
  const act = (name, work) => async () => {
    if (busy) return;
    setBusy(name);
    try {
      await work();
    } catch (error) {
      toast(refusalText(error), "bad");
      changed();
    } finally {
      setBusy("");
    }
  };
  const path = `/v1/me/orders/${encodeURIComponent(order.id)}`;
  const cancel = act("cancel", async () => {
    await post(`${path}/cancel`);
    changed();
  });
  const takeBack = act("refund", async () => {
    await once(keys, ["refund", order.id], (key) => post(`${path}/refund`, {}, { key }));
    toast(t("order.refund.done"), "ok");
    changed();
  });
  return html`
    ${open &&
    html`<span class=${classes("row order__acts", large && "order__acts--large")}>
      <${Busy} kind="quiet" busy=${busy === "cancel"} block=${false} onClick=${cancel}>${t("order.cancel")}<//>
      <${Busy} busy=${busy === "pay"} block=${false} onClick=${act("pay", () => pay(order.id))}>${t("order.pay")} <${Countdown} until=${until} label=${t("order.pay.left")} /><//>
    </span>`}
    ${lateRefund > 0 &&
    html`<div class="order__late">
      <span class="small grow">${t("order.refund.why")}<br /><span class="muted num">${t("order.refund.until", { time: shortTime(lateRefund) })}</span></span>
      <${Busy} busy=${busy === "refund"} block=${false} kind="danger" onClick=${takeBack}>${t("order.refund")}<//>
    </div>`}
  `;
}

// — a payment that failed —

/** Said at once, with the way to try again: the same order, and what is held for it. */
export function FailedSheet() {
  const { order } = sheet.value;
  const [busy, setBusy] = useState(false);
  const { state, until, open } = standing(order);
  const again = async () => {
    setBusy(true);
    try {
      await pay(order.id);
    } catch (error) {
      setBusy(false);
      toast(refusalText(error), "bad");
    }
  };
  const foot = html`<div class="stack">
    ${open && html`<${Busy} busy=${busy} large onClick=${again} data-focus>${t("order.failed.again", { sum: money(order.total_fen) })}<//>`}
    <${Busy} kind="quiet" onClick=${closeSheet}>${t(open ? "order.failed.later" : "close")}<//>
  </div>`;
  return html`<${Sheet} title=${t("order.failed")} foot=${foot}>
    <div class="stack" style=${{ "--gap": "16px" }}>
      ${open
        ? html`<${Notice} kind="bad" icon="warn" role="alert">${t("order.failed.means")}<//>`
        : html`<${Notice} icon="info" role="status">${t(state === "placed" ? "order.expired" : `order.${state}`)}<//>`}
      <dl class="pairs">
        <dt>${nameOf(order)}</dt><dd>${money(order.total_fen)}</dd>
        ${open && html`<dt>${t("order.pay.left")}</dt><dd><${Countdown} until=${until} label=${t("order.pay.left")} /></dd>`}
      </dl>
    </div>
  <//>`;
}

// — where it stands —

const wholly = (shown) => shown === "refunding" || shown === "refunded";

/** The steps that were, that is, and that will be; each with its time. */
function stepsOf(order, shown, until) {
  const steps = [{ name: "placed", at: order.placed_at, done: true }];
  if (order.paid_at || shown === "paid" || shown === "fulfilled") {
    steps.push({ name: "paid", at: order.paid_at, done: true });
  } else if (shown === "placed") {
    steps.push({ name: "held", until, now: true }, { name: "paid" });
  }
  const goods = order.kind === "goods";
  const ended = ["cancelled", "expired", "refunding", "refunded"].includes(shown);
  const sent = order.fulfilled_at ?? order.parcels?.[0]?.sent_at;
  if (goods && (sent || !ended)) {
    const done = shown === "fulfilled" || Boolean(sent);
    steps.push({ name: "fulfilled", at: sent, done, now: !done && shown === "paid", promised: !done && (order.promised_until ?? order.promised_from) });
  }
  if (order.refunded_fen > 0 && !wholly(shown)) steps.push({ name: "part_refunded", sum: order.refunded_fen, done: true });
  if (ended) steps.push({ name: shown, at: order.closed_at, done: true, end: true });
  return steps;
}

function Timeline({ order, shown, until }) {
  return html`<ol class="timeline" aria-label=${t("order.timeline")}>
    ${stepsOf(order, shown, until).map(
      (step) => html`<li key=${step.name} class=${classes("timeline__step", step.done && "timeline__step--done", step.now && "timeline__step--now", step.end && "timeline__step--end")} aria-current=${step.now ? "step" : null}>
        <span class="grow">${t(`step.${step.name}`)}
          ${step.promised && html`<span class="tiny muted timeline__more">${t("order.promised", { date: dayText(step.promised) })}</span>`}
        </span>
        ${step.until && html`<${Countdown} until=${step.until} label=${t("order.pay.left")} />`}
        ${step.sum > 0 && html`<span class="num">${money(step.sum)}</span>`}
        ${step.at && html`<time class="tiny muted num" datetime=${new Date(step.at).toISOString()}>${shortTime(step.at)}</time>`}
      </li>`,
    )}
  </ol>`;
}

function Parcels({ order }) {
  if (!order.parcels?.length) return null;
  const copy = (text) => navigator.clipboard?.writeText(text).then(() => toast(t("order.copied"), "ok"), () => {});
  return html`<section class="stack" style=${{ "--gap": "6px" }}>
    <h3>${t("order.parcels")}</h3>
    <ul class="list">
      ${order.parcels.map(
        (one) => html`<li key=${one.tracking} class="list__row parcel">
          <${Icon} name="bag" />
          <span class="grow"><strong>${one.carrier}</strong>${one.returned_at ? html` <span class="badge badge--info">${t("order.parcel.returned")}</span>` : one.case ? html` <span class="badge">${t("order.parcel.again")}</span>` : ""}<br /><span class="num">${one.tracking}</span></span>
          ${navigator.clipboard && html`<button type="button" class="button button--small" onClick=${() => copy(one.tracking)}>${t("order.copy")}</button>`}
        </li>`,
      )}
    </ul>
  </section>`;
}

// — what is in it —

function Line({ line, order }) {
  const gift = line.kind === "gift";
  const off = (line.coupon_fen ?? 0) + (line.points_fen ?? 0);
  return html`<li class="order-line">
    <div class="row row--apart order-line__head">
      <span class="grow">${gift && html`<span class="badge badge--plan">${t("order.gift")}</span> `}${line.name} <span class="muted num">× ${line.quantity}</span></span>
      <strong class="num">${line.left_out ? "" : gift ? (line.gift_value_fen ? t("benefit.worth", { sum: money(line.gift_value_fen * line.quantity) }) : "") : money(line.line_fen)}</strong>
    </div>
    ${!gift && order.kind === "goods" && html`<p class="tiny muted num">${t("order.line.unit", { price: money(line.unit_fen), kind: t(`candidate.${line.winner}`) })}</p>`}
    ${line.parts?.length > 0 && html`<p class="tiny muted">${t("bundle.parts", { parts: line.parts.map((one) => `${one.name} × ${one.quantity}`).join(" · ") })}</p>`}
    ${line.ship_by && html`<p class="tiny muted">${t("presale.by", { date: dayText(line.ship_by) })}</p>`}
    ${off > 0 && html`<p class="tiny muted num">${[line.coupon_fen > 0 && t("order.line.coupon", { sum: money(line.coupon_fen) }), line.points_fen > 0 && t("order.line.points", { sum: money(line.points_fen) })].filter(Boolean).join(" · ")}</p>`}
    ${line.refunded > 0 && html`<p class="tiny"><span class="badge badge--info">${t("order.line.refunded", { n: line.refunded })}</span></p>`}
    ${line.left_out && html`<p class="tiny"><span class="badge badge--info">${t("order.line.left_out")}</span> <span class="muted">${t("order.line.left_out.why")}</span></p>`}
    ${!gift && html`<${AskWhy} line=${line} />`}
  </li>`;
}

function Saved({ order }) {
  const plan = (plans.value ?? []).find((one) => one.name === you.value.plan?.name);
  const saves = savedBy(order);
  if (!(saves.total_fen > 0)) return null;
  const fee = isPlan.value && plan ? { fee_fen: plan.fee_fen, plan_name: plan.name } : {};
  return html`<section class="saved">
    <h3 class="small">${t("order.saved", { sum: money(saves.total_fen) })}</h3>
    <${Meter} saves=${{ ...saves, ...fee }} />
    <p class="tiny muted">${t("order.saved.how")}</p>
  </section>`;
}

// — the page of it —

export function OrderSheet() {
  const { order: id } = sheet.value;
  const [order, setOrder] = useState(null);
  const [error, setError] = useState("");
  const { state: toldState, turn = 0 } = orderNews.value[id] ?? {};
  const read = async () => {
    try {
      setOrder(await get(`/v1/me/orders/${encodeURIComponent(id)}`));
      setError("");
    } catch (refusal) {
      setError(refusalText(refusal));
    }
  };
  useEffect(() => {
    read();
  }, [id, toldState, turn]);
  useEffect(() => {
    if (isPlan.value) readPlans().catch(() => {}); // the fee is one line of the meter; without it the parts stand
  }, [isPlan.value]);
  // The provider's word about money that goes back reaches the order, not the socket: looked at ever more seldom.
  const [looks, setLooks] = useState(0);
  const returning = order?.returning_fen > 0;
  useEffect(() => {
    if (!returning) return undefined;
    const timer = setTimeout(() => read().then(() => setLooks(looks + 1)), RETURN_LOOKS_MS[Math.min(looks, RETURN_LOOKS_MS.length - 1)]);
    return () => clearTimeout(timer);
  }, [id, returning, looks]);
  const back = () => openSheet("mine", { tab: "orders" });
  if (!order) {
    return html`<${Sheet} title=${t("order.title")} onBack=${back}>
      ${error ? html`<${Notice} kind="bad" icon="warn">${error}<//>` : html`<div class="skeleton" style=${{ height: "240px" }}></div>`}
    <//>`;
  }
  const { shown, until, open, lateRefund } = standing(order);
  const goods = order.kind === "goods";
  const askable = order.lines?.some((line) => line.kind !== "gift" && !line.case && line.quantity > (line.refunded ?? 0));
  const mayAsk = goods && ["paid", "fulfilled"].includes(shown) && askable;
  const foot =
    (open || lateRefund > 0 || mayAsk) &&
    html`<div class="stack">
      <${OrderActs} order=${order} changed=${read} large />
      ${mayAsk && html`<button type="button" class="button button--block" onClick=${() => openSheet("case", { order: id })}>${t("case.open")}</button>`}
    </div>`;
  return html`<${Sheet} title=${t("order.title")} onBack=${back} foot=${foot}>
    <div class="stack order-page" style=${{ "--gap": "18px" }}>
      <header class="order-page__head">
        <div class="grow">
          <p class="display order-page__state">${t(`order.${shown}`)}</p>
          ${goods && html`<p class="small muted">${t(order.priority && shown === "paid" ? "order.paid.first" : `order.${shown}.means`)}</p>`}
        </div>
        <p class="order-page__total num">${money(order.total_fen)}</p>
      </header>
      ${error && html`<${Notice} kind="bad" icon="warn">${error}<//>`}
      ${order.returning_fen > 0 && !wholly(shown) && html`<${Notice} icon="clock">${t("order.returning", { sum: money(order.returning_fen) })}<//>`}
      <${Timeline} order=${order} shown=${shown} until=${until} />
      <${Parcels} order=${order} />
      <section class="stack" style=${{ "--gap": "6px" }}>
        <h3>${t("order.lines")}</h3>
        <ul class="order-lines">
          ${goods
            ? order.lines.filter((line) => line.kind !== "gift" || !wholly(shown)).map((line, i) => html`<${Line} key=${i} line=${line} order=${order} />`)
            : html`<li class="order-line"><div class="row row--apart"><span>${order.plan_name ?? t("order.kind.plan")}</span><strong class="num">${money(order.total_fen)}</strong></div></li>`}
        </ul>
      </section>
      ${goods && html`<section class="bill"><${Sums} of=${order} /><p class="bill__total row row--apart"><span>${t("buy.total")}</span><strong class="num">${money(order.total_fen)}</strong></p></section>`}
      ${goods && !wholly(shown) && html`<${Saved} order=${order} />`}
      <${CasesOf} order=${id} />
      ${order.address?.name &&
      html`<section class="stack" style=${{ "--gap": "2px" }}>
        <h3>${t("address.label")}</h3>
        <p class="small"><strong>${order.address.name}</strong> <span class="num muted">${phone(order.address.phone ?? "")}</span><br />${order.address.region} ${order.address.detail}</p>
      </section>`}
      <p class="tiny muted num order-page__id">${t("order.number", { id })}</p>
    </div>
  <//>`;
}

/** A row of the list: what it was, where it stands, and the way into it. */
export function OrderRow({ order, changed }) {
  const { shown } = standing(order);
  const lines = order.lines ?? [];
  const see = () => openSheet("order", { order: order.id });
  return html`<li class="order card card--flat">
    <div class="row row--apart">
      <span class="small muted num">${order.placed_at ? shortTime(order.placed_at) : ""}</span>
      <span class=${classes("badge", BADGES[shown] && `badge--${BADGES[shown]}`)}>${t(`order.${shown}`)}</span>
    </div>
    <ul class="order__lines">
      ${lines.length
        ? lines.filter((line) => line.kind !== "gift" || !wholly(shown)).map(
            (line, i) => html`<li key=${i} class="row row--apart"><span class="grow">${line.name} <span class="muted num">× ${line.quantity}</span></span><span class="num">${line.left_out ? t("order.line.left_out") : line.kind === "gift" ? t("order.gift") : money(line.line_fen)}</span></li>`,
          )
        : html`<li class="row row--apart"><span>${order.plan_name ?? t(`order.kind.${order.kind}`)}</span></li>`}
    </ul>
    <div class="row row--apart order__foot">
      <strong class="num">${t("order.total", { sum: money(order.total_fen) })}</strong>
      <button type="button" class="link-button small" onClick=${see} aria-label=${t("order.see.of", { name: nameOf(order) })}>${t("order.see")}</button>
    </div>
    <${OrderActs} order=${order} changed=${changed} />
    ${order.refunded_fen > 0 && !wholly(shown) && html`<p class="small">${t("order.part", { sum: money(order.refunded_fen) })}</p>`}
    ${order.returning_fen > 0 && !wholly(shown) && html`<p class="small">${t("order.returning", { sum: money(order.returning_fen) })}</p>`}
  </li>`;
}
