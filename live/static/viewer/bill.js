// What is paid and why: the candidates of a price in words, the sums of a bill, and what a plan saves.

import { useState } from "preact/hooks";

import { classes, html } from "./dom.js";
import { money } from "./format.js";
import { t } from "./words.js";

/** Every candidate that was looked at, the lowest in front, and what each of them is. */
export function Why({ line }) {
  const { winner } = line;
  const candidates = [...(line.candidates ?? [])].sort(
    (a, b) => a.unit_fen - b.unit_fen || (b.kind === winner) - (a.kind === winner),
  );
  return html`<div class="why">
    <ul>
      ${candidates.map(
        (one) => html`<li key=${one.kind} class=${classes("why__row", one.kind === winner && "why__won")}>
          <span class="grow"><span class="why__kind">${t(`candidate.${one.kind}`)}</span><span class="tiny muted">${t(`candidate.${one.kind}.why`)}</span></span>
          ${one.kind === winner && html`<span class="badge badge--ok">${t("buy.lowest")}</span>`}
          <span class="num why__price">${money(one.unit_fen)}</span>
        </li>`,
      )}
    </ul>
    <p class="tiny muted">${t("buy.why.rule")}</p>
  </div>`;
}

/** The way to it: closed until somebody asks. */
export function AskWhy({ line }) {
  const [open, setOpen] = useState(false);
  if (!line?.candidates?.length) return null;
  return html`<button type="button" class="link-button small" aria-expanded=${String(open)} onClick=${() => setOpen(!open)}>${t("buy.why")}</button>
    ${open && html`<${Why} line=${line} />`}`;
}

/** The sums of a quote or of an order, one under the other: what is taken off has its sign. */
export function Sums({ of, lines = [], promised = null }) {
  const earned = (of.points_earned ?? []).filter((one) => one.counts).reduce((all, one) => all + one.points, 0);
  const one = lines.length === 1 && lines[0].unit_fen > 0 ? lines[0] : null;
  return html`<dl class="pairs sums">
    ${one && html`<dt>${t("buy.unit")}</dt><dd>${money(one.unit_fen)} × ${one.quantity}</dd>`}
    <dt>${t("buy.goods")}</dt><dd>${money(of.goods_fen)}</dd>
    ${of.coupon_fen > 0 && html`<dt>${t("buy.coupon")}</dt><dd class="sums__off">−${money(of.coupon_fen)}</dd>`}
    ${of.points_fen > 0 && html`<dt>${t("buy.points", { n: of.points ?? of.points_fen })}</dt><dd class="sums__off">−${money(of.points_fen)}</dd>`}
    <dt>${t("buy.freight")}</dt><dd>${of.freight_fen ? money(of.freight_fen) : t("buy.freight.free")}</dd>
    ${earned > 0 && html`<dt>${t("buy.earns")}</dt><dd>${t("what.points.n", { n: earned })}</dd>`}
    ${promised && html`<dt>${t("buy.promised")}</dt><dd>${promised}</dd>`}
  </dl>`;
}

const PARTS = ["goods", "freight", "coupon", "gift"];

/** The parts apart, drawn against the plan's fee; never more than what was really saved. */
export function Meter({ saves }) {
  const parts = PARTS.map((name) => [name, saves[`${name}_fen`] ?? 0]).filter(([, fen]) => fen > 0);
  const sum = parts.reduce((all, [, fen]) => all + fen, 0);
  const whole = Math.max(saves.fee_fen || 0, sum, 1);
  return html`<span class="meter">
    ${saves.fee_fen > 0 &&
    html`<span class="meter__track" aria-hidden="true">
      ${parts.map(([name, fen]) => html`<i key=${name} class=${`meter__part meter__part--${name}`} style=${{ width: `${(100 * fen) / whole}%` }}></i>`)}
    </span>`}
    <span class="meter__key tiny num">
      ${parts.map(([name, fen]) => html`<span key=${name} class=${`meter__name meter__name--${name}`}>${t(`buy.saves.${name}`, { sum: money(fen) })}</span>`)}
    </span>
    ${saves.fee_fen > 0 && html`<span class="tiny num meter__sum">${t("buy.saves.fee", { sum: money(sum), fee: money(saves.fee_fen), name: saves.plan_name })}</span>`}
  </span>`;
}

/** What an order's own prices saved against the list price, on the pieces whose money did not go back. */
export function savedBy(order) {
  let goods = 0;
  let gift = 0;
  let back = 0; // pieces refunded of the goods that a gift comes with: they stand before it
  for (const line of order.lines ?? []) {
    if (line.kind !== "gift") back = line.refunded ?? 0;
    const kept = Math.max(0, line.quantity - back);
    if (line.left_out) continue;
    if (line.kind === "gift") gift += (line.gift_value_fen ?? 0) * kept;
    else {
      const list = line.candidates?.find((one) => one.kind === "list")?.unit_fen ?? line.unit_fen;
      goods += Math.max(0, list - line.unit_fen) * kept;
    }
  }
  return { goods_fen: goods, freight_fen: 0, gift_fen: gift, total_fen: goods + gift };
}
