// A product's price list: the lines beside its own prices, for whom, when, and from how many in one order.

import { useEffect, useState } from "preact/hooks";
import { Failure, get, post, remove } from "./api.js";
import { useForm } from "./forms.js";
import { asMs, count, day, fenOf, money } from "./format.js";
import { Button, Dialog, Icon, Problem, SelectField, TextField, html, t, useAct } from "./ui.js";

const ALONE = ["everyone", "registered", "plan_members"];
const TOGETHER = ["everyone", "registered"]; // a group price is not the plan's
const GROUP_MAX = 99;

export function PriceLines({ product, can, onClose }) {
  const [lines, setLines] = useState(null);
  const [failure, setFailure] = useState(null);
  const read = async () => {
    try {
      setLines((await get(`/v1/products/${product.id}`)).prices);
      setFailure(null);
    } catch (error) {
      setFailure(error instanceof Failure ? error : new Failure("page", 0, String(error)));
    }
  };
  useEffect(() => {
    read();
  }, []);
  return html`
    <${Dialog} title=${t("prices_of", { name: product.name })} onClose=${onClose}>
      <div class="stack">
        <p class="small num row-card__facts"><span>${t("price_list")} ${money(product.list_fen)}</span>${product.member_fen != null && html`<span>${t("price_member")} ${money(product.member_fen)}</span>`}</p>
        <p class="small muted">${t("prices_lead")}</p>
        <${Problem} failure=${failure} onRetry=${read} />
        ${lines === null && !failure && html`<p class="empty" role="status">${t("loading")}</p>`}
        ${lines?.length === 0 && html`<p class="empty">${t("prices_empty")}</p>`}
        ${lines?.length > 0 && html`<ul class="list">${lines.map((line) => html`<${Line} key=${line.id} line=${line} can=${can} onDone=${read} />`)}</ul>`}
        ${can && !product.no_promo && html`<${NewLine} product=${product} onDone=${read} />`}
        ${product.no_promo && html`<p class="notice"><${Icon} name="info" /><span>${t("prices_no_promo")}</span></p>`}
      </div>
    <//>
  `;
}

/** "¥59 each, from 3 in one order". */
const sumText = (line) => (line.min_quantity > 1 ? t("price_group_n", { sum: money(line.unit_fen), n: line.min_quantity }) : money(line.unit_fen));

function Line({ line, can, onDone }) {
  const end = useAct(async (key) => {
    await remove(`/v1/prices/${line.id}`, undefined, { key });
    await onDone();
  });
  const planned = asMs(line.from_at) > Date.now();
  return html`
    <li class="list__row" aria-label=${sumText(line)}>
      <div class="grow"><p class="row row--wrap"><span class="strong num">${sumText(line)}</span><span class=${`badge ${planned ? "badge--info" : "badge--ok"}`}>${t(planned ? "campaign_planned" : "price_holds")}</span></p>
        <p class="small muted num row-card__facts"><span>${t(`audience_${line.audience?.kind ?? "everyone"}`)}</span><span>${day(line.from_at)} – ${line.until_at ? day(line.until_at) : t("price_open")}</span></p>
        <${Problem} compact failure=${end.failure} onRetry=${end.again} onClose=${end.clear} /></div>
      ${can && html`<${Button} small busy=${end.busy} aria-label=${t("named", { what: t("price_end"), name: sumText(line) })} onClick=${() => end.run()}>${t("price_end")}<//>`}
    </li>
  `;
}

// `at` is kept, so that what a second person granted is asked for again unchanged.
const blank = () => ({ sum: "", pieces: "1", audience: "everyone", from: "", until: "", at: Date.now() });

const meant = (form) => ({
  sum: fenOf(form.sum),
  pieces: /^\d{1,2}$/.test(form.pieces.trim()) && Number(form.pieces) >= 1 ? Number(form.pieces) : null,
  from: form.from ? Date.parse(form.from) : form.at,
  until: form.until ? Date.parse(form.until) : null,
});

function errorsOf({ sum, pieces, from, until }, product) {
  const errors = {};
  if (!sum) errors.sum = t("field_amount");
  else if (sum > product.list_fen) errors.sum = t("price_above", { sum: money(product.list_fen) });
  if (pieces === null) errors.pieces = t("field_number", { min: 1, max: count(GROUP_MAX) });
  if (until !== null && !(until > Math.max(from, Date.now()))) errors.until = t("campaign_until_wrong");
  return errors;
}

function NewLine({ product, onDone }) {
  const { form, set, clear, shown, sending } = useForm(blank, (typed) => errorsOf(meant(typed), product));
  const { sum, pieces, from, until } = meant(form);
  const audiences = pieces > 1 ? TOGETHER : ALONE;
  const audience = audiences.includes(form.audience) ? form.audience : "everyone";
  const add = useAct(async (key, body) => {
    await post(`/v1/products/${product.id}/prices`, body, { key });
    clear();
    await onDone();
  });
  const send = sending(() =>
    add.run({ unit_fen: sum, min_quantity: pieces, audience: { kind: audience }, from_at: new Date(from).toISOString(), until_at: until === null ? null : new Date(until).toISOString() }),
  );
  return html`
    <form class="stack price-new" onSubmit=${send} novalidate aria-labelledby="price-new">
      <h3 id="price-new">${t("price_new")}</h3>
      <div class="pair">
        <${TextField} label=${t("price_sum")} inputmode="decimal" value=${form.sum} error=${shown.sum} onInput=${(value) => set({ sum: value })} />
        <${TextField} label=${t("price_pieces")} hint=${t("price_pieces_help")} inputmode="numeric" value=${form.pieces} error=${shown.pieces} onInput=${(value) => set({ pieces: value })} />
      </div>
      <${SelectField} label=${t("cue_audience")} value=${audience} options=${audiences.map((one) => [one, t(`audience_${one}`)])} onInput=${(value) => set({ audience: value })} />
      <div class="pair">
        <${TextField} label=${t("campaign_from")} needed=${false} hint=${t("campaign_from_help")} type="datetime-local" value=${form.from} onInput=${(value) => set({ from: value })} />
        <${TextField} label=${t("campaign_until")} needed=${false} hint=${t("price_until_help")} type="datetime-local" value=${form.until} error=${shown.until} onInput=${(value) => set({ until: value })} />
      </div>
      <${Problem} failure=${add.failure} onRetry=${add.failure?.unsure ? add.again : null} />
      <div class="row"><${Button} kind="primary" type="submit" busy=${add.busy}>${t("price_add")}<//></div>
    </form>
  `;
}
