// Coupon rules: what a coupon takes off, from which sum, for whom, how long, and what it may stand beside.

import { useState } from "preact/hooks";
import { patch, post } from "./api.js";
import { CouponHolders } from "./coupon_holders.js";
import { FormDialog, useForm } from "./forms.js";
import { count, fenOf, money } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Icon, Problem, SelectField, TextField, html, t, useAct } from "./ui.js";

const KINDS = ["amount", "percent", "freight"];
const AUDIENCES = ["everyone", "registered", "plan_members"];
const GROUP = "coupon"; // where a coupon stands unless it is told otherwise
const whole = (text) => (String(text).trim() === "" ? null : /^\d{1,8}$/.test(String(text).trim()) ? Number(text) : NaN);

/** What it does, in a sentence. */
function effect(rule) {
  const from = rule.threshold_fen ? t("coupon_from", { sum: money(rule.threshold_fen) }) : t("coupon_any");
  if (rule.kind === "percent") {
    const off = t("coupon_percent", { percent: rule.percent });
    return [from, rule.max_off_fen ? `${off}${t("coupon_most", { sum: money(rule.max_off_fen) })}` : off].join(" ");
  }
  if (rule.kind === "freight") return [from, rule.off_fen ? t("coupon_freight_most", { sum: money(rule.off_fen) }) : t("coupon_freight")].join(" ");
  return [from, t("coupon_amount", { sum: money(rule.off_fen) })].join(" ");
}

export function CouponRules({ may }) {
  const page = usePage("/v1/coupon-rules?limit=100");
  const [making, make] = useState(false);
  const can = may("catalog.write");
  return html`
    <section class="money__part" aria-labelledby="coupons-title">
      <header class="money__head row row--wrap"><h2 id="coupons-title" class="display grow">${t("money_coupons")}</h2>
        ${can && html`<${Button} small kind="primary" onClick=${() => make(true)}><${Icon} name="plus" />${t("coupon_new")}<//>`}</header>
      <${Listed} page=${page} empty=${t("coupons_empty")}>
        <ul class="rows">${(page.list ?? []).map((rule) => html`<${Rule} key=${rule.id} rule=${rule} can=${can} onDone=${page.read} />`)}</ul>
      <//>
      ${making &&
      html`<${NewRule}
        onClose=${() => make(false)}
        onDone=${() => {
          make(false);
          page.read();
        }}
      />`}
    </section>
    ${may("member.read") && html`<${CouponHolders} rules=${(page.list ?? []).filter((one) => one.status === "on")} can=${may("member.write")} onGranted=${page.read} />`}
  `;
}

function Rule({ rule, can, onDone }) {
  const turn = useAct(async (key, status) => {
    await patch(`/v1/coupon-rules/${rule.id}`, { status }, { key });
    await onDone();
  });
  const on = rule.status === "on";
  return html`
    <li class="row-card" aria-label=${rule.title}>
      <div class="row-card__main">
        <p class="row row--wrap"><span class="strong">${rule.title}</span><span class=${`badge ${on ? "badge--ok" : ""}`}>${t(on ? "coupon_on" : "coupon_off")}</span></p>
        <p>${effect(rule)}</p>
        <p class="small muted num row-card__facts">
          <span>${t(`audience_${rule.audience?.kind ?? "everyone"}`)}</span>
          ${rule.days && html`<span>${t("coupon_days", { n: rule.days })}</span>`}
          <span>${rule.quota ? t("coupon_granted_of", { n: count(rule.granted), quota: count(rule.quota) }) : t("coupon_granted", { n: count(rule.granted) })}</span>
          ${rule.per_person && html`<span>${t("per_person_n", { n: rule.per_person })}</span>`}
          ${(rule.stack_group !== GROUP || rule.stacks_with?.length > 0) && html`<span>${t("coupon_group", { name: rule.stack_group })}${rule.stacks_with?.length ? ` · ${t("coupon_with", { names: rule.stacks_with.join(" · ") })}` : ""}</span>`}
          ${rule.owner && html`<span>${t("coupon_owner", { name: rule.owner })}</span>`}
        </p>
        <${Problem} compact failure=${turn.failure} onRetry=${turn.again} onClose=${turn.clear} />
      </div>
      ${can && html`<div class="row row-card__acts"><${Button} small busy=${turn.busy} onClick=${() => turn.run(on ? "off" : "on")}>${t(on ? "coupon_stop" : "coupon_start")}<//></div>`}
    </li>
  `;
}

const BLANK = { title: "", kind: "amount", off: "", percent: "90", most: "", threshold: "", audience: "everyone", days: "7", quota: "", per_person: "1", stack_group: GROUP, stacks_with: "", owner: "" };

function errorsOf(form) {
  const errors = {};
  if (!form.title.trim()) errors.title = t("field_needed");
  if (form.kind === "amount" && !fenOf(form.off)) errors.off = t("field_amount");
  if (form.kind === "percent" && !(whole(form.percent) >= 50 && whole(form.percent) <= 99)) errors.percent = t("field_number", { min: 50, max: 99 });
  for (const name of ["most", "threshold"]) if (form[name].trim() && fenOf(form[name]) === null) errors[name] = t("field_amount");
  for (const name of ["days", "quota", "per_person"]) if (Number.isNaN(whole(form[name])) || whole(form[name]) === 0) errors[name] = t("field_number", { min: 1, max: count(10_000_000) });
  return errors;
}

function NewRule({ onClose, onDone }) {
  const { form, set, shown, sending } = useForm(BLANK, errorsOf);
  const make = useAct(async (key, body) => {
    await post("/v1/coupon-rules", body, { key });
    onDone();
  });
  const send = sending(() => {
    const body = {
      title: form.title.trim(),
      kind: form.kind,
      threshold_fen: fenOf(form.threshold) ?? 0,
      audience: { kind: form.audience },
      days: whole(form.days),
      quota: whole(form.quota),
      per_person: whole(form.per_person),
      stack_group: form.stack_group.trim() || GROUP,
      stacks_with: form.stacks_with.split(/[\s,，]+/).filter(Boolean),
      owner: form.owner.trim(),
    };
    if (form.kind === "percent") Object.assign(body, { percent: whole(form.percent), max_off_fen: form.most.trim() ? fenOf(form.most) : null });
    else body.off_fen = form.off.trim() ? fenOf(form.off) : null;
    make.run(body);
  });
  return html`
    <${FormDialog} title=${t("coupon_new")} does=${t("create")} act=${make} onSubmit=${send} onClose=${onClose}>
      <${TextField} label=${t("coupon_title")} value=${form.title} maxlength="60" error=${shown.title} onInput=${(title) => set({ title })} />
      <div class="segments segments--fill" role="group" aria-label=${t("coupon_kind")}>
        ${KINDS.map((kind) => html`<button key=${kind} type="button" class="segment" aria-pressed=${String(form.kind === kind)} onClick=${() => set({ kind })}>${t(`coupon_kind_${kind}`)}</button>`)}
      </div>
      <div class="pair">
        ${form.kind === "percent"
          ? html`<${TextField} label=${t("coupon_pays")} inputmode="numeric" value=${form.percent} error=${shown.percent} onInput=${(percent) => set({ percent })} />
              <${TextField} label=${t("coupon_max")} needed=${false} inputmode="decimal" value=${form.most} error=${shown.most} onInput=${(most) => set({ most })} />`
          : html`<${TextField} label=${t(form.kind === "freight" ? "coupon_max" : "coupon_sum")} needed=${form.kind === "freight" ? false : undefined} inputmode="decimal" value=${form.off} error=${shown.off} onInput=${(off) => set({ off })} />`}
        <${TextField} label=${t("coupon_threshold")} needed=${false} inputmode="decimal" value=${form.threshold} error=${shown.threshold} onInput=${(threshold) => set({ threshold })} />
      </div>
      <div class="pair">
        <${SelectField} label=${t("cue_audience")} value=${form.audience} options=${AUDIENCES.map((one) => [one, t(`audience_${one}`)])} onInput=${(audience) => set({ audience })} />
        <${TextField} label=${t("coupon_valid")} needed=${false} inputmode="numeric" value=${form.days} error=${shown.days} onInput=${(days) => set({ days })} />
      </div>
      <div class="pair">
        <${TextField} label=${t("coupon_quota")} needed=${false} inputmode="numeric" value=${form.quota} error=${shown.quota} onInput=${(quota) => set({ quota })} />
        <${TextField} label=${t("cue_per_person")} needed=${false} inputmode="numeric" value=${form.per_person} error=${shown.per_person} onInput=${(per_person) => set({ per_person })} />
      </div>
      <div class="pair">
        <${TextField} label=${t("coupon_stack_group")} value=${form.stack_group} maxlength="40" onInput=${(stack_group) => set({ stack_group })} />
        <${TextField} label=${t("coupon_stacks_with")} needed=${false} hint=${t("coupon_stack_help")} value=${form.stacks_with} onInput=${(stacks_with) => set({ stacks_with })} />
      </div>
      <${TextField} label=${t("coupon_cost_owner")} needed=${false} value=${form.owner} maxlength="60" onInput=${(owner) => set({ owner })} />
    <//>
  `;
}
