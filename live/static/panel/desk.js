// What is on air right now: seats of benefits, offers, the poll, and who ordered or joined. All counts are the
// store's own; nobody can type one.

import { useState } from "preact/hooks";
import { patch, post } from "./api.js";
import { asMs, clock as timeOfDay, count, money, span, yuan } from "./format.js";
import { leftOf } from "./rundown.js";
import { Button, Dialog, Icon, Problem, TextField, html, t, useAct } from "./ui.js";

export function Desk({ store, may }) {
  const benefits = store.of("benefit").filter((one) => one.status !== "closed" || one.counts?.confirmed);
  const offers = store.of("offer").filter((one) => one.status !== "closed");
  const polls = store.of("poll").filter((one) => one.open);
  return html`
    <div class="desk">
      <div class="desk__scroll">
        <section class="pane desk__part" aria-labelledby="benefits-title">
          <header class="pane__head"><h2 class="pane__title" id="benefits-title">${t("benefits")}</h2></header>
          <div class="pane__body">
            ${benefits.length === 0 && html`<p class="muted small">${t("benefits_empty")}</p>`}
            ${benefits.map((one) => html`<${Benefit} key=${one.id} benefit=${one} store=${store} may=${may} />`)}
          </div>
        </section>
        ${(offers.length > 0 || polls.length > 0) &&
        html`<section class="pane desk__part" aria-labelledby="offers-title">
          <header class="pane__head"><h2 class="pane__title" id="offers-title">${t("offers")}</h2></header>
          <div class="pane__body">
            ${offers.map((one) => html`<${Offer} key=${one.id} offer=${one} store=${store} />`)}
            ${polls.map((one) => html`<${Poll} key=${one.id} poll=${one} store=${store} />`)}
          </div>
        </section>`}
      </div>
      <${Ticker} store=${store} />
    </div>
  `;
}

export function Grains({ quota, confirmed, held }) {
  const whole = Math.max(1, quota);
  return html`
    <div
      class="grains"
      aria-hidden="true"
      style=${{ "--got": Math.min(1, confirmed / whole), "--held": Math.min(1, (confirmed + held) / whole) }}
    ></div>
  `;
}

function Benefit({ benefit, store, may }) {
  const counts = benefit.counts ?? {};
  const confirmed = counts.confirmed ?? 0;
  const held = counts.held ?? 0;
  const left = leftOf(benefit);
  const [asking, ask] = useState(null); // null | "raise" | "pause"
  const resume = useAct((key) => post(`/v1/benefits/${benefit.id}/resume`, {}, { key }));
  const to = asMs(benefit.closes_at);
  const open = benefit.status === "open";
  const paused = benefit.status === "paused";
  const closed = benefit.status === "closed";
  return html`
    <article class="benefit" aria-label=${benefit.title}>
      <p class="benefit__head">
        <span class="strong grow">${benefit.title}</span>
        ${paused && html`<span class="badge badge--warn">${t("benefit_paused")}</span>`}
        ${closed && html`<span class="badge">${t("benefit_closed")}</span>`}
        ${open && to && html`<span class="small num muted">${t("ends_in", { time: span(to - store.now.value) })}</span>`}
      </p>
      <${Grains} quota=${benefit.quota} confirmed=${confirmed} held=${held} />
      <dl class="seats num">
        <div class="seats__got"><dt>${t("confirmed")}</dt><dd>${count(confirmed)}</dd></div>
        <div class="seats__held"><dt>${t("held")}</dt><dd>${count(held)}</dd></div>
        <div class="seats__left"><dt>${t("left")}</dt><dd>${count(left)}</dd></div>
        <div class="seats__all"><dt class="visually-hidden">${t("cue_seats")}</dt><dd class="muted small">${t("of_quota", { n: count(benefit.quota) })}</dd></div>
      </dl>
      ${left === 0 && open && html`<p class="small muted">${held > 0 ? t("reserved_out") : t("sold_out")}${counts.queued ? ` · ${t("queued_n", { n: count(counts.queued) })}` : ""}</p>`}
      ${may.offers &&
      !closed &&
      html`<div class="row row--wrap benefit__acts">
        <${Button} small onClick=${() => ask("raise")}><${Icon} name="plus" />${t("raise")}<//>
        ${paused
          ? html`<${Button} small kind="done" busy=${resume.busy} onClick=${() => resume.run()}>${t("benefit_resume")}<//>`
          : html`<${Button} small kind="quiet" onClick=${() => ask("pause")}>${t("benefit_pause")}<//>`}
      </div>`}
      <${Problem} compact failure=${resume.failure} onRetry=${resume.again} onClose=${resume.clear} />
      ${asking === "raise" && html`<${Raise} benefit=${benefit} onClose=${() => ask(null)} />`}
      ${asking === "pause" && html`<${Pause} benefit=${benefit} onClose=${() => ask(null)} />`}
    </article>
  `;
}

function Raise({ benefit, onClose }) {
  const [text, setText] = useState(String(benefit.quota + 10));
  const [tried, setTried] = useState(false);
  const to = /^\d{1,6}$/.test(text.trim()) ? Number(text) : NaN;
  const wrong = !(to > benefit.quota && to <= 100_000);
  const raise = useAct(async (key, quota) => {
    await patch(`/v1/benefits/${benefit.id}`, { quota }, { key });
    onClose();
  });
  const go = () => {
    setTried(true);
    if (!wrong) raise.run(to);
  };
  return html`
    <${Dialog}
      title=${`${t("raise")} · ${benefit.title}`}
      onClose=${onClose}
      foot=${html`<div class="row">
        <${Button} kind="primary" class="grow" busy=${raise.busy} onClick=${go}>${wrong ? t("raise") : t("raise_sure", { n: count(to) })}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//>
      </div>`}
    >
      <form
        class="stack"
        onSubmit=${(event) => {
          event.preventDefault();
          go();
        }}
      >
        <${TextField}
          label=${t("raise_to")}
          inputmode="numeric"
          value=${text}
          onInput=${setText}
          error=${tried && wrong ? t("field_number", { min: count(benefit.quota + 1), max: count(100_000) }) : null}
          hint=${wrong ? t("fail_quota_falls") : t("raise_help", { n: count(to - benefit.quota), cost: yuan((to - benefit.quota) * (benefit.value_fen ?? 0)) })}
        />
        ${!wrong &&
        html`<div class="raise-read">
          <p class="small muted">${t("raise_read")}</p>
          <p><span class="strong">${benefit.title}</span> · <span class="num">${t("of_quota", { n: count(to) })}</span></p>
          ${benefit.text && html`<p class="small">${benefit.text}</p>`}
          <p class=${`small ${numbered(benefit) ? "notice notice--warn notice--slim" : "muted"}`}>${t(numbered(benefit) ? "raise_title_number" : "raise_title", { n: benefit.quota })}</p>
        </div>`}
        <${Problem} failure=${raise.failure} onRetry=${raise.failure?.unsure ? raise.again : null} />
      </form>
    <//>
  `;
}

/** Whether the words viewers read name the present quota. */
const numbered = (benefit) => new RegExp(`(?<!\\d)${benefit.quota}(?!\\d)`).test(`${benefit.title} ${benefit.text ?? ""}`);

function Pause({ benefit, onClose }) {
  const [reason, setReason] = useState("");
  const [tried, setTried] = useState(false);
  const pause = useAct(async (key, words) => {
    await post(`/v1/benefits/${benefit.id}/pause`, { reason: words }, { key });
    onClose();
  });
  const go = () => {
    setTried(true);
    if (reason.trim()) pause.run(reason.trim());
  };
  return html`
    <${Dialog}
      title=${t("benefit_pause_title", { title: benefit.title })}
      onClose=${onClose}
      foot=${html`<div class="row">
        <${Button} kind="primary" class="grow" busy=${pause.busy} onClick=${go}>${t("benefit_pause")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//>
      </div>`}
    >
      <form
        class="stack"
        onSubmit=${(event) => {
          event.preventDefault();
          go();
        }}
      >
        <p>${t("benefit_pause_lead")}</p>
        <${TextField}
          label=${t("benefit_pause_reason")}
          value=${reason}
          onInput=${setReason}
          maxlength="100"
          error=${tried && !reason.trim() ? t("field_needed") : null}
        />
        <${Problem} failure=${pause.failure} onRetry=${pause.failure?.unsure ? pause.again : null} />
      </form>
    <//>
  `;
}

function Offer({ offer, store }) {
  const counts = offer.counts ?? {};
  const product = offer.product ?? {};
  const to = asMs(offer.closes_at);
  const left = offer.quota ? Math.max(0, offer.quota - (counts.held ?? 0) - (counts.sold ?? 0)) : null;
  return html`
    <article class="offer" aria-label=${product.name}>
      ${product.image
        ? html`<img class="offer__picture" src=${product.image} alt="" width="48" height="48" loading="lazy" />`
        : html`<span class="offer__picture offer__picture--none"><${Icon} name=${offer.kind === "flash" ? "flash" : "pin"} /></span>`}
      <div class="grow">
        <p class="row"><span class="strong clip">${product.name}</span>
          ${offer.status === "sold_out" && html`<span class="badge badge--bad">${t("sold_out")}</span>`}</p>
        <p class="small num offer__facts">
          ${offer.flash_fen != null && html`<span class="strong offer__flash">${t("price_flash")} ${money(offer.flash_fen)}</span>`}
          <span>${t("price_list")} ${money(offer.list_fen)}</span>
          ${offer.member_fen != null && html`<span class="offer__member">${t("price_member")} ${money(offer.member_fen)}</span>`}
        </p>
        <p class="small num muted offer__facts">
          ${left !== null && html`<span>${t("left_of", { left: count(left), quota: count(offer.quota) })}</span>`}
          <span>${t("sold_n", { n: count(counts.sold ?? 0) })}</span>
          ${counts.held ? html`<span>${t("held_n", { n: count(counts.held) })}</span>` : null}
          ${to && html`<span>${t("ends_in", { time: span(to - store.now.value) })}</span>`}
        </p>
      </div>
    </article>
  `;
}

function Poll({ poll, store }) {
  return html`
    <article class="poll" aria-label=${poll.question}>
      <p class="row"><span class="strong grow">${poll.question}</span><span class="badge badge--info">${t("kind_poll")}</span></p>
      <${Tally} choices=${poll.choices} counts=${poll.counts ?? {}} />
      <p class="small muted num">
        ${t("voters_n", { n: count(poll.counts?.voters ?? 0) })}
        ${poll.closes_at ? ` · ${t("ends_in", { time: span(asMs(poll.closes_at) - store.now.value) })}` : ""}
        ${poll.results !== "always" ? ` · ${t("poll_results_staff")}` : ""}
      </p>
    </article>
  `;
}

/** Choices with bars; the share is of all votes, as several may be chosen. */
export function Tally({ choices, counts }) {
  const votes = (choices ?? []).map((_, index) => Number(counts[String(index)] ?? 0));
  const all = votes.reduce((a, b) => a + b, 0);
  return html`
    <ol class="tally">
      ${(choices ?? []).map(
        (choice, index) => html`<li key=${index}>
          <span class="row tally__words"><span class="grow">${choice}</span>
            <span class="num">${t("votes_n", { n: count(votes[index]) })} · ${all ? Math.round((votes[index] / all) * 100) : 0}%</span></span>
          <span class="bar" aria-hidden="true"><span class="bar__fill" style=${{ "--part": all ? votes[index] / all : 0 }}></span></span>
        </li>`,
      )}
    </ol>
  `;
}

function Ticker({ store }) {
  const entries = store.ticker.value;
  return html`
    <section class="pane desk__part ticker" aria-labelledby="ticker-title">
      <header class="pane__head"><h2 class="pane__title" id="ticker-title">${t("orders")}</h2></header>
      <div class="pane__body ticker__body">
        ${entries.length === 0 && html`<p class="muted small">${t("orders_empty")}</p>`}
        <ul>
          ${entries.map(
            (event) => html`<li key=${`${event.seq} ${event.at}`} class=${`tick tick--${event.type.split(".")[0]}`}>
              <time class="num muted">${timeOfDay(event.at)}</time><span class="grow">${tickWords(event, store)}</span>
            </li>`,
          )}
        </ul>
      </div>
    </section>
  `;
}

function tickWords(event, store) {
  const name = event.name || t("somebody");
  switch (event.type) {
    case "benefit.claimed": {
      const title = event.title ?? store.data(`benefit:${event.benefit}`)?.title ?? t("a_benefit");
      return t("tick_benefit_claimed", { name, what: title, rank: event.rank ?? "–" });
    }
    case "plan.joined":
      return t(event.first ? "tick_plan_first" : "tick_plan_again", { name, what: event.plan_name ?? "" });
    case "offer.sold_out":
      return t("tick_offer_sold_out", { what: store.data(`offer:${event.offer}`)?.product?.name ?? t("a_product") });
    default: {
      const what = event.product_name ?? t("a_product");
      const pieces = event.quantity > 1 ? t("pieces", { what, n: event.quantity }) : what;
      return t(event.type === "order.paid" ? "tick_order_paid" : "tick_order_placed", { name, what: pieces });
    }
  }
}
