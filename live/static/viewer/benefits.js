// Benefits: what is given, how many are left, to whom and when — and the one press that takes one.

import { signal } from "@preact/signals";

import { newKey } from "../socket.js";
import { ask, connection } from "./actions.js";
import { GiftToCard } from "./addresses.js";
import { get } from "./api.js";
import { Countdown } from "./deck.js";
import { Grain, Icon, classes, html } from "./dom.js";
import { dateText, money, toMs } from "./format.js";
import { openSheet } from "./sheet.js";
import { incident, isPlan, seatCounts, seats, tick, toast, won, you } from "./state.js";
import { refusalText, t } from "./words.js";

export function Seats({ benefit, slim = false }) {
  const { got, paying, left: free } = seatCounts(benefit);
  const part = (number) => (benefit.quota ? Math.min(1, number / benefit.quota) : 0);
  const said = t("seats.said", { got, paying, left: free, quota: benefit.quota });
  return html`<div class="seats" role="img" aria-label=${said}>
    <div class="grains" style=${{ "--got": part(got), "--held": part(got + paying) }}></div>
    <p class=${classes("grains-key", slim && "grains-key--slim")}>
      <span class="grains-key__got">${t("seats.got", { n: got })}</span>
      ${(benefit.needs === "join" || paying > 0) && html`<span class="grains-key__held">${t("seats.paying", { n: paying })}</span>`}
      <span class="grains-key__left">${t("seats.left", { n: free })}</span>
    </p>
  </div>`;
}

/** What it brings, in its own numbers. */
function brings(benefit) {
  if (benefit.what === "points" && benefit.points) return t("what.points.n", { n: benefit.points });
  if (benefit.what === "free_order" && benefit.cap_fen) return t("what.free_order.cap", { sum: money(benefit.cap_fen) });
  if (benefit.what === "early_access" && benefit.until) return t("what.early_access.until", { date: dateText(benefit.until) });
  return t(`what.${benefit.what}`);
}

/** What one gets, with its stated value unless the text already says it. */
export function whatFor(benefit) {
  const text = benefit.text || brings(benefit);
  if (benefit.what !== "gift" && benefit.what !== "coupon") return text; // its number is its value
  if (!benefit.value_fen || text.includes(String(benefit.value_fen / 100))) return text;
  return t("seats.worth", { what: text, sum: money(benefit.value_fen) });
}

/** Seconds as people say them: whole minutes, hours or days where they are whole. */
function lasting(seconds) {
  for (const [name, unit] of [["days", 86_400], ["hours", 3600], ["minutes", 60]]) {
    if (seconds >= unit && seconds % unit === 0) return t(`lasting.${name}`, { n: seconds / unit });
  }
  return t("lasting.seconds", { n: seconds });
}

/** Whom it is for, as short sentences; the server's own records decide. */
export function conditions(benefit) {
  return [
    benefit.needs === "order" && (benefit.min_fen ? t("needs.order.min", { sum: money(benefit.min_fen) }) : t("needs.order")),
    benefit.watched_s > 0 && t("needs.watched", { time: lasting(benefit.watched_s) }),
    benefit.newly_joined_s > 0 && t("needs.newly", { time: lasting(benefit.newly_joined_s) }),
    benefit.first_order && t("needs.first"),
    benefit.per_person > 1 && t("needs.each", { n: benefit.per_person }),
  ].filter(Boolean);
}

const claiming = signal({}); // benefit -> true while its answer is awaited
const claimKeys = new Map();

function setClaiming(id, busy) {
  claiming.value = { ...claiming.value, [id]: busy };
}

export function claim(benefit) {
  ask("claim", { title: benefit.title }, async () => {
    if (claiming.value[benefit.id]) return;
    setClaiming(benefit.id, true);
    if (!claimKeys.has(benefit.id)) claimKeys.set(benefit.id, newKey());
    try {
      const answer = await connection().send("benefit.claim", { benefit: benefit.id }, { key: claimKeys.get(benefit.id) });
      won.value = { ...won.value, [benefit.id]: { rank: answer.rank, of: answer.of ?? benefit.quota } };
      toast(t("seats.won", { rank: answer.rank }), "ok");
    } catch (error) {
      if (error.code === "already_claimed" && error.details.rank) {
        won.value = { ...won.value, [benefit.id]: { rank: error.details.rank, of: benefit.quota } };
      } else toast(refusalText(error), error.code === "sold_out" || error.code === "reserved_out" ? "" : "bad");
    } finally {
      claimKeys.delete(benefit.id);
      setClaiming(benefit.id, false);
    }
  });
}

export function queue(benefit) {
  ask("claim", { title: benefit.title }, async () => {
    setClaiming(benefit.id, true);
    try {
      const answer = await connection().send("benefit.queue", { benefit: benefit.id }, { key: newKey() });
      const held = answer.status === "held" && answer.until;
      seats.value = { ...seats.value, [benefit.id]: held ? { until: answer.until } : { queued: true, ahead: answer.ahead ?? 0 } };
      toast(t(held ? "seats.held" : "seats.queued"), "ok");
    } catch (error) {
      toast(refusalText(error), "bad");
    } finally {
      setClaiming(benefit.id, false);
    }
  });
}

/** The receipt of what was won here; until it is signed, the list that it will stand in. */
async function seeReceipt(benefit) {
  const rows = await get("/v1/me/benefits").then((answer) => answer.items, () => []);
  const row = rows.find((one) => one.benefit === benefit.id && one.receipt);
  if (row) openSheet("receipt", { benefit: row });
  else openSheet("mine", { tab: "benefits" });
}

export function BenefitCard({ benefit }) {
  const { paying, left: free } = seatCounts(benefit);
  const mine = won.value[benefit.id];
  const seat = seats.value[benefit.id];
  const busy = claiming.value[benefit.id];
  const join = benefit.needs === "join";
  const starts = toMs(benefit.starts_at);
  const before = starts !== null && starts > tick.value;
  const rules = conditions(benefit);
  let action;
  if (mine) {
    action = html`<span class="deal__won">
      <button type="button" class="won" onClick=${() => seeReceipt(benefit)} aria-label=${t("seats.rank.see", { rank: mine.rank })}><${Grain} size="16" />${t("seats.rank", { rank: mine.rank })}</button>
      ${benefit.what === "gift" && html`<${GiftToCard} />`}
    </span>`;
  } else if (seat?.until > tick.value) {
    action = html`<button type="button" class="button button--member deal__go" onClick=${() => openSheet("join", { benefit: benefit.id })}>
      ${t("seats.pay")} <${Countdown} until=${seat.until} />
    </button>`;
  } else if (benefit.status === "paused" || incident.value) {
    action = html`<span class="badge badge--warn">${t("seats.paused")}</span>`;
  } else if (before) {
    action = html`<button type="button" class="button deal__go" disabled>${t("seats.starts")} <${Countdown} until=${starts} /></button>`;
  } else if (free > 0) {
    const go = () => (join ? openSheet("join", { benefit: benefit.id }) : claim(benefit));
    const owner = join && isPlan.value && !you.value.plan?.trial;
    action = owner
      ? html`<span class="badge badge--plan">${t("seats.owner")}</span>`
      : html`<button type="button" class="button button--member deal__go" aria-busy=${busy ? "true" : null} onClick=${go}>
          ${join ? t("seats.join") : t("seats.claim")}
        </button>`;
  } else if (paying > 0) {
    action = seat?.queued
      ? html`<span class="badge badge--warn">${t("seats.inline", { n: seat.ahead })}</span>`
      : html`<button type="button" class="button deal__go" aria-busy=${busy ? "true" : null} onClick=${() => queue(benefit)}>${t("seats.queue")}</button>`;
  } else {
    action = html`<span class="badge">${t("seats.gone")}</span>`;
  }
  return html`<article class="deal deal--benefit" aria-label=${benefit.title}>
    <div class="deal__body">
      <div class="deal__head">
        <h3 class="deal__name clip"><${Icon} name="gift" />${benefit.title}</h3>
        ${benefit.closes_at && !before && html`<${Countdown} until=${benefit.closes_at} label=${t("deal.ends")} />`}
      </div>
      <p class="deal__note clip">
        ${whatFor(benefit)}
        ${benefit.status === "paused" && benefit.reason ? ` · ${benefit.reason}` : ""}
      </p>
      ${rules.length > 0 && html`<ul class="conditions" aria-label=${t("needs.label")}>${rules.map((rule) => html`<li key=${rule}>${rule}</li>`)}</ul>`}
      <${Seats} benefit=${benefit} slim />
    </div>
    ${action}
  </article>`;
}
