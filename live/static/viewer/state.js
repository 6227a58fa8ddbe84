// What the page knows, as signals. The wire writes here; the parts of the page only read.

import { batch, computed, signal } from "@preact/signals";

import { ServerClock } from "../socket.js";
import { toMs } from "./format.js";

export const boot = JSON.parse(document.getElementById("boot")?.textContent ?? "{}");
export const clock = new ServerClock();
export const tick = signal(clock.now()); // the server's time, once a second

let ticking = null;

/** On the server's full seconds, so that every countdown on every phone turns together. */
export function startTicking() {
  clearTimeout(ticking);
  const step = () => {
    tick.value = clock.now();
    ticking = setTimeout(step, 1000 - (clock.now() % 1000) + 4);
  };
  step();
}

export const you = signal({ kind: "guest", name: "", badge: "guest", plan: null, votes: {}, muted_until: null });
export const known = signal(false); // whether `you` came from the server
export const isMember = computed(() => you.value.kind !== "guest");
export const isPlan = computed(() => you.value.kind === "plan");

export const card = signal(boot.show ?? {}); // the show's public card
export const status = signal(boot.show?.status ?? "scheduled");
export const link = signal({ name: "connecting", again: false });
export const refusedAt = signal(null); // members_only | banned | replaced | not_found
export const ended = computed(() => status.value === "ended");
export const onAir = computed(() => ["live", "paused", "ending"].includes(status.value));
export const shut = computed(() => refusedAt.value === "members_only");

export const video = signal(boot.show?.video ?? null);
export const announcement = signal(null);
export const pinned = signal(null);
export const viewers = signal(null);
export const reactions = signal({ like: 0, clap: 0, rice: 0 });
export const offers = signal([]);
export const benefits = signal([]);
export const poll = signal(null);
export const degraded = signal(null); // null | "reactions" | "comments" | "presence": each with the ones before it
export const logDown = signal(false); // the server cannot read the show's log: little that is new comes
export const incident = signal(null); // null | {reason, since}: money stands still, by one act of the staff
export const sampling = signal(null); // null | {shown_per_s, posted_per_s}: not every comment is shown

export const seats = signal({}); // benefit -> {until} | {queued}
export const won = signal({}); // benefit -> {rank, of}
export const missed = signal(null); // the plan came without its gift: {benefit, why, refund_until}
export const votes = computed(() => you.value.votes ?? {});
export const mutedUntil = signal(null);
export const slowUntil = signal(null);
export const orderNews = signal({}); // order -> {state, hold_until}

/** Orders of this person that wait for their payment, the one that lapses first in front. */
export const unpaid = computed(() =>
  Object.values(orderNews.value)
    .filter((order) => order.state === "placed" && order.hold_until > tick.value)
    .sort((a, b) => a.hold_until - b.hold_until),
);

export const sheet = signal(null); // {name, …} on top of the stage
export const toasts = signal([]);
export const said = signal(""); // polite announcement to a screen reader

const seen = new Map(); // state key -> data
let opened = 0; // order in which things came up: the newest stands first
const came = new Map();

export function applyStates(changed) {
  batch(() => {
    let listed = false;
    for (const [key, data] of changed) {
      if (data === null) seen.delete(key);
      else seen.set(key, data);
      if (!came.has(key)) came.set(key, ++opened);
      if (key.startsWith("offer:") || key.startsWith("benefit:") || key.startsWith("poll:")) listed = true;
      else single(key, data);
    }
    if (listed) list();
  });
}

function single(key, data) {
  if (key === "show") {
    if (!data) return;
    card.value = { ...card.value, ...data };
    if (data.status) status.value = data.status;
    if (data.video?.url && data.video.url !== video.value?.url) video.value = data.video;
    if ("announcement" in data) announcement.value = data.announcement || null;
  } else if (key === "announcement") announcement.value = data?.text || null;
  else if (key === "pinned") pinned.value = data?.comment ?? null;
  else if (key === "presence") viewers.value = data?.counts?.viewers ?? null;
  else if (key === "reactions") reactions.value = { ...reactions.value, ...(data?.counts ?? {}) };
  else if (key === "degraded") degraded.value = data?.step ?? null;
  else if (key === "log") logDown.value = data?.up === false;
  else if (key === "incident") incident.value = data?.reason ? data : null;
  else if (key === "sampling") sampling.value = data ?? null;
}

const OPEN = new Set(["open", "sold_out", "paused"]);
const newest = (a, b) => b.came - a.came;

function list() {
  const found = { offer: [], benefit: [], poll: [] };
  for (const [key, data] of seen) {
    const kind = key.split(":", 1)[0];
    if (found[kind]) found[kind].push({ counts: {}, ...data, key, came: came.get(key) });
  }
  offers.value = found.offer.filter((offer) => OPEN.has(offer.status ?? "open")).sort(newest);
  benefits.value = found.benefit.filter((benefit) => (benefit.status ?? "open") !== "closed").sort(newest);
  poll.value = found.poll.sort(newest)[0] ?? null;
}

export function applyYou(data) {
  batch(() => {
    you.value = data;
    known.value = true;
    applyMuted(data.muted_until);
  });
}

/** Muted until then (ms), or free to speak again (null); whichever page of theirs it is. */
export function applyMuted(until) {
  mutedUntil.value = toMs(until ?? null);
}

/** Seats held and lines stood in, as the server has them: also right after a reload. */
export function applySeats(found) {
  if (!found) return;
  seats.value = Object.fromEntries(
    Object.entries(found).map(([benefit, seat]) => [
      benefit,
      seat.queued ? { queued: true, ahead: seat.ahead ?? 0 } : { until: toMs(seat.until) },
    ]),
  );
}

export function applyWelcome(message) {
  batch(() => {
    if (message.you) applyYou(message.you);
    applySeats(message.you?.seats);
    if (message.show) {
      card.value = { ...card.value, ...message.show };
      if (message.show.status) status.value = message.show.status;
      if (message.show.video?.url && message.show.video.url !== video.value?.url) video.value = message.show.video;
    }
    refusedAt.value = null;
  });
}

let toastId = 0;

/** A short word to the person; also said to a screen reader. Waits longer the longer it is. */
export function toast(text, kind = "") {
  const id = ++toastId;
  toasts.value = [...toasts.value.filter((shown) => shown.text !== text).slice(-2), { id, text, kind }];
  said.value = text;
  setTimeout(() => {
    toasts.value = toasts.value.filter((shown) => shown.id !== id);
  }, 2500 + Math.min(4000, text.length * 90));
}

/** Seats of a benefit as the page shows them; no number is made up. */
export function seatCounts(benefit) {
  const { confirmed = 0, held = 0, queued = 0 } = benefit.counts ?? {};
  return { got: confirmed, paying: held, queued, left: Math.max(0, benefit.quota - confirmed - held) };
}

export function piecesLeft(offer) {
  if (offer.quota === null || offer.quota === undefined) return null;
  const { held = 0, sold = 0 } = offer.counts ?? {};
  return Math.max(0, offer.quota - held - sold);
}

/** The price this viewer pays now, and which one it is. The lowest wins; on a tie no flash piece is used. */
export function priceFor(offer, plan = isPlan.value) {
  const found = [{ kind: "list", fen: offer.list_fen }];
  if (plan && offer.member_fen != null) found.push({ kind: "member", fen: offer.member_fen });
  found.sort((a, b) => a.fen - b.fen);
  if (offer.flash_fen != null && offer.flash_fen < found[0].fen && piecesLeft(offer) !== 0) {
    return { kind: "flash", fen: offer.flash_fen };
  }
  return found[0];
}

/** What membership would save on one unit now: nothing where a flash price is as low already. */
export function planSaves(offer) {
  if (isPlan.value || offer.member_fen == null) return 0;
  return Math.max(0, priceFor(offer, false).fen - offer.member_fen);
}
