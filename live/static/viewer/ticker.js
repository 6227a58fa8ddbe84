// The ticker: only what really happened, as the log tells it; alike things that come together are one line.

import { signal } from "@preact/signals";

import { Grain, html } from "./dom.js";
import { benefits, clock } from "./state.js";
import { t } from "./words.js";

const SHOWN_MS = 3_200; // a line is read in peace
const MERGE_MS = 2_000; // what comes within this is told together
const NEWS_MS = 60_000; // what is older is not told as just now
const WAITING_MAX = 6; // lines; beyond it alike ones are merged whatever their age

const line = signal(null);
let waiting = []; // {kind, first, names, number, rank, what, at}
let timer = null;
let told = 0; // when the last event told happened

function needsJoin(id) {
  return benefits.value.find((benefit) => benefit.id === id)?.needs === "join";
}

/** How each event is told. Returns null for what is no news for everyone. */
function news(event) {
  switch (event.type) {
    case "benefit.claimed":
      return { kind: needsJoin(event.benefit) ? "seat" : "claim", name: event.name, rank: event.rank };
    case "plan.joined":
      return { kind: event.first === false ? "renewed" : "joined", name: event.name };
    case "order.paid":
      return { kind: "paid", name: event.name, what: event.product_name };
    case "viewers.welcomed":
      return { kind: "home", name: event.name ?? "", number: event.count ?? 1, what: event.plan_name ?? event.tier ?? "" };
    default:
      return null;
  }
}

/** What happened shortly before one came in. */
export function tellRecent(events) {
  const since = Math.max(told, clock.now() - NEWS_MS);
  for (const event of events) if (event.at > since) tell(event);
}

export function tell(event) {
  told = Math.max(told, event.at ?? 0);
  const item = news(event);
  if (!item) return;
  const now = performance.now();
  // Who joins and gets a seat by it is one person's one act: told once, with the rank.
  if (item.kind === "seat") waiting = waiting.filter((other) => !(other.kind === "joined" && other.names[0] === item.name));
  if (item.kind === "joined" && waiting.some((other) => other.kind === "seat" && other.names.includes(item.name))) return;
  const alike = waiting.find(
    (other) => other.kind === item.kind && other.what === item.what && (now - other.at < MERGE_MS || waiting.length >= WAITING_MAX),
  );
  if (alike) {
    alike.names.push(item.name);
    alike.number += item.number ?? 1;
    alike.rank = item.rank;
  } else {
    waiting.push({ ...item, names: [item.name], number: item.number ?? 1, at: now });
  }
  timer ??= setTimeout(next, 350);
}

function next() {
  timer = null;
  const item = waiting.shift();
  line.value = item ? { ...item, id: `${item.at}` } : null;
  if (item) timer = setTimeout(next, waiting.length > 2 ? SHOWN_MS * 0.6 : SHOWN_MS);
}

function words(item) {
  const { names, number, rank, what, kind } = item;
  if (kind === "home") return t("ticker.home", { n: number, what });
  if (number > 1) return t(`ticker.${kind}.many`, { name: names[0], n: number, rank, what });
  return t(`ticker.${kind}`, { name: names[0], rank, what });
}

export function Ticker() {
  const item = line.value;
  return html`<div class="ticker" aria-hidden="true">
    ${item && html`<p class=${`ticker__line ticker__line--${item.kind}`} key=${item.id}><${Grain} size="13" />${words(item)}</p>`}
  </div>`;
}
