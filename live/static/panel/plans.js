// Plans: what is on sale, what each gives, its gifts by the month, by the year and on the birthday.

import { useState } from "preact/hooks";
import { patch, post } from "./api.js";
import { FormDialog, useForm } from "./forms.js";
import { count, fenOf, money, points } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Icon, IconButton, Problem, SelectField, TextField, html, t, useAct } from "./ui.js";

const EVERY = ["month", "year", "birthday"];
const GIFTS_MAX = 12;
const FEE_FEN_MAX = 10_000_000;
const NAME_MAX = 40;
const TITLE_MAX = 60;

const within = (text, min, max) => (/^\d{1,4}$/.test(text.trim()) && Number(text) >= min && Number(text) <= max ? Number(text) : null);
const lasting = (months) => (months === 12 ? t("plan_a_year") : months === 1 ? t("plan_a_month") : t("plan_months_n", { n: months }));

export function Plans({ may }) {
  const can = may("catalog.write");
  const page = usePage(can ? "/v1/plans?off_sale=true" : "/v1/plans"); // who may put a plan back sees those off sale
  const [making, make] = useState(false);
  const made = () => {
    make(false);
    page.read();
  };
  const list = page.list ?? [];
  return html`
    <section class="money__part" aria-labelledby="plans-title">
      <header class="money__head row row--wrap">
        <div class="grow"><h2 id="plans-title" class="display">${t("money_plans")}</h2><p class="muted small">${t("plans_lead")}</p></div>
        ${can && html`<${Button} small kind="primary" onClick=${() => make(true)}><${Icon} name="plus" />${t("plan_new")}<//>`}
      </header>
      <${Listed} page=${page} empty=${t("plans_empty")}>
        <ul class="rows">${list.map((plan) => html`<${Row} key=${plan.id} plan=${plan} can=${can} onDone=${page.read} />`)}</ul>
      <//>
      ${making && html`<${NewPlan} onClose=${() => make(false)} onDone=${made} />`}
    </section>
  `;
}

function Row({ plan, can, onDone }) {
  const [sure, setSure] = useState(false);
  const sell = useAct(async (key, on_sale) => {
    await patch(`/v1/plans/${plan.id}`, { on_sale }, { key });
    setSure(false);
    await onDone();
  });
  return html`
    <li class="row-card" aria-label=${plan.name}>
      <div class="row-card__main">
        <p class="row row--wrap"><span class="strong">${plan.name}</span>
          <span class=${`badge ${plan.on_sale ? "badge--ok" : ""}`}>${t(plan.on_sale ? "plan_on" : "plan_off")}</span></p>
        <p class="num">${money(plan.fee_fen)} · ${lasting(plan.period_months)}</p>
        <p class="small muted num row-card__facts">
          <span>${plan.trial_days ? t("plan_trial_n", { n: plan.trial_days }) : t("plan_trial_none")}</span>
          ${plan.grace_days > 0 && html`<span>${t("plan_grace_n", { n: plan.grace_days })}</span>`}
          ${plan.percent && html`<span>${t("plan_percent_n", { n: plan.percent })}</span>`}
          ${plan.points_bonus_percent > 0 && html`<span>${t("plan_points_n", { n: plan.points_bonus_percent })}</span>`}
          ${plan.free_freight && html`<span>${t("plan_freight")}</span>`}
          ${plan.gift_text && html`<span>${plan.gift_value_fen ? t("plan_welcome_n", { gift: plan.gift_text, sum: money(plan.gift_value_fen) }) : t("plan_welcome", { gift: plan.gift_text })}</span>`}
        </p>
        ${plan.gifts?.length > 0 &&
        html`<ul class="row-card__rules small" aria-label=${t("plan_gifts")}>
          ${plan.gifts.map((gift) => html`<li key=${gift.id}>${t(`every_${gift.every}`)} · ${gift.title} <span class="muted num">${gift.value_fen ? `${money(gift.value_fen)} · ` : ""}${t(gift.needs_address ? "gift_sent" : "gift_handed")}</span></li>`)}
        </ul>`}
        <${Problem} compact failure=${sell.failure} onRetry=${sell.again} onClose=${sell.clear} />
      </div>
      ${can &&
      html`<div class="row row-card__acts">
        ${!plan.on_sale
          ? html`<${Button} small busy=${sell.busy} onClick=${() => sell.run(true)}>${t("plan_sell")}<//>`
          : sure
            ? html`<${Button} small kind="danger" busy=${sell.busy} onClick=${() => sell.run(false)}>${t("plan_stop_sure")}<//><${Button} small kind="quiet" onClick=${() => setSure(false)}>${t("cancel")}<//>`
            : html`<${Button} small onClick=${() => setSure(true)}>${t("plan_stop")}<//>`}
      </div>`}
    </li>
  `;
}

// `gifts`: {row, title, value, every, needs_address}
const BLANK = { name: "", fee: "", months: "12", trial: "7", grace: "0", percent: "", bonus: "20", free_freight: true, gifts: [] };

function giftErrorsOf(gift) {
  const value = fenOf(gift.value);
  return {
    title: !gift.title.trim() ? t("field_needed") : points(gift.title.trim()) > TITLE_MAX ? t("plan_long", { n: TITLE_MAX }) : null,
    value: value === null ? t("field_amount") : value > FEE_FEN_MAX ? t("plan_most", { sum: money(FEE_FEN_MAX) }) : null,
  };
}

function errorsOf(form) {
  const fee = fenOf(form.fee);
  const errors = {};
  if (!form.name.trim()) errors.name = t("field_needed");
  if (!fee) errors.fee = t("field_amount");
  else if (fee > FEE_FEN_MAX) errors.fee = t("plan_most", { sum: money(FEE_FEN_MAX) });
  for (const [name, min, max] of [["months", 1, 120], ["trial", 0, 60], ["grace", 0, Number(form.months) === 1 ? 14 : 30], ["bonus", 0, 1000]]) if (within(form[name], min, max) === null) errors[name] = t("field_number", { min, max: count(max) });
  if (form.percent.trim() && within(form.percent, 1, 99) === null) errors.percent = t("field_number", { min: 1, max: 99 });
  const gifts = form.gifts.map(giftErrorsOf);
  if (gifts.some((one) => one.title || one.value)) errors.gifts = gifts;
  return errors;
}

function NewPlan({ onClose, onDone }) {
  const { form, set, shown, sending } = useForm(BLANK, errorsOf);
  const make = useAct(async (key, body) => {
    await post("/v1/plans", body, { key });
    onDone();
  });
  const send = sending(() =>
    make.run({
      name: form.name.trim(),
      fee_fen: fenOf(form.fee),
      period_months: Number(form.months),
      trial_days: Number(form.trial),
      grace_days: Number(form.grace),
      percent: form.percent.trim() ? Number(form.percent) : null,
      points_bonus_percent: Number(form.bonus),
      free_freight: form.free_freight,
      gifts: form.gifts.map(({ title, value, every, needs_address }) => ({ title: title.trim(), value_fen: fenOf(value), every, needs_address })),
    }),
  );
  return html`
    <${FormDialog} title=${t("plan_new")} does=${t("plan_sell")} act=${make} onSubmit=${send} onClose=${onClose}>
      <p class="small muted">${t("plan_fixed")}</p>
      <${TextField} label=${t("plan_name")} value=${form.name} maxlength=${NAME_MAX} error=${shown.name} onInput=${(name) => set({ name })} />
      <div class="pair">
        <${TextField} label=${t("plan_fee")} inputmode="decimal" value=${form.fee} error=${shown.fee} onInput=${(value) => set({ fee: value })} />
        <${TextField} label=${t("plan_months")} inputmode="numeric" value=${form.months} error=${shown.months} onInput=${(months) => set({ months })} />
      </div>
      <div class="pair">
        <${TextField} label=${t("plan_trial")} hint=${t("plan_trial_help")} inputmode="numeric" value=${form.trial} error=${shown.trial} onInput=${(trial) => set({ trial })} />
        <${TextField} label=${t("plan_grace")} hint=${t("plan_grace_help")} inputmode="numeric" value=${form.grace} error=${shown.grace} onInput=${(grace) => set({ grace })} />
      </div>
      <div class="pair">
        <${TextField} label=${t("plan_percent")} needed=${false} hint=${t("plan_percent_help")} inputmode="numeric" value=${form.percent} error=${shown.percent} onInput=${(percent) => set({ percent })} />
        <${TextField} label=${t("plan_bonus")} inputmode="numeric" value=${form.bonus} error=${shown.bonus} onInput=${(bonus) => set({ bonus })} />
      </div>
      <label class="row"><input class="switch" type="checkbox" role="switch" checked=${form.free_freight} onChange=${(event) => set({ free_freight: event.currentTarget.checked })} /><span>${t("plan_freight")}</span></label>
      <${GiftRows} gifts=${form.gifts} setGifts=${(gifts) => set({ gifts })} errors=${shown.gifts ?? []} />
    <//>
  `;
}

function GiftRows({ gifts, setGifts, errors }) {
  const change = (row, more) => setGifts(gifts.map((one) => (one.row === row ? { ...one, ...more } : one)));
  const add = () => {
    const row = Math.max(0, ...gifts.map((one) => one.row)) + 1;
    setGifts([...gifts, { row, title: "", value: "", every: "month", needs_address: true }]);
    requestAnimationFrame(() => document.querySelector(`[data-gift="${row}"] input`)?.focus());
  };
  const drop = (row) => {
    setGifts(gifts.filter((one) => one.row !== row));
    requestAnimationFrame(() => document.querySelector("[data-gift-add]")?.focus());
  };
  return html`
    <fieldset class="stack gift-rows">
      <legend class="field__label">${t("plan_gifts")} <span class="muted">· ${t("optional")}</span></legend>
      <p class="field__hint">${t("plan_gifts_help")}</p>
      ${gifts.map(
        (gift, i) => html`<div key=${gift.row} class="gift-row" role="group" aria-label=${t("plan_gift_n", { n: i + 1 })} data-gift=${gift.row}>
          <div class="row row--apart"><span class="strong small">${t("plan_gift_n", { n: i + 1 })}</span>
            <${IconButton} name="trash" label=${t("plan_gift_drop", { n: i + 1 })} onClick=${() => drop(gift.row)} /></div>
          <${TextField} label=${t("gift_title")} value=${gift.title} maxlength=${TITLE_MAX} error=${errors[i]?.title} onInput=${(title) => change(gift.row, { title })} />
          <div class="pair">
            <${TextField} label=${t("gift_value")} inputmode="decimal" value=${gift.value} error=${errors[i]?.value} onInput=${(value) => change(gift.row, { value })} />
            <${SelectField} label=${t("gift_every")} value=${gift.every} options=${EVERY.map((one) => [one, t(`every_${one}`)])} onInput=${(every) => change(gift.row, { every })} />
          </div>
          <label class="row"><input class="switch" type="checkbox" role="switch" checked=${gift.needs_address} onChange=${(event) => change(gift.row, { needs_address: event.currentTarget.checked })} /><span>${t("gift_address")}</span></label>
        </div>`,
      )}
      ${gifts.length < GIFTS_MAX && html`<div><${Button} small data-gift-add onClick=${add}><${Icon} name="plus" />${t("plan_gift_add")}<//></div>`}
    </fieldset>
  `;
}
