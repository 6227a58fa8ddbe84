// Joining: what a plan costs and gives, the trial, and the seat that is held while one pays.

import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";

import { ask } from "./actions.js";
import { get, once, post } from "./api.js";
import { Seats, whatFor } from "./benefits.js";
import { Countdown } from "./deck.js";
import { Grain, Icon, html } from "./dom.js";
import { Price, dateText, money, toMs } from "./format.js";
import { Busy, Notice, Sheet, closeSheet } from "./sheet.js";
import { benefits, boot, offers, seatCounts, seats, sheet, tick, toast, unpaid, won, you } from "./state.js";
import { refusalText, t } from "./words.js";

export const plans = signal(null); // null: not read yet
const heldJoin = signal(null); // the order of a plan waiting for its payment
export const afterTrial = signal(0);
const keys = new Map();

export async function readPlans() {
  if (plans.value) return plans.value;
  const answer = await get("/v1/plans");
  plans.value = answer.items.filter((plan) => plan.on_sale !== false);
  return plans.value;
}

const refundRule = signal(null); // {whole_days, later}, as the server has it

async function readRefundRule() {
  refundRule.value ??= await get("/v1/refund-rule").catch(() => null); // the plain terms stand without it
}

/** What giving it back will cost, said before one pays. */
function refundTerms() {
  const rule = refundRule.value;
  if (!rule) return t("join.terms");
  return t(rule.later === "pro_rata" ? "join.terms.pro_rata" : "join.terms.end", { n: rule.whole_days });
}

function period(plan) {
  return plan.period_months === 12 ? t("plan.year") : t("plan.months", { n: plan.period_months });
}

/** What the plan gives, one line each, in the plan's own numbers. */
export function Gives({ plan }) {
  const saves = offers.value.filter((offer) => offer.member_fen != null && offer.member_fen < offer.list_fen);
  const rows = [
    saves.length
      ? t("plan.gives.price.now", { name: saves[0].product.name, list: money(saves[0].list_fen), member: money(saves[0].member_fen) })
      : plan.percent
        ? t("plan.gives.percent", { fold: plan.percent / 10, percent: 100 - plan.percent })
        : t("plan.gives.price"),
    plan.free_freight !== false && t("plan.gives.freight"),
    plan.points_bonus_percent && t("plan.gives.points", { percent: plan.points_bonus_percent }),
    plan.gift_text && (plan.gift_value_fen ? t("plan.gives.gift", { gift: plan.gift_text, sum: money(plan.gift_value_fen) }) : plan.gift_text),
    ...(plan.gifts ?? []).map((gift) => {
      const gives = t("plan.gives.every", { every: t(`gift.every.${gift.every}`), title: gift.title });
      return gift.value_fen ? t("plan.gives.gift.worth", { gives, sum: money(gift.value_fen) }) : gives;
    }),
    t("plan.gives.rooms"),
  ].filter(Boolean);
  return html`<ul class="gives">${rows.map((row) => html`<li key=${row}><${Grain} size="15" /><span>${row}</span></li>`)}</ul>`;
}

export async function startTrial(plan) {
  const body = { plan: plan.id, show: boot.show?.id ?? null };
  await once(keys, ["trial", body], (key) => post("/v1/me/trial", body, { key }));
}

export async function pay(order) {
  const answer = await post(`/v1/me/orders/${encodeURIComponent(order)}/payment`);
  location.assign(answer.payment_url);
}

export function JoinSheet() {
  const [chosen, setChosen] = useState(null);
  const [busy, setBusy] = useState("");
  const [error, setError] = useState("");
  const [placed, setPlaced] = useState(null); // {order, payment_url, seat}
  const benefit = benefits.value.find((one) => one.needs === "join" && (one.id === sheet.value?.benefit || !sheet.value?.benefit));

  useEffect(() => {
    readPlans().catch((refusal) => setError(refusalText(refusal)));
    readRefundRule();
  }, []);

  const list = plans.value ?? [];
  const waiting = placed ? null : waitingFor(benefit);
  const plan = list.find((one) => one.id === chosen) ?? list.find((one) => one.id === waiting?.plan) ?? list[0];
  const current = you.value.plan;

  const join = () =>
    ask("join", {}, async () => {
      if (sheet.value?.name !== "join") sheet.value = { name: "join", benefit: benefit?.id };
      setBusy("join");
      setError("");
      try {
        const body = { plan: plan.id, show: boot.show?.id ?? null };
        const answer = await once(keys, ["join", body], (key) => post("/v1/me/joins", { ...body, key }, { key }));
        const seat = answer.seat ?? null;
        if (seat?.until) seats.value = { ...seats.value, [seat.benefit]: { until: toMs(seat.until) } };
        if (seat) {
          heldJoin.value = { ...answer, plan: plan.id };
          setPlaced(answer);
        } else location.assign(answer.payment_url);
      } catch (refusal) {
        setError(refusalText(refusal));
      } finally {
        setBusy("");
      }
    });

  const trial = () =>
    ask("trial", {}, async () => {
      if (sheet.value?.name !== "join") sheet.value = { name: "join", benefit: benefit?.id };
      setBusy("trial");
      setError("");
      try {
        await startTrial(plan);
        toast(t("trial.started", { n: plan.trial_days }), "ok");
        closeSheet();
        afterTrial.value += 1;
      } catch (refusal) {
        setError(refusalText(refusal));
      } finally {
        setBusy("");
      }
    });

  const held = placed ?? (heldJoin.value && heldJoin.value.plan === plan?.id && stillHeld(heldJoin.value) ? heldJoin.value : null) ?? (waiting?.plan === plan?.id ? waiting : null);
  if (held) return html`<${HeldSheet} placed=${held} plan=${plan} benefit=${benefit} />`;
  const mayTry = plan?.trial_days > 0 && !current;
  const counts = benefit ? seatCounts(benefit) : null;
  const foot = plan
    ? html`<div class="stack">
        ${error && html`<p class="field__error" role="alert">${error}</p>`}
        <${Busy} busy=${busy === "join"} kind="member" large onClick=${join} data-focus>
          ${current && !current.trial ? t("join.renew", { sum: money(plan.fee_fen) }) : t("join.go", { sum: money(plan.fee_fen) })}
        <//>
        ${mayTry && html`<${Busy} busy=${busy === "trial"} kind="quiet" onClick=${trial}>${t("trial.go", { n: plan.trial_days })}<//>`}
      </div>`
    : error && html`<p class="field__error" role="alert">${error}</p>`;
  return html`<${Sheet} title=${t("join.title")} foot=${foot}>
    <div class="stack" style=${{ "--gap": "16px" }}>
      ${current &&
      html`<${Notice} kind=${current.grace ? "warn" : "ok"} icon=${current.grace ? "clock" : "check"}>${t(current.grace ? (current.id === plan?.id ? "join.grace.until" : "join.grace.other") : current.trial ? "join.trial.until" : "join.until", { date: dateText(current.ends_at) })}<//>`}
      ${plans.value === null && !error && html`<div class="skeleton" style=${{ height: "180px" }}></div>`}
      ${list.length > 1 &&
      html`<div class="stack" role="radiogroup" aria-label=${t("join.plans")} style=${{ "--gap": "8px" }}>
        ${list.map(
          (one) => html`<label class="option" key=${one.id}>
            <input type="radio" name="plan" checked=${one === plan} onChange=${() => setChosen(one.id)} />
            <span class="grow"><strong>${one.name}</strong><br /><span class="small muted">${period(one)}</span></span>
            <${Price} minor=${one.fee_fen} />
          </label>`,
        )}
      </div>`}
      ${plan &&
      html`<section class="plan-card">
        <header class="row row--apart">
          <div><h3 class="display">${plan.name}</h3><p class="small">${period(plan)}</p></div>
          <p class="plan-card__fee"><${Price} minor=${plan.fee_fen} /></p>
        </header>
        <${Gives} plan=${plan} />
      </section>`}
      ${benefit &&
      html`<section class="card card--flat stack" style=${{ "--gap": "8px" }}>
        <h3 class="row"><${Icon} name="gift" />${benefit.title}</h3>
        <p class="small">${whatFor(benefit)}</p>
        <${Seats} benefit=${benefit} />
        <p class="tiny muted">${counts.left > 0 ? t("join.seat.rule") : counts.paying > 0 ? t("join.seat.waiting") : t("join.seat.gone")}</p>
      </section>`}
      <p class="tiny muted">${refundTerms()}</p>
    </div>
  <//>`;
}

/** A plan ordered before this page was opened, whose seat is still held: its payment goes on. */
function waitingFor(benefit) {
  const { until } = seats.value[benefit?.id] ?? {};
  const order = until > tick.value && unpaid.value.find((one) => one.kind === "plan");
  return order ? { order: order.order, plan: order.plan, seat: { benefit: benefit.id, status: "held", until } } : null;
}

const stillHeld = (placed) => !placed.seat?.until || toMs(placed.seat.until) > tick.value;

/** The seat stands while the clock runs; without one it is said before a yuan moves. */
function HeldSheet({ placed, plan, benefit }) {
  const [busy, setBusy] = useState(false);
  const seat = placed.seat ?? {};
  const until = toMs(seat.until);
  const mine = won.value[seat.benefit];
  const isHeld = seat.status === "held" && until > tick.value;
  const lapsed = seat.status === "held" && until <= tick.value;
  const go = () => {
    setBusy(true);
    if (placed.payment_url) location.assign(placed.payment_url);
    else pay(orderId(placed)).catch((error) => {
      setBusy(false);
      toast(refusalText(error), "bad");
    });
  };
  const leave = async () => {
    try {
      await post(`/v1/me/orders/${encodeURIComponent(orderId(placed))}/cancel`);
      heldJoin.value = null;
      const rest = { ...seats.value };
      delete rest[seat.benefit];
      seats.value = rest;
      closeSheet();
    } catch (error) {
      toast(refusalText(error), "bad");
    }
  };
  return html`<${Sheet}
    title=${t("join.pay.title")}
    foot=${html`<div class="stack">
      <${Busy} busy=${busy} kind="member" large onClick=${go} data-focus>${t("join.pay", { sum: money(plan.fee_fen) })}<//>
      <${Busy} kind="quiet" onClick=${leave}>${t("join.leave")}<//>
    </div>`}
  >
    <div class="stack held" style=${{ "--gap": "16px" }}>
      ${isHeld &&
      html`<p class="held__clock display"><${Countdown} until=${until} label=${t("join.held.left")} /></p>
        <p class="held__text">${t("join.held", { title: benefit?.title ?? "" })}</p>`}
      ${lapsed && html`<${Notice} kind="warn" icon="clock">${t("join.lapsed")}<//>`}
      ${seat.status === "queued" && html`<${Notice} kind="warn" icon="clock">${t("join.seat.waiting")}<//>`}
      ${(seat.status === "reserved_out" || seat.status === "sold_out") &&
      html`<${Notice} kind="warn" icon="warn">${t(seat.status === "sold_out" ? "join.sold_out" : "join.reserved_out")}<//>`}
      ${seat.status === "already_claimed" && html`<${Notice} kind="warn" icon="warn">${t("refused.already_claimed")}<//>`}
      ${mine && html`<p class="held__text">${t("seats.rank", { rank: mine.rank })}</p>`}
      ${benefit && html`<${Seats} benefit=${benefit} />`}
      <dl class="pairs"><dt>${t("join.plan")}</dt><dd>${plan.name}</dd><dt>${t("join.total")}</dt><dd>${money(plan.fee_fen)}</dd></dl>
      <p class="tiny muted">${t("join.held.rule")}</p>
    </div>
  <//>`;
}

/** The order's id: the reply to joining holds the reply to placing. */
export function orderId(placed) {
  return typeof placed.order === "string" ? placed.order : placed.order.order;
}
