// Points campaigns: for a time, goods give more points. Made, watched, and ended before their time.

import { useState } from "preact/hooks";
import { post } from "./api.js";
import { FormDialog, useForm } from "./forms.js";
import { asMs, day } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Icon, Problem, SelectField, TextField, html, t, useAct } from "./ui.js";

const AUDIENCES = ["everyone", "registered", "plan_members"];
const PERCENT_MAX = 1000;

/** 100 percent more is twice the points; 50 is one and a half times. */
const times = (percent) => t("campaign_times", { n: String((100 + percent) / 100) });

function stateOf(campaign, now) {
  if (asMs(campaign.until_at) <= now) return ["over", ""];
  return asMs(campaign.from_at) > now ? ["planned", "info"] : ["running", "ok"];
}

export function Campaigns({ may }) {
  const page = usePage("/v1/points-campaigns?limit=50");
  const [making, make] = useState(false);
  const can = may("catalog.write");
  return html`
    <section class="money__part" aria-labelledby="campaigns-title">
      <header class="money__head row row--wrap">
        <div class="grow"><h2 id="campaigns-title" class="display">${t("money_campaigns")}</h2><p class="muted small">${t("campaigns_lead")}</p></div>
        ${can && html`<${Button} small kind="primary" onClick=${() => make(true)}><${Icon} name="plus" />${t("campaign_new")}<//>`}
      </header>
      <${Listed} page=${page} empty=${t("campaigns_empty")}>
        <ul class="rows">${(page.list ?? []).map((one) => html`<${Row} key=${one.id} campaign=${one} can=${can} onDone=${page.read} />`)}</ul>
      <//>
      ${making &&
      html`<${NewCampaign}
        onClose=${() => make(false)}
        onDone=${() => {
          make(false);
          page.read();
        }}
      />`}
    </section>
  `;
}

function Row({ campaign, can, onDone }) {
  const [sure, setSure] = useState(false);
  const end = useAct(async (key) => {
    await post(`/v1/points-campaigns/${campaign.id}/end`, {}, { key });
    setSure(false);
    await onDone();
  });
  const [state, badge] = stateOf(campaign, Date.now());
  return html`
    <li class="row-card" aria-label=${campaign.name}>
      <div class="row-card__main">
        <p class="row row--wrap"><span class="strong">${campaign.name}</span><span class=${`badge ${badge && `badge--${badge}`}`}>${t(`campaign_${state}`)}</span></p>
        <p>${times(campaign.percent)}</p>
        <p class="small muted num row-card__facts">
          <span>${day(campaign.from_at)} – ${day(campaign.until_at)}</span>
          <span>${t(`audience_${campaign.audience?.kind ?? "everyone"}`)}</span>
          ${campaign.products?.length > 0 && html`<span>${t("campaign_products", { n: campaign.products.length })}</span>`}
          <span>${campaign.adds ? t("campaign_adds") : t("campaign_alone", { n: campaign.priority })}</span>
        </p>
        <${Problem} compact failure=${end.failure} onRetry=${end.again} onClose=${end.clear} />
      </div>
      ${can &&
      state !== "over" &&
      html`<div class="row row-card__acts">
        ${sure
          ? html`<${Button} small kind="danger" busy=${end.busy} onClick=${() => end.run()}>${t("campaign_end_sure")}<//><${Button} small kind="quiet" onClick=${() => setSure(false)}>${t("cancel")}<//>`
          : html`<${Button} small onClick=${() => setSure(true)}>${t("campaign_end")}<//>`}
      </div>`}
    </li>
  `;
}

const within = (text, min, max) => (/^\d{1,4}$/.test(text.trim()) && Number(text) >= min && Number(text) <= max ? Number(text) : null);
const timesOf = (form) => [form.from ? Date.parse(form.from) : Date.now(), Date.parse(form.until)];

function errorsOf(form) {
  const errors = {};
  const [from, until] = timesOf(form);
  if (!form.name.trim()) errors.name = t("field_needed");
  if (within(form.percent, 1, PERCENT_MAX) === null) errors.percent = t("field_number", { min: 1, max: PERCENT_MAX });
  if (!form.until) errors.until = t("field_needed");
  else if (!(until > Math.max(from, Date.now()))) errors.until = t("campaign_until_wrong");
  if (!form.adds && within(form.priority, 0, 1000) === null) errors.priority = t("field_number", { min: 0, max: 1000 });
  return errors;
}

function NewCampaign({ onClose, onDone }) {
  const { form, set, shown, sending } = useForm({ name: "", percent: "100", audience: "everyone", from: "", until: "", adds: true, priority: "0" }, errorsOf);
  const percent = within(form.percent, 1, PERCENT_MAX);
  const make = useAct(async (key, body) => {
    await post("/v1/points-campaigns", body, { key });
    onDone();
  });
  const send = sending(() => {
    const [from, until] = timesOf(form);
    make.run({
      name: form.name.trim(),
      percent,
      audience: { kind: form.audience },
      from_at: new Date(from).toISOString(),
      until_at: new Date(until).toISOString(),
      adds: form.adds,
      priority: form.adds ? 0 : Number(form.priority),
    });
  });
  return html`
    <${FormDialog} title=${t("campaign_new")} does=${t("create")} act=${make} onSubmit=${send} onClose=${onClose}>
      <${TextField} label=${t("campaign_name")} value=${form.name} maxlength="40" error=${shown.name} onInput=${(name) => set({ name })} />
      <div class="pair">
        <${TextField} label=${t("campaign_percent")} hint=${percent ? times(percent) : null} inputmode="numeric" value=${form.percent} error=${shown.percent} onInput=${(value) => set({ percent: value })} />
        <${SelectField} label=${t("cue_audience")} value=${form.audience} options=${AUDIENCES.map((one) => [one, t(`audience_${one}`)])} onInput=${(audience) => set({ audience })} />
      </div>
      <div class="pair">
        <${TextField} label=${t("campaign_from")} needed=${false} hint=${t("campaign_from_help")} type="datetime-local" value=${form.from} onInput=${(value) => set({ from: value })} />
        <${TextField} label=${t("campaign_until")} type="datetime-local" value=${form.until} error=${shown.until} onInput=${(value) => set({ until: value })} />
      </div>
      <label class="row"><input class="switch" type="checkbox" role="switch" checked=${form.adds} onChange=${(event) => set({ adds: event.currentTarget.checked })} /><span>${t("campaign_adds_help")}</span></label>
      ${!form.adds && html`<${TextField} label=${t("campaign_priority")} hint=${t("campaign_priority_help")} inputmode="numeric" value=${form.priority} error=${shown.priority} onInput=${(priority) => set({ priority })} />`}
    <//>
  `;
}
