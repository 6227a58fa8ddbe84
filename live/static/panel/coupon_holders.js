// One member's coupons: found by phone, nickname or the shop's own id; one granted by hand, one taken back.

import { useState } from "preact/hooks";
import { Failure, get, items, post, remove } from "./api.js";
import { day } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Problem, SelectField, TextField, html, known, t, useAct } from "./ui.js";

const FOUND_MAX = 10;
const BADGES = { free: "ok", held: "warn", used: "info", void: "", expired: "" };
const PHONE = /^\+?\d{11,15}$/;

/** A whole number is a phone; anything else is part of a nickname, or the shop's own id. */
function queryOf(text) {
  const digits = text.replace(/[\s-]/g, "");
  const name = PHONE.test(digits) ? "phone" : "query";
  return `${name}=${encodeURIComponent(name === "phone" ? digits : text.trim())}`;
}

export function CouponHolders({ rules, can, onGranted }) {
  const [search, setSearch] = useState("");
  const [found, setFound] = useState(null);
  const [member, setMember] = useState(null);
  const look = useAct(async () => {
    const list = items(await get(`/v1/members?${queryOf(search)}&limit=${FOUND_MAX}`));
    setFound(list);
    setMember(list.length === 1 ? list[0] : null);
  });
  const go = (event) => {
    event.preventDefault();
    if (search.trim()) look.run();
  };
  return html`
    <section class="money__part" aria-labelledby="holders-title">
      <header class="money__head"><h2 id="holders-title" class="display">${t("holders")}</h2><p class="muted small">${t("holders_lead")}</p></header>
      <form class="row row--wrap money__line" role="search" onSubmit=${go}>
        <${TextField} label=${t("holders_search")} type="search" value=${search} maxlength="64" onInput=${setSearch} class="money__pick" />
        <${Button} type="submit" busy=${look.busy}>${t("holders_find")}<//>
      </form>
      <${Problem} failure=${look.failure} onRetry=${look.again} />
      ${found?.length === 0 && html`<p class="empty" role="status">${t("holders_nobody")}</p>`}
      ${found?.length > 1 &&
      html`<div class="holder__found" role="group" aria-label=${t("holders_found")}>
        ${found.map((one) => html`<button key=${one.id} type="button" class="chip" aria-pressed=${String(member?.id === one.id)} onClick=${() => setMember(one)}>${one.name}<span class="num muted small"> ${one.phone ?? one.external_id ?? ""}</span></button>`)}
      </div>`}
      ${member && html`<${Holder} key=${member.id} member=${member} rules=${rules} can=${can} onGranted=${onGranted} />`}
    </section>
  `;
}

function Holder({ member, rules, can, onGranted }) {
  const page = usePage(`/v1/members/${member.id}/coupons?limit=50`);
  const [rule, setRule] = useState(rules[0]?.id ?? "");
  const [cause, setCause] = useState("");
  const [tried, setTried] = useState(false);
  const grant = useAct(async (key, body) => {
    const [outcome] = (await post(`/v1/coupon-rules/${rule}/grants`, body, { key })).items;
    if (outcome.refused) throw new Failure(outcome.refused, 409, outcome.refused);
    setCause("");
    setTried(false);
    await page.read();
    onGranted();
  });
  const go = (event) => {
    event.preventDefault();
    setTried(true);
    if (cause.trim() && rule) grant.run({ members: [member.id], cause: cause.trim() });
  };
  return html`
    <div class="holder">
      <p class="row row--wrap"><span class="strong">${member.name}</span><span class="small muted num">${[member.phone, member.external_id].filter(Boolean).join(" · ")}</span></p>
      ${can &&
      rules.length > 0 &&
      html`<form class="stack" onSubmit=${go} novalidate>
        <div class="pair">
          <${SelectField} label=${t("holder_rule")} value=${rule} options=${rules.map((one) => [one.id, one.title])} onInput=${setRule} />
          <${TextField} label=${t("holder_cause")} hint=${t("holder_cause_help")} value=${cause} maxlength="60" error=${tried && !cause.trim() ? t("field_needed") : null} onInput=${setCause} />
        </div>
        <div class="row"><${Button} kind="primary" type="submit" busy=${grant.busy}>${t("holder_grant")}<//></div>
        <${Problem} failure=${grant.failure} onRetry=${grant.failure?.unsure ? grant.again : null} onClose=${grant.clear} />
      </form>`}
      <${Listed} page=${page} empty=${t("holder_none")}>
        <ul class="list">${(page.list ?? []).map((one) => html`<${Held} key=${one.id} coupon=${one} can=${can} onDone=${page.read} />`)}</ul>
      <//>
    </div>
  `;
}

function Held({ coupon, can, onDone }) {
  const [sure, setSure] = useState(false);
  const take = useAct(async (key) => {
    await remove(`/v1/coupons/${coupon.id}`, undefined, { key });
    setSure(false);
    await onDone();
  });
  const state = known(`coupon_state_${coupon.state}`) ? t(`coupon_state_${coupon.state}`) : coupon.state;
  return html`
    <li class="list__row" aria-label=${coupon.rule.title}>
      <div class="grow">
        <p class="row row--wrap"><span>${coupon.rule.title}</span><span class=${`badge ${BADGES[coupon.state] ? `badge--${BADGES[coupon.state]}` : ""}`}>${state}</span></p>
        <p class="small muted num">${t("holder_since", { time: day(coupon.granted_at) })}${coupon.expires_at ? ` · ${t("valid_to", { time: day(coupon.expires_at) })}` : ""}</p>
        <${Problem} compact failure=${take.failure} onRetry=${take.again} onClose=${take.clear} />
      </div>
      ${can &&
      (coupon.state === "free" || coupon.state === "held") &&
      (sure
        ? html`<${Button} small kind="danger" busy=${take.busy} onClick=${() => take.run()}>${t("holder_void_sure")}<//>`
        : html`<${Button} small kind="quiet" onClick=${() => setSure(true)}>${t("holder_void")}<//>`)}
    </li>
  `;
}
