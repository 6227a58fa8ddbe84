// What the panel knows of one show: states by key, comments, ticker, numbers, line. Only the wire and the
// answers of the API write here; the parts of the screen read.

import { batch, computed, signal } from "@preact/signals";
import { asks, asMs } from "./format.js";

const COMMENTS_MAX = 400; // rows kept; the screen draws fewer
const TICKER_MAX = 60;
const SERIES_MAX = 2700; // 90 minutes at one sample in 2 s

/** Events that the ticker tells; everything else is on the screen already. */
export const TICKER = new Set(["order.placed", "order.paid", "plan.joined", "benefit.claimed", "offer.sold_out"]);

/** Events after which the rundown may look different. */
const MOVES_CUES = /^(offer|benefit|poll|announcement|cue|show)\./;

export function makeStore(show, clock) {
  const cells = new Map(); // state key -> signal of data | null
  const keys = signal([]);
  const queue = []; // events of one frame, drawn together
  const store = {
    show: signal(show), // the staff's row of the show
    cues: signal(null), // null until read
    cuesFailure: signal(null),
    comments: signal([]),
    hidden: signal(new Set()), // seqs taken from view
    ticker: signal(readKept(`panel.ticker.${show.id}`).filter((one) => TICKER.has(one?.type))),
    numbers: signal(null), // the last answer of …/live, in the panel's words
    numbersAt: signal(0), // when it came; the screen shows its age when it grows
    numbersFailure: signal(null),
    series: signal(readKept(`panel.series.${show.id}`).filter((one) => Array.isArray(one) && one.length === 5)),
    muted: signal(new Map(readKept(`panel.muted.${show.id}`).filter((one) => Array.isArray(one) && one.length === 2))), // viewer -> until (ms)
    line: signal({ state: "connecting" }),
    now: signal(clock.now()), // server time, one step a second
    keys,
    onMoved: () => {}, // the rundown should be read again
  };

  store.cell = (key) => {
    let cell = cells.get(key);
    if (!cell) cells.set(key, (cell = signal(null)));
    return cell;
  };
  store.data = (key) => store.cell(key).value;
  store.of = (prefix) =>
    keys.value
      .filter((key) => key.startsWith(`${prefix}:`))
      .map((key) => ({ id: key.slice(prefix.length + 1), ...store.data(key) }));
  store.status = computed(() => store.data("show")?.status ?? store.show.value.status);
  store.tick = () => (store.now.value = clock.now());
  store.time = () => clock.now();

  function putState(key, data) {
    const gone = !data || Object.keys(data).length === 0;
    store.cell(key).value = gone ? null : data;
    const has = keys.peek().includes(key);
    if (gone && has) keys.value = keys.peek().filter((one) => one !== key);
    if (!gone && !has) keys.value = [...keys.peek(), key];
  }

  function addComments(events) {
    if (!events.length) return;
    const seen = new Set(store.comments.peek().map((one) => one.seq));
    const fresh = events.filter((one) => !seen.has(one.seq)).map(commentOf);
    if (!fresh.length) return;
    store.comments.value = [...store.comments.peek(), ...fresh]
      .sort((a, b) => a.seq - b.seq)
      .slice(-COMMENTS_MAX);
  }

  store.hide = (seq) => {
    store.hidden.value = new Set(store.hidden.peek()).add(seq);
  };

  store.setMuted = (viewer, until) => {
    const muted = new Map(store.muted.peek());
    if (until) muted.set(viewer, until);
    else muted.delete(viewer);
    store.muted.value = muted;
    keep(`panel.muted.${show.id}`, [...muted]);
  };

  store.onWelcome = (message, fresh) => {
    batch(() => {
      flush();
      if (fresh) {
        for (const key of keys.peek()) store.cell(key).value = null;
        keys.value = [];
        for (const state of message.states ?? []) putState(state.key, state.data);
      }
      addComments(message.comments ?? []);
      addTold(message.ticker ?? []);
      store.tick();
    });
    store.onMoved();
  };

  store.onStates = (changed) => {
    batch(() => {
      for (const [key, data] of changed) putState(key, data);
    });
    for (const key of changed.keys()) {
      if (/^(offer|benefit|poll|announcement|show|cues)\b/.test(key)) {
        store.onMoved();
        break;
      }
    }
  };

  store.onEvent = (event) => {
    if (queue.push(event) === 1) queueMicrotask(() => batch(flush));
  };

  function flush() {
    const events = queue.splice(0);
    const comments = [];
    const told = [];
    let moved = false;
    for (const event of events) {
      const type = event.type;
      if (type === "comment.posted") comments.push(event);
      else if (type === "comment.hidden") store.hide(event.comment);
      else if (type === "viewer.muted") store.setMuted(event.viewer, event.until);
      else if (type === "viewer.unmuted") store.setMuted(event.viewer, null);
      else if (TICKER.has(type)) told.push(event);
      if (MOVES_CUES.test(type ?? "")) moved = true;
    }
    addComments(comments);
    addTold(told);
    if (moved) store.onMoved();
  }

  /** Newest first; what the welcome tells again is there already. */
  function addTold(events) {
    const seen = new Set(store.ticker.peek().map(tickKey));
    const fresh = events.filter((one) => TICKER.has(one.type) && !seen.has(tickKey(one)));
    if (!fresh.length) return;
    store.ticker.value = [...fresh.reverse(), ...store.ticker.peek()].sort((a, b) => b.at - a.at).slice(0, TICKER_MAX);
    keep(`panel.ticker.${show.id}`, store.ticker.peek());
  }

  store.putNumbers = (numbers) => {
    batch(() => {
      store.numbers.value = numbers;
      store.numbersAt.value = Date.now();
      store.numbersFailure.value = null;
      const point = [Date.now(), numbers.viewers, numbers.rate, numbers.claims, numbers.sales_fen];
      store.series.value = [...store.series.peek(), point.map((one) => one ?? null)].slice(-SERIES_MAX);
    });
    if (store.series.peek().length % 15 === 0) keep(`panel.series.${show.id}`, store.series.peek());
  };

  return store;
}

function commentOf(event) {
  const text = event.text ?? "";
  return {
    seq: event.seq,
    at: asMs(event.at),
    name: event.name ?? "",
    text,
    viewer: event.viewer ?? null,
    badge: event.badge ?? "",
    replyTo: event.reply_to ?? null,
    replyName: event.reply_name ?? null,
    question: event.badge !== "host" && asks(text),
  };
}

const tickKey = (event) => `${event.seq} ${event.at}`;

// The plot, the ticker and who was muted survive a reload of this tab; they are a picture, not a record.
function readKept(name) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(name) || "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // a full or closed store only costs the past
  }
}
