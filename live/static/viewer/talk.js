// What is said: a list that stays light at any speed, and the line to write in.

import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

import { newKey } from "../socket.js";
import { ask, connection } from "./actions.js";
import { Grain, Icon, classes, html } from "./dom.js";
import { Sound } from "./player.js";
import { boot, degraded, mutedUntil, onAir, pinned, sampling, slowUntil, status, tick, toast, you } from "./state.js";
import { refusalText, t } from "./words.js";

const KEPT = 600; // comments in memory while following; twice that while reading back
const ROWS_MAX = 100; // in the document
const OVERSCAN_PX = 240;
const ROW_GUESS_PX = 34;
const LENGTH_MAX = 200; // code points
const NEAR_END_PX = 48;

let lines = []; // {seq, name, text, badge, viewer, own, key, pending}
const bySeq = new Map();
const version = signal(0); // the list changed
const following = signal(true);
const unread = signal(0);
const heights = new Map(); // row id -> px
let waiting = []; // arrived, not yet drawn
let due = false;

const idOf = (line) => line.key ?? line.seq;

/** Comments arrive by the frame; the page draws once per animation frame. */
export function addComments(comments) {
  waiting.push(...comments);
  if (due) return;
  due = true;
  // A hidden tab has no animation frames; the timer keeps memory bounded there.
  const timer = setTimeout(take, 1000);
  requestAnimationFrame(() => {
    clearTimeout(timer);
    take();
  });
}

function take() {
  if (!due) return;
  due = false;
  const fresh = waiting;
  waiting = [];
  let added = 0;
  for (const comment of fresh) {
    if (bySeq.has(comment.seq)) continue;
    const line = { ...comment, own: comment.viewer === you.value.id };
    bySeq.set(comment.seq, line);
    lines.push(line);
    added += 1;
  }
  lines.sort(bySequence);
  trim();
  if (!following.value) unread.value += added;
  version.value += 1;
  tellReader(fresh.filter((comment) => comment.viewer !== you.value.id));
}

const bySequence = (a, b) => (a.seq ?? Infinity) - (b.seq ?? Infinity);

function trim() {
  const most = following.value ? KEPT : KEPT * 2;
  if (lines.length <= most) return;
  for (const line of lines.splice(0, lines.length - most)) {
    if (line.seq) bySeq.delete(line.seq);
    heights.delete(idOf(line));
  }
}

export function replaceComments(comments) {
  const mine = lines.filter((line) => line.pending);
  lines = [];
  bySeq.clear();
  waiting = [];
  for (const comment of comments) {
    const line = { ...comment, own: comment.viewer === you.value.id };
    bySeq.set(comment.seq, line);
    lines.push(line);
  }
  lines.push(...mine);
  version.value += 1;
}

export function hideComment(seq) {
  const line = bySeq.get(seq);
  waiting = waiting.filter((comment) => comment.seq !== seq);
  if (!line) return;
  bySeq.delete(seq);
  lines = lines.filter((other) => other !== line);
  version.value += 1;
}

// — to a screen reader: at most two comments in five seconds, else their number —

const spoken = signal("");
const SPEAK_MS = 5_000;
let unsaid = [];
let speaking = null;

function tellReader(comments) {
  unsaid.push(...comments);
  if (speaking || !unsaid.length) return;
  const speak = () => {
    if (!unsaid.length) {
      speaking = null;
      return;
    }
    const now = unsaid;
    unsaid = [];
    spoken.value =
      now.length <= 2
        ? now.map((comment) => t("talk.said", { name: comment.name, text: comment.text })).join(t("list.join"))
        : t("talk.new", { n: now.length });
    speaking = setTimeout(speak, SPEAK_MS);
  };
  speaking = setTimeout(speak, 600);
}

// — the list —

/** Which rows stand in the document: those in view and a little more, never over ROWS_MAX. */
export function slice(rows, top, height) {
  let offset = 0;
  let first = 0;
  while (first < rows.length && offset + (heights.get(idOf(rows[first])) ?? ROW_GUESS_PX) < top - OVERSCAN_PX) {
    offset += heights.get(idOf(rows[first])) ?? ROW_GUESS_PX;
    first += 1;
  }
  let last = first;
  let below = offset;
  while (last < rows.length && last - first < ROWS_MAX && below < top + height + OVERSCAN_PX) {
    below += heights.get(idOf(rows[last])) ?? ROW_GUESS_PX;
    last += 1;
  }
  let rest = 0;
  for (let i = last; i < rows.length; i += 1) rest += heights.get(idOf(rows[i])) ?? ROW_GUESS_PX;
  return { first, last, before: offset, after: rest };
}

function Row({ line }) {
  const badge = line.badge === "host" ? "host" : line.badge === "plan" ? "plan" : "";
  return html`<li
    class=${classes("line", badge && `line--${badge}`, line.own && "line--own", line.pending && "line--pending")}
    data-id=${idOf(line)}
  >
    <span class="line__bubble">
      ${badge === "host" && html`<span class="badge badge--host">${t("badge.host")}</span> `}
      ${badge === "plan" && html`<span class="badge badge--plan"><${Grain} size="11" />${t("badge.plan")}</span> `}
      <span class="line__name">${line.name}</span>
      ${line.reply_name && html`<span class="line__reply"> ${t("talk.reply", { name: line.reply_name })} </span>`}
      <span class="line__text">${line.text}</span>
    </span>
  </li>`;
}

const fewer = () => degraded.value === "comments" || degraded.value === "presence";

/** That not every comment is shown, and how many are where the server says it. */
function sampled() {
  const shown = Math.round(sampling.value?.shown_per_s ?? 0);
  return shown ? t("sampled.rate", { shown }) : t("sampled.some");
}

export function Comments() {
  const box = useRef();
  const [view, setView] = useState({ top: 0, height: 400 });
  version.value; // draw again when the list changes
  const stuck = following.value;
  const total = lines.reduce((sum, line) => sum + (heights.get(idOf(line)) ?? ROW_GUESS_PX), 0);
  const top = stuck ? Math.max(0, total - view.height) : view.top;
  const { first, last, before, after } = slice(lines, top, view.height);

  useLayoutEffect(() => {
    let changed = 0;
    const scroller = box.current;
    const firstSeen = scroller.scrollTop;
    let above = 0;
    for (const row of scroller.querySelectorAll(".line")) {
      const id = row.dataset.id.length > 16 ? row.dataset.id : Number(row.dataset.id);
      const height = row.offsetHeight;
      const old = heights.get(id) ?? ROW_GUESS_PX;
      if (height && height !== heights.get(id)) {
        if (row.offsetTop + old <= firstSeen) above += height - old;
        heights.set(id, height);
        changed += 1;
      }
    }
    if (following.value) scroller.scrollTop = scroller.scrollHeight;
    else if (above) scroller.scrollTop = firstSeen + above; // what is being read stands still
    if (changed) version.value += 1;
  });

  useEffect(() => {
    const scroller = box.current;
    const watch = new ResizeObserver(() => {
      setView((old) => (old.height === scroller.clientHeight ? old : { ...old, height: scroller.clientHeight }));
      if (following.value) scroller.scrollTop = scroller.scrollHeight;
    });
    watch.observe(scroller);
    return () => watch.disconnect();
  }, []);

  const onScroll = ({ currentTarget: scroller }) => {
    const end = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END_PX;
    if (end !== following.value) {
      following.value = end;
      if (end) unread.value = 0;
    }
    if (!end) setView({ top: scroller.scrollTop, height: scroller.clientHeight });
  };
  const toEnd = () => {
    following.value = true;
    unread.value = 0;
    trim();
    version.value += 1;
  };

  return html`<section class="talk" aria-label=${t("talk.label")}>
    ${pinned.value &&
    html`<div class="pinned"><${Icon} name="pin" /><p><span class="line__name">${pinned.value.name}</span> ${pinned.value.text}</p></div>`}
    <div class=${classes("talk__scroll", !stuck && "talk__scroll--back")} ref=${box} onScroll=${onScroll} tabindex="0" aria-label=${t("talk.label")} role="region">
      <ol class="talk__list" style=${{ paddingTop: `${before}px`, paddingBottom: `${after}px` }}>
        ${lines.slice(first, last).map((line) => html`<${Row} key=${idOf(line)} line=${line} />`)}
      </ol>
    </div>
    ${!stuck &&
    html`<button type="button" class="talk__more" onClick=${toEnd}>
      <${Icon} name="down" />${unread.value ? t("talk.unread", { n: unread.value }) : t("talk.latest")}
    </button>`}
    ${(sampling.value || fewer()) && html`<p class="talk__note">${sampled()}</p>`}
    <${Sound} place="talk" />
    <div class="visually-hidden" role="log" aria-live="polite" aria-label=${t("talk.label")}>${spoken.value}</div>
  </section>`;
}

// — the line to write in —

const DRAFT = `draft:${boot.show?.id ?? ""}`;
export const draft = signal(kept(DRAFT));

function kept(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return ""; // storage forbidden: the draft lives as long as the page
  }
}

function keepDraft(text) {
  draft.value = text;
  try {
    if (text) sessionStorage.setItem(DRAFT, text);
    else sessionStorage.removeItem(DRAFT);
  } catch {
    // as above
  }
}

/** Say the line. Before sign-in it is kept, and said after. */
export function say(text) {
  const line = [...text.trim()].slice(0, LENGTH_MAX).join("");
  if (!line) return;
  ask("comment", { text: line }, () => {
    const key = newKey();
    const local = { key, name: you.value.name, badge: you.value.badge, text: line, own: true, pending: true };
    lines.push(local);
    following.value = true;
    unread.value = 0;
    version.value += 1;
    keepDraft("");
    connection()
      .send("comment.post", { text: line }, { key })
      .then((answer) => {
        lines = lines.filter((other) => other !== local && other.seq !== answer.seq);
        const own = {
          ...local,
          text: answer.text ?? line, // as the store keeps it
          name: answer.name ?? local.name,
          badge: answer.badge ?? local.badge,
          seq: answer.seq,
          at: answer.at,
          pending: false,
        };
        heights.delete(key);
        delete own.key;
        bySeq.set(answer.seq, own);
        lines.push(own);
        lines.sort(bySequence);
        version.value += 1;
      })
      .catch((error) => {
        lines = lines.filter((other) => other !== local);
        version.value += 1;
        keepDraft(line); // nothing typed is lost
        if (error.code === "muted") mutedUntil.value = tick.value + (error.retry_ms ?? 60_000);
        else if (error.code === "rate_limited" || error.code === "slow_mode") slowUntil.value = tick.value + (error.retry_ms ?? 10_000);
        else toast(refusalText(error), "bad");
      });
  });
}

const secondsTo = (until) => (until ? Math.ceil((until - tick.value) / 1000) : 0);

export function Composer({ children }) {
  const input = useRef();
  const [open, setOpen] = useState(false);
  const muted = secondsTo(mutedUntil.value);
  const slow = secondsTo(slowUntil.value);
  const closed = !onAir.value && status.value !== "waiting";
  const long = [...draft.value].length;
  const over = long > LENGTH_MAX;
  const wait = muted > 0 ? t("talk.muted", { n: muted, seconds: muted }) : slow > 0 ? t("talk.slow", { n: slow, seconds: slow }) : "";
  const submit = (event) => {
    event.preventDefault();
    if (over || wait || closed) return;
    say(draft.value);
    if (matchMedia("(pointer: coarse)").matches) input.current.blur();
  };
  const hint = closed ? t("talk.closed") : wait || t("talk.hint");
  return html`<form class=${classes("composer", open && "composer--open")} onSubmit=${submit}>
    <div class=${classes("composer__field", (wait || closed) && "composer__field--wait")}>
      <label class="visually-hidden" for="say">${t("talk.say")}</label>
      <input
        id="say"
        ref=${input}
        type="text"
        autocomplete="off"
        autocapitalize="sentences"
        enterkeyhint="send"
        value=${draft.value}
        placeholder=${hint}
        aria-describedby="say-note"
        disabled=${closed}
        onInput=${(event) => keepDraft(event.target.value)}
        onFocus=${() => setOpen(true)}
        onBlur=${() => setOpen(false)}
        onKeyDown=${(event) => event.key === "Enter" && event.isComposing && event.stopPropagation()}
      />
      ${long > LENGTH_MAX - 40 && html`<span class=${classes("composer__count num", over && "composer__count--over")}>${LENGTH_MAX - long}</span>`}
      ${draft.value.trim() &&
      html`<button type="submit" class="composer__send" disabled=${Boolean(wait) || over} onPointerDown=${(event) => event.preventDefault()} aria-label=${t("talk.send")}>
        ${wait ? html`<span class="num">${Math.max(muted, slow)}</span>` : html`<${Icon} name="send" />`}
      </button>`}
    </div>
    <p id="say-note" class="visually-hidden" aria-live="polite">${wait}</p>
    ${children}
  </form>`;
}
