// The places that are not the stage: before the start, at a members' door, after the end, and shut ways.

import { useEffect, useState } from "preact/hooks";

import { ask } from "./actions.js";
import { GiftTo } from "./addresses.js";
import { get } from "./api.js";
import { Countdown } from "./deck.js";
import { Grain, Icon, html } from "./dom.js";
import { count, dateText, dayAndTime, money, toMs } from "./format.js";
import { Gives, plans, readPlans } from "./join.js";
import { OtherLanguage } from "./language.js";
import { Won, openMine } from "./mine.js";
import { toBeSent } from "./receipt.js";
import { Busy, Notice, openSheet } from "./sheet.js";
import { boot, card, isMember, known, orderNews, refusedAt, tick, viewers, you } from "./state.js";
import { t } from "./words.js";

const showId = () => encodeURIComponent(card.value.id ?? boot.show.id);

function Head({ eyebrow }) {
  const { title, room, summary } = card.value;
  const by = [room?.title, room?.host].filter(Boolean).join(" · ");
  return html`<header class="place__head">
    <p class="place__eyebrow">${eyebrow}</p>
    <h1 class="place__title">${title}</h1>
    ${by && html`<p class="place__by">${by}</p>`}
    ${summary && html`<p class="place__summary">${summary}</p>`}
  </header>`;
}

function Backdrop() {
  return html`<div class="place__backdrop" aria-hidden="true">${card.value.poster && html`<img src=${card.value.poster} alt="" />`}</div>`;
}

// — before the start —

function Clockwork({ until }) {
  const ms = Math.max(0, until - tick.value);
  const seconds = Math.ceil(ms / 1000);
  const parts = [
    ["days", Math.floor(seconds / 86_400)],
    ["hours", Math.floor((seconds % 86_400) / 3600)],
    ["minutes", Math.floor((seconds % 3600) / 60)],
    ["seconds", seconds % 60],
  ].filter(([name, value], i) => i > 0 || value > 0);
  return html`<div class="clockwork" role="timer" aria-live="off" aria-label=${t("waiting.label")}>
    ${parts.map(([name, value]) => html`<span key=${name} class="clockwork__part"><b class="num display">${String(value).padStart(2, "0")}</b><small>${t(`waiting.${name}`)}</small></span>`)}
  </div>`;
}

export function Waiting() {
  const starts = toMs(card.value.starts_at);
  const late = starts !== null && starts <= tick.value;
  return html`<section class="place">
    <${Backdrop} />
    <div class="place__body">
      <${Head} eyebrow=${t("waiting.soon")} />
      ${starts !== null &&
      html`<p class="place__when"><time datetime=${new Date(starts).toISOString()}>${dayAndTime(starts)}</time></p>
        ${late ? html`<p class="place__late">${t("waiting.late")}</p>` : html`<${Clockwork} until=${starts} />`}`}
      ${viewers.value > 1 && html`<p class="small place__crowd"><${Grain} size="14" />${t("waiting.viewers", { n: viewers.value, count: count(viewers.value) })}</p>`}
      <div class="place__acts stack">
        <a class="button button--primary button--large" href=${`/v1/shows/${showId()}/calendar.ics`} download><${Icon} name="bell" />${t("waiting.remind")}</a>
        ${you.value.plan && !you.value.plan.trial
          ? html`<p class="small">${t("waiting.member", { name: you.value.plan.name })}</p>`
          : html`<button type="button" class="button button--member button--large" onClick=${() => openSheet("join")}><${Grain} />${t("waiting.join")}</button>`}
        ${known.value && !isMember.value && html`<button type="button" class="link-button" onClick=${() => ask("enter", {}, () => {})}>${t("waiting.sign")}</button>`}
        ${!isMember.value && html`<${OtherLanguage} />`}
      </div>
      <p class="tiny place__fine">${t("clock.note")}</p>
    </div>
  </section>`;
}

// — at a members' door —

export function Door() {
  const starts = toMs(card.value.starts_at);
  useEffect(() => {
    readPlans().catch(() => {}); // the door stands without the price; the join sheet says what failed
  }, []);
  const plan = plans.value?.[0];
  return html`<section class="place place--door">
    <${Backdrop} />
    <div class="place__body">
      <p class="place__lock"><${Icon} name="lock" /></p>
      <${Head} eyebrow=${t("door.eyebrow")} />
      ${starts !== null && html`<p class="place__when">${dayAndTime(starts)}</p>`}
      <p class="place__why">${isMember.value ? t("door.why.registered", { name: you.value.name }) : t("door.why.guest")}</p>
      ${plan && html`<div class="plan-card"><div class="row row--apart"><h2 class="display">${plan.name}</h2><strong class="num">${t("door.fee", { sum: money(plan.fee_fen) })}</strong></div><${Gives} plan=${plan} /></div>`}
      <div class="place__acts stack">
        <button type="button" class="button button--member button--large" onClick=${() => openSheet("join")}><${Grain} />${t("door.join")}</button>
        ${plan?.trial_days > 0 && !you.value.plan && html`<button type="button" class="button button--large" onClick=${() => openSheet("join")}>${t("trial.go", { n: plan.trial_days })}</button>`}
        ${!isMember.value && html`<button type="button" class="link-button" onClick=${() => ask("enter", {}, () => {})}>${t("door.sign")}</button>
          <${OtherLanguage} />`}
      </div>
    </div>
  </section>`;
}

// — after the end —

const OPEN_STATES = new Set(["placed", "paid"]);

export function Ended() {
  const [mine, setMine] = useState(null); // {orders, benefits}
  const member = isMember.value;
  const news = Object.values(orderNews.value)
    .map((one) => one.state)
    .join();
  useEffect(() => {
    if (!member) return undefined;
    let gone = false;
    Promise.all([get("/v1/me/orders"), get("/v1/me/benefits")])
      .then(([orders, benefits]) => {
        if (gone) return;
        const show = card.value.id ?? boot.show.id;
        const here = (one) => !one.show || one.show === show;
        setMine({
          orders: orders.items.filter((one) => here(one) && OPEN_STATES.has(one.state)),
          benefits: benefits.items.filter(here),
        });
      })
      .catch(() => !gone && setMine({ orders: [], benefits: [], failed: true }));
    return () => {
      gone = true;
    };
  }, [member, news]);
  const unpaid = mine?.orders.filter((one) => one.state === "placed" && one.hold_until > tick.value) ?? [];
  const paid = mine?.orders.filter((one) => one.state === "paid") ?? [];
  const nothing = mine && !mine.orders.length && !mine.benefits.length && !you.value.plan;
  return html`<section class="place place--ended">
    <${Backdrop} />
    <div class="place__body">
      <${Head} eyebrow=${t("ended.eyebrow")} />
      <p class="place__why">${t("ended.thanks")}</p>
      ${member &&
      html`<div class="tonight">
        <h2 class="display">${t("ended.yours")}</h2>
        ${!mine && html`<div class="skeleton" style=${{ height: "84px" }}></div>`}
        ${mine?.failed && html`<${Notice} kind="bad" icon="warn">${t("refused.disconnected")}<//>`}
        ${nothing && !mine.failed && html`<p class="muted">${t("ended.nothing")}</p>`}
        ${you.value.plan && html`<p class="tonight__plan"><${Grain} size="16" />${t(you.value.plan.grace ? "me.grace" : you.value.plan.trial ? "me.trial" : "ended.plan", { name: you.value.plan.name, date: dateText(you.value.plan.ends_at) })}</p>`}
        ${mine?.benefits.length > 0 && html`<ul class="stack">${mine.benefits.map((one, i) => html`<${Won} key=${one.id ?? i} benefit=${one} />`)}</ul>`}
        ${mine?.benefits.some(toBeSent) && html`<${GiftTo} />`}
        ${unpaid.map(
          (one) => html`<button type="button" key=${one.id} class="tonight__order tonight__order--open" onClick=${() => openMine("orders")}>
            <span>${t("ended.unpaid", { sum: money(one.total_fen) })}</span><${Countdown} until=${one.hold_until} />
          </button>`,
        )}
        ${paid.length > 0 &&
        html`<button type="button" class="tonight__order" onClick=${() => openMine("orders")}>
          <span>${t("ended.paid", { n: paid.length, sum: money(paid.reduce((sum, one) => sum + one.total_fen, 0)) })}</span><${Icon} name="check" />
        </button>`}
      </div>`}
      <div class="place__acts stack">
        ${member
          ? html`<button type="button" class="button button--large" onClick=${() => openMine("orders")}>${t("ended.orders")}</button>`
          : html`<button type="button" class="button button--large" onClick=${() => ask("enter", {}, () => {})}>${t("ended.sign")}</button>`}
        ${!you.value.plan && html`<button type="button" class="button button--member button--large" onClick=${() => openSheet("join")}><${Grain} />${t("ended.join")}</button>`}
        <a class="link-button" href="/">${t("ended.more")}</a>
        ${!isMember.value && html`<${OtherLanguage} />`}
      </div>
    </div>
  </section>`;
}

// — one's own page: orders and benefits without a show —

export function Own() {
  return html`<section class="place">
    <${Backdrop} />
    <div class="place__body">
      <p class="place__lock"><${Icon} name="bag" /></p>
      <header class="place__head"><h1 class="place__title">${t("own.title")}</h1></header>
      <div class="place__acts stack">
        ${isMember.value
          ? html`<button type="button" class="button button--member button--large" onClick=${() => openMine("orders")}>${t("ended.orders")}</button>`
          : known.value && html`<button type="button" class="button button--member button--large" onClick=${() => openMine("orders")}>${t("ended.sign")}</button>`}
        <a class="link-button" href="/">${t("ended.more")}</a>
        ${!isMember.value && html`<${OtherLanguage} />`}
      </div>
    </div>
  </section>`;
}

// — ways that are shut —

export function Shut() {
  const reason = refusedAt.value;
  return html`<section class="place">
    <${Backdrop} />
    <div class="place__body">
      <${Head} eyebrow=${t(`shut.${reason}.title`)} />
      <p class="place__why">${t(`shut.${reason}`)}</p>
      <div class="place__acts stack">
        ${reason === "replaced" && html`<${Busy} large onClick=${() => location.reload()}>${t("shut.here")}<//>`}
        <a class="link-button" href="/">${t("ended.more")}</a>
        ${!isMember.value && html`<${OtherLanguage} />`}
      </div>
    </div>
  </section>`;
}
