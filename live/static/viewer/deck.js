// The deck: what is open now — benefit, flash, pinned product, poll — as cards the thumb can swipe.

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import { newKey } from "../socket.js";
import { ask, connection } from "./actions.js";
import { post } from "./api.js";
import { BenefitCard } from "./benefits.js";
import { Grain, Icon, classes, html, lessMotion } from "./dom.js";
import { Price, dayText, duration, left, money } from "./format.js";
import { openSheet } from "./sheet.js";
import {
  benefits,
  boot,
  clock,
  incident,
  isPlan,
  offers,
  piecesLeft,
  planSaves,
  poll,
  priceFor,
  tick,
  toast,
  unpaid,
  votes,
  you,
} from "./state.js";
import { refusalText, t } from "./words.js";

const LAST_SECONDS = 10;

/** Time left by the server's clock. Screen readers hear it when they ask, not every second. */
export function Countdown({ until, label }) {
  const ms = until - tick.value;
  return html`<time class=${classes("countdown num", ms < LAST_SECONDS * 1000 && "countdown--last")} datetime=${duration(ms)} role="timer" aria-live="off">
    ${label && html`<span class="visually-hidden">${label}</span>`}${left(ms)}
  </time>`;
}

export function Picture({ product, big = false }) {
  const [broken, setBroken] = useState(false);
  return html`<span class=${classes("picture-box", big && "picture-box--big")}>
    ${product.image && !broken
      ? html`<img src=${product.image} alt="" width=${big ? 96 : 64} height=${big ? 96 : 64} loading="lazy" onError=${() => setBroken(true)} />`
      : html`<${Grain} size=${big ? 44 : 30} />`}
  </span>`;
}

/** 非会员价 and 会员价 side by side: two current prices, so neither is struck through. Only a time-limited cut has
    one beside it: the lowest price at which it was sold in the week before. */
export function Prices({ offer, terse = false }) {
  const mine = priceFor(offer).kind;
  const side = (kind, fen, label) => html`<div
    class=${classes("price-pair__side", `price-pair__side--${kind}`, mine === kind && kind !== "list" && "price-pair__side--yours")}
  >
    <span class="price-pair__label">${label}${mine === kind && kind !== "list" ? html`<span class=${terse ? "visually-hidden" : ""}> · ${t("price.yours")}</span>` : ""}</span>
    <span class="price-pair__sum"><${Price} minor=${fen} />${kind === "flash" && offer.was_fen > fen && html`<s class="price-was num"><span class="visually-hidden">${t("price.was")} </span>${money(offer.was_fen)}</s>`}</span>
  </div>`;
  const flash = offer.flash_fen != null && piecesLeft(offer) !== 0;
  return html`<div class="price-pair">
    ${flash && side("flash", offer.flash_fen, t("price.flash"))}
    ${side("list", offer.list_fen, t(offer.member_fen == null ? "price.list" : "price.guest"))}
    ${offer.member_fen != null && side("member", offer.member_fen, t("price.member"))}
  </div>`;
}

/** What a bundle is made of, on one line. */
export const partsText = (parts) => t("bundle.parts", { parts: parts.map((one) => `${one.name} × ${one.quantity}`).join(" · ") });

/** How many one may have, in words: of the offer, of the product, of a household. */
export function limitsText(offer) {
  const { max_per_member: each, max_per_household: home, limit_days: days } = offer.product;
  return [
    offer.per_person && t("buy.limit", { n: offer.per_person }),
    each && t("limit.member", { n: each, days: days ?? 30 }),
    home && t("limit.household", { n: home, days: days ?? 30 }),
  ]
    .filter(Boolean)
    .join(" · ");
}

export function viewProduct(offer) {
  if (boot.preview || !connection()?.ready) return;
  connection().send("product.view", { product: offer.product.id }).catch(() => {}); // a click lost to a tunnel is no loss to the viewer
}

export function buy(offer) {
  if (boot.preview) {
    toast(t("preview.only"));
    return;
  }
  viewProduct(offer);
  openSheet("buy", { offer: offer.id });
}

function OfferCard({ offer }) {
  const pieces = piecesLeft(offer);
  const flash = offer.kind === "flash";
  const out = pieces === 0 || offer.status === "sold_out";
  const heldOnly = out && offer.status !== "sold_out" && (offer.counts?.held ?? 0) > 0;
  const over = offer.closes_at && offer.closes_at <= tick.value;
  const saves = planSaves(offer);
  const stopped = offer.status === "paused" || incident.value !== null;
  const { parts } = offer.product;
  const shipBy = offer.ship_by;
  return html`<article class=${classes("deal deal--offer", flash && "deal--flash")} aria-label=${offer.product.name}>
    <${Picture} product=${offer.product} />
      <div class="deal__head">
        ${flash && html`<span class="badge badge--live">${t("deal.flash")}</span>`}
        <h3 class="deal__name clip">${offer.product.name}</h3>
        ${offer.closes_at && !over && html`<${Countdown} until=${offer.closes_at} label=${t("deal.ends")} />`}
      </div>
      <${Prices} offer=${offer} terse />
      <p class="deal__note">
        ${pieces !== null && html`<span class=${classes("num", pieces <= 10 && "strong")}>${t("deal.pieces", { left: pieces, quota: offer.quota, n: pieces })}</span>`}
        ${saves > 0
          ? html`<span class="deal__saves">${t("deal.saves", { sum: money(saves) })}</span>`
          : offer.product.gift_text && html`<span class="clip">${t("deal.gift", { gift: offer.product.gift_text })}</span>`}
        ${parts?.length > 0 && html`<span class="clip">${partsText(parts)}</span>`}
        ${shipBy && html`<span>${t("presale.by", { date: dayText(shipBy) })}</span>`}
      </p>
    <button
      type="button"
      class=${classes("button deal__go", flash || !isPlan.value ? "button--primary" : "button--member")}
      disabled=${over || stopped || (out && pieces !== null && !heldOnly && offer.status === "sold_out")}
      onClick=${() => buy(offer)}
    >
      ${stopped ? t("deal.paused") : over ? t("deal.over") : out ? (heldOnly ? t("deal.held") : t("deal.out")) : flash ? t("deal.grab") : t("deal.buy")}
    </button>
  </article>`;
}

// — poll —

const voting = signal(null); // {poll, choices} while its answer is awaited
const ballotKeys = new Map();

async function cast(question, choices) {
  if (boot.preview) {
    toast(t("preview.only"));
    return;
  }
  voting.value = { poll: question.id, choices };
  const intent = `${question.id}:${choices.join(",")}`;
  if (!ballotKeys.has(intent)) ballotKeys.set(intent, newKey());
  try {
    await connection().send("ballot.cast", { poll: question.id, choices }, { key: ballotKeys.get(intent) });
    you.value = { ...you.value, votes: { ...you.value.votes, [question.id]: choices } };
  } catch (error) {
    if (error.code === "already_voted" && error.details.choices) {
      you.value = { ...you.value, votes: { ...you.value.votes, [question.id]: error.details.choices } };
    }
    if (error.code === "unauthenticated") ask("vote", {}, () => cast(question, choices));
    else toast(refusalText(error), "bad");
  } finally {
    voting.value = null;
  }
}

function PollCard({ question }) {
  const mine = votes.value[question.id];
  const busy = voting.value?.poll === question.id;
  const [picked, setPicked] = useState([]);
  const { choices = [], counts = {}, max_choices: most = 1 } = question;
  const tallied = choices.some((_, i) => counts[i] !== undefined);
  const voters = counts.voters ?? 0;
  const chosen = mine ?? (busy ? voting.value.choices : picked);
  const over = question.open === false || (question.closes_at && question.closes_at <= tick.value);
  const done = Boolean(mine) || over;
  const press = (index) => {
    if (done || busy) return;
    if (most === 1) cast(question, [index]);
    else if (picked.includes(index)) setPicked(picked.filter((other) => other !== index));
    else if (picked.length < most) setPicked([...picked, index].sort((a, b) => a - b));
  };
  const shortest = choices.every((choice) => [...choice].length <= 9);
  return html`<article class="deal deal--poll" aria-label=${t("poll.label")}>
    <div class="deal__head">
      <h3 class="deal__name">${question.question}</h3>
      ${question.closes_at && !over && html`<${Countdown} until=${question.closes_at} label=${t("deal.ends")} />`}
    </div>
    <div class=${classes("ballot", shortest && choices.length <= 4 && "ballot--pairs", busy && "ballot--busy")} role="group" aria-label=${question.question}>
      ${choices.map((choice, i) => {
        const share = tallied && voters ? (counts[i] ?? 0) / voters : 0;
        const on = chosen.includes(i);
        return html`<button
          key=${i}
          type="button"
          class=${classes("ballot__choice", on && "ballot__choice--on")}
          aria-pressed=${on}
          aria-disabled=${done || null}
          style=${{ "--share": tallied ? share : 0 }}
          onClick=${() => press(i)}
        >
          <span class="ballot__text">${on && html`<${Icon} name="check" />`}${choice}</span>
          ${tallied && html`<span class="num">${Math.round(share * 100)}%</span>`}
        </button>`;
      })}
    </div>
    <p class="deal__note">
      <span class="num">${t("poll.voters", { n: voters })}</span>
      ${done && !tallied && question.results === "after_close" && !over && html`<span>${t("poll.later")}</span>`}
      ${over && html`<span>${t("poll.over")}</span>`}
      ${!done && most > 1 && html`<span>${t("poll.most", { n: most })}</span>`}
      ${!done &&
      most > 1 &&
      html`<button type="button" class="button button--small button--primary" disabled=${!picked.length} onClick=${() => cast(question, picked)}>${t("poll.cast")}</button>`}
    </p>
  </article>`;
}

// — all of it —

function useClosedPoll() {
  // A closed poll stays twenty seconds for its result, then makes room.
  const [hidden, setHidden] = useState(null);
  const question = poll.value;
  useEffect(() => {
    if (!question || question.open !== false) return undefined;
    const timer = setTimeout(() => setHidden(question.id), 20_000);
    return () => clearTimeout(timer);
  }, [question?.id, question?.open]);
  return question && question.id !== hidden ? question : null;
}

/** An order of one's own that waits: one tap leads back to its payment, as long as it is held. */
function UnpaidCard({ order }) {
  const [busy, setBusy] = useState(false);
  const go = async () => {
    setBusy(true);
    try {
      const answer = await post(`/v1/me/orders/${encodeURIComponent(order.order)}/payment`);
      location.assign(answer.payment_url);
    } catch (error) {
      setBusy(false);
      toast(refusalText(error), "bad");
    }
  };
  return html`<article class="deal deal--order" aria-label=${t("order.placed")}>
    <${Icon} name="clock" />
    <div class="deal__body">
      <h3 class="deal__name clip">${order.plan_name ?? order.lines?.[0]?.name ?? t(`order.kind.${order.kind ?? "goods"}`)}</h3>
      <p class="deal__note"><span>${t("order.placed")}${order.total_fen ? ` ${money(order.total_fen)}` : ""}</span><${Countdown} until=${order.hold_until} /></p>
    </div>
    <button type="button" class="button button--primary deal__go" aria-busy=${busy ? "true" : null} onClick=${go}>${t("order.pay")}</button>
  </article>`;
}

function cardOf(one) {
  switch (one.card) {
    case "order":
      return html`<${UnpaidCard} order=${one.order} />`;
    case "offer":
      return html`<${OfferCard} offer=${one} />`;
    case "benefit":
      return html`<${BenefitCard} benefit=${one} />`;
    default:
      return html`<${PollCard} question=${one} />`;
  }
}

export function Deck() {
  const track = useRef();
  const [at, setAt] = useState(0);
  const touched = useRef(0);
  const shown = useRef(null); // keys of the cards drawn before
  const question = useClosedPoll();
  const cards = [
    ...unpaid.value.map((order) => ({ order, key: `order:${order.order}`, came: 0, card: "order" })),
    ...offers.value.filter((offer) => offer.kind === "flash").map((offer) => ({ ...offer, card: "offer" })),
    ...benefits.value.map((benefit) => ({ ...benefit, card: "benefit" })),
    ...offers.value.filter((offer) => offer.kind !== "flash").map((offer) => ({ ...offer, card: "offer" })),
    ...(question ? [{ ...question, card: "poll" }] : []),
  ];
  const keys = cards.map((one) => one.key).join();
  useEffect(() => {
    // What has just come up is shown, unless the person is looking at another card.
    const before = shown.current;
    shown.current = new Set(cards.map((one) => one.key));
    const fresh = before && cards.find((one) => !before.has(one.key));
    if (!fresh || clock.now() - touched.current < 6_000) return;
    const element = track.current?.querySelector(`[data-key="${CSS.escape(fresh.key)}"]`);
    element?.scrollIntoView({ block: "nearest", inline: "start", behavior: lessMotion.matches ? "auto" : "smooth" });
  }, [keys]);
  if (!cards.length) return null;
  const onScroll = () => {
    if (!track.current) return; // the last card went while the scroll was on its way
    const width = track.current.firstElementChild?.offsetWidth ?? 1;
    setAt(Math.min(cards.length - 1, Math.round(track.current.scrollLeft / width)));
  };
  const touch = () => {
    touched.current = clock.now();
  };
  return html`<section class="deck" aria-label=${t("deck.label")}>
    <div class=${classes("deck__track", cards.length === 1 && "deck__track--one")} ref=${track} onScroll=${onScroll} onPointerDown=${touch} onFocusIn=${touch}>
      ${cards.map(
        (one) => html`<div class="deck__card" key=${one.key} data-key=${one.key}>
          ${cardOf(one)}
        </div>`,
      )}
    </div>
    ${cards.length > 1 && html`<div class="deck__dots" aria-hidden="true">${cards.map((one, i) => html`<i key=${one.key} class=${i === at ? "on" : ""}></i>`)}</div>`}
  </section>`;
}
