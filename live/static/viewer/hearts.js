// Likes: taps are merged and sent once a second; grains and hearts float up on a canvas of few elements.

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import { connection } from "./actions.js";
import { Grain, Icon, classes, html, lessMotion } from "./dom.js";
import { count } from "./format.js";
import { boot, degraded, onAir, reactions, toast } from "./state.js";
import { t } from "./words.js";

const KINDS = ["like", "clap", "rice"];
const SEND_MS = 1_000;
const SEND_MAX = 50; // what one command may carry
const FLOATING_MAX = 14;
const HOLD_MS = 450;

const mine = signal({ like: 0, clap: 0, rice: 0 }); // tapped, not yet in the total we were told
let unsent = {};
let sending = null;

function tap(kind) {
  if (boot.preview || !onAir.value) return;
  unsent[kind] = Math.min(SEND_MAX, (unsent[kind] ?? 0) + 1);
  mine.value = { ...mine.value, [kind]: mine.value[kind] + 1 };
  float(kind);
  sending ??= setTimeout(flush, SEND_MS);
}

function flush() {
  sending = null;
  const batch = unsent;
  unsent = {};
  for (const [kind, number] of Object.entries(batch)) {
    connection()
      .send("reaction.send", { kind, count: number })
      .catch((error) => {
        if (error.code === "rate_limited") toast(t("refused.rate_limited"));
      });
  }
}

/** The total includes what this phone tapped, and never steps back. */
const shown = { like: 0, clap: 0, rice: 0 };
let told = 0;
export function total(kind) {
  const now = reactions.value[kind] ?? 0;
  const sum = KINDS.reduce((all, name) => all + (reactions.value[name] ?? 0), 0);
  if (sum !== told) {
    told = sum;
    mine.value = { like: unsent.like ?? 0, clap: unsent.clap ?? 0, rice: unsent.rice ?? 0 };
  }
  shown[kind] = Math.max(shown[kind], now + mine.value[kind]);
  return shown[kind];
}

const floating = signal([]);
let floatId = 0;

function float(kind) {
  if (lessMotion.matches) return;
  const one = { id: ++floatId, kind, drift: Math.round(Math.random() * 44 - 22), turn: Math.round(Math.random() * 50 - 25) };
  floating.value = [...floating.value.slice(1 - FLOATING_MAX), one];
}

function gone(id) {
  floating.value = floating.value.filter((one) => one.id !== id);
}

function Sign({ kind }) {
  if (kind === "rice") return html`<${Grain} size="24" />`;
  return html`<${Icon} name=${kind === "clap" ? "clap" : "heart"} solid=${kind === "like"} />`;
}

/** Others' likes float too, at most two a beat: a crowd, not a storm. */
function useOthers() {
  const before = useRef(null);
  const sum = KINDS.reduce((all, kind) => all + (reactions.value[kind] ?? 0), 0);
  useEffect(() => {
    if (before.current !== null && sum > before.current && document.visibilityState === "visible") {
      const timers = Array.from({ length: Math.min(2, sum - before.current) }, (_, i) =>
        setTimeout(() => float(KINDS[Math.floor(Math.random() ** 2 * KINDS.length)]), i * 260),
      );
      before.current = sum;
      return () => timers.forEach(clearTimeout);
    }
    before.current = sum;
    return undefined;
  }, [sum]);
}

export function Hearts() {
  const [open, setOpen] = useState(false);
  const holding = useRef(null);
  const held = useRef(false);
  useOthers();
  useEffect(() => {
    if (!open) return undefined;
    const shut = (event) => {
      if (event.type === "keydown" ? event.key === "Escape" : !event.target.closest?.(".hearts")) setOpen(false);
    };
    document.addEventListener("pointerdown", shut);
    document.addEventListener("keydown", shut);
    return () => {
      document.removeEventListener("pointerdown", shut);
      document.removeEventListener("keydown", shut);
    };
  }, [open]);
  const press = () => {
    held.current = false;
    holding.current = setTimeout(() => {
      held.current = true;
      setOpen(true);
    }, HOLD_MS);
  };
  const release = () => clearTimeout(holding.current);
  const click = () => {
    if (!held.current) tap("like");
    held.current = false;
  };
  const key = (event) => {
    if (event.key === "ArrowUp") {
      event.preventDefault();
      setOpen(true);
    }
  };
  const likes = total("like");
  return html`<div class="hearts">
    <div class="hearts__sky" aria-hidden="true">
      ${floating.value.map(
        (one) => html`<span
          key=${one.id}
          class=${`floating floating--${one.kind}`}
          style=${{ "--drift": `${one.drift}px`, "--turn": `${one.turn}deg` }}
          onAnimationEnd=${() => gone(one.id)}
          ><${Sign} kind=${one.kind}
        /></span>`,
      )}
    </div>
    ${open &&
    html`<div class="hearts__more" role="group" aria-label=${t("likes.more")}>
      ${KINDS.filter((kind) => kind !== "like").map(
        (kind) => html`<button key=${kind} type="button" class="round" onClick=${() => tap(kind)} aria-label=${t(`likes.${kind}`)}>
          <${Sign} kind=${kind} /><span class="round__count num">${count(total(kind))}</span>
        </button>`,
      )}
    </div>`}
    <button
      type="button"
      class=${classes("round round--like", degraded.value && "round--calm")}
      onClick=${click}
      onPointerDown=${press}
      onPointerUp=${release}
      onPointerLeave=${release}
      onContextMenu=${(event) => {
        event.preventDefault();
        setOpen(true);
      }}
      onKeyDown=${key}
      disabled=${!onAir.value}
      aria-label=${t("likes.like", { n: likes })}
      aria-haspopup="true"
      aria-expanded=${open}
    >
      <${Icon} name="heart" solid />${likes > 0 && html`<span class="round__count num">${count(likes)}</span>`}
    </button>
  </div>`;
}
