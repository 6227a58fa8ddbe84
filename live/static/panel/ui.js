// The small things every part of the panel is made of: words, icons, acts that may fail, dialogs, fields.

import { h } from "preact";
import { useCallback, useEffect, useId, useRef, useState } from "preact/hooks";
import htm from "htm";
import texts from "../panel-texts.js";
import { Failure, newKey } from "./api.js";
import { lang } from "./format.js";

export const html = htm.bind(h);

/** The words for `key`, with {names} filled in. */
export function t(key, values) {
  const text = texts[lang()][key] ?? texts.zh[key] ?? key;
  return values ? text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole)) : text;
}

export const known = (key) => key in texts.zh;

/** What happened and what to do about it, for people. */
export function failureText(failure) {
  const key = `fail_${failure.code}`;
  const values = {
    s: Math.max(1, Math.ceil((failure.retryMs ?? 1000) / 1000)),
    detail: failure.detail || t("fail_status", { code: failure.code }),
    code: failure.code,
  };
  return known(key) ? t(key, values) : t("fail_other", values);
}

const PATHS = {
  back: "M15 5l-7 7 7 7",
  pin: "M9 4h6l-1 6 4 4H6l4-4-1-6zM12 14v6",
  flash: "M13 3L5 14h6l-1 7 8-11h-6l1-7z",
  benefit: "M4 10h16v10H4zM3 7h18v3H3zM12 7v13M12 7c-5 0-5-5-2-4 1.5.5 2 4 2 4zm0 0c5 0 5-5 2-4-1.5.5-2 4-2 4z",
  poll: "M5 20v-8M12 20V5M19 20v-5",
  announcement: "M4 10v4h3l8 4V6l-8 4H4zM18 9c1.5 1.5 1.5 4.5 0 6",
  reply: "M10 6l-6 6 6 6M4 12h10c4 0 6 2 6 6",
  hide: "M4 4l16 16M9.5 9.5a3.5 3.5 0 005 5M6.5 6.8C4.5 8.2 3.2 10 2.5 12c1.8 4 5.3 6.5 9.5 6.5 1.5 0 3-.3 4.2-.9M10 5.7c.7-.1 1.3-.2 2-.2 4.2 0 7.7 2.5 9.5 6.5-.4 1-1 1.9-1.7 2.7",
  mute: "M11 5L6 9H3v6h3l5 4V5zM16 9l6 6M22 9l-6 6",
  close: "M6 6l12 12M18 6L6 18",
  help: "M9 9a3 3 0 115 2c-1.2.8-2 1.5-2 3M12 18v.01",
  moon: "M20 14A8 8 0 0110 4a8 8 0 1010 10z",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  play: "M7 4l13 8-13 8V4z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  plus: "M12 5v14M5 12h14",
  up: "M6 15l6-6 6 6",
  down: "M6 9l6 6 6-6",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  link: "M10 14a4 4 0 006 0l3-3a4 4 0 00-6-6l-1 1M14 10a4 4 0 00-6 0l-3 3a4 4 0 006 6l1-1",
  phone: "M7 3h10v18H7zM11 18h2",
  download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  reload: "M20 11a8 8 0 10-2 6M20 5v6h-6",
  open: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
  speak: "M11 5L6 9H3v6h3l5 4V5zM15 9c1.5 1.5 1.5 4.5 0 6M18 6c3.5 3 3.5 9 0 12",
  list: "M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01",
  chat: "M4 5h16v11H10l-4 4v-4H4z",
  chart: "M4 19h16M6 15l4-5 4 3 5-7",
  edit: "M4 20h4L19 9l-4-4L4 16v4z",
  check: "M5 12l5 5 9-11",
  info: "M12 21a9 9 0 100-18 9 9 0 000 18zM12 11v5M12 8v.1",
  warn: "M12 4l9 16H3L12 4zM12 10v4M12 17v.01",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  out: "M10 4H5v16h5M14 8l4 4-4 4M18 12H9",
};

export const Icon = ({ name, solid }) => html`
  <svg class=${`icon ${solid ? "icon--solid" : ""}`} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>
`;

/** The failure of an act, drawn where the act is, with what to do; announced once. */
export function Problem({ failure, onRetry, onClose, compact }) {
  if (!failure) return null;
  return html`
    <div class=${`notice notice--bad problem ${compact ? "problem--compact" : ""}`} role="alert">
      <${Icon} name="warn" />
      <span class="grow">${failureText(failure)}</span>
      ${onRetry && html`<button type="button" class="link-button problem__act" onClick=${onRetry}>${t("retry")}</button>`}
      ${onClose &&
      html`<button type="button" class="icon-button problem__close" aria-label=${t("close")} onClick=${onClose}>
        <${Icon} name="close" />
      </button>`}
    </div>
  `;
}

let onSignedOut = () => {};
export const whenSignedOut = (callback) => (onSignedOut = callback);

/**
 * An act on the server: at most one at a time, and pressed again after a lost answer it repeats with the
 * same key, so the act happens once. `fn(key, ...args)`; resolves to its answer, or undefined when it failed.
 */
export function useAct(fn) {
  const [state, setState] = useState({ busy: false, failure: null, args: [] });
  const running = useRef(false);
  const kept = useRef({ key: null, body: null });
  const alive = useRef(true);
  useEffect(() => {
    alive.current = true;
    return () => (alive.current = false);
  }, []);
  const latest = useRef(fn);
  latest.current = fn;
  const run = useCallback(async (...args) => {
    if (running.current) return undefined;
    running.current = true;
    const body = JSON.stringify(args);
    if (!kept.current.key || kept.current.body !== body) kept.current = { key: newKey(), body };
    setState({ busy: true, failure: null, args });
    try {
      const answer = await latest.current(kept.current.key, ...args);
      kept.current = { key: null, body: null };
      if (alive.current) setState({ busy: false, failure: null, args });
      return answer ?? true;
    } catch (error) {
      const failure = error instanceof Failure ? error : new Failure("page", 0, String(error));
      if (!(error instanceof Failure)) console.error(error);
      if (!failure.unsure) kept.current = { key: null, body: null };
      if (failure.status === 401) onSignedOut(failure);
      if (alive.current) setState({ busy: false, failure, args });
      return undefined;
    } finally {
      running.current = false;
    }
  }, []);
  return {
    run,
    busy: state.busy,
    failure: state.failure,
    again: () => run(...state.args),
    clear: () => setState({ busy: false, failure: null, args: [] }),
  };
}

/** A button that shows it is working and cannot be pressed meanwhile. */
export function Button({ kind, small, large, block, busy, disabled, type = "button", class: more, children, ...rest }) {
  const classes = ["button"];
  if (kind) classes.push(`button--${kind}`);
  if (small) classes.push("button--small");
  if (large) classes.push("button--large");
  if (block) classes.push("button--block");
  if (more) classes.push(more);
  return html`
    <button type=${type} class=${classes.join(" ")} aria-busy=${busy ? "true" : undefined} disabled=${disabled || busy} ...${rest}>
      ${children}
    </button>
  `;
}

export const IconButton = ({ name, label, pressed, class: more, ...rest }) => html`
  <button
    type="button"
    class=${`icon-button ${more || ""}`}
    aria-label=${label}
    title=${label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)}
    ...${rest}
  >
    <${Icon} name=${name} />
  </button>
`;

/** A native modal dialog: focus stays inside, Esc closes, what is behind is inert. */
export function Dialog({ title, onClose, wide, foot, children }) {
  const element = useRef(null);
  const back = useRef(null);
  const id = useId();
  useEffect(() => {
    back.current = document.activeElement;
    element.current.showModal();
    return () => back.current instanceof HTMLElement && back.current.isConnected && back.current.focus();
  }, []);
  return html`
    <dialog
      ref=${element}
      class=${`dialog ${wide ? "dialog--wide" : ""}`}
      aria-labelledby=${id}
      onCancel=${(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick=${(event) => event.target === element.current && onClose()}
    >
      <div class="dialog__panel">
        <header class="sheet__head">
          <h2 class="sheet__title" id=${id}>${title}</h2>
          <${IconButton} name="close" label=${t("close")} onClick=${onClose} />
        </header>
        <div class="sheet__body">${children}</div>
        ${foot && html`<footer class="sheet__foot">${foot}</footer>`}
      </div>
    </dialog>
  `;
}

/** A labelled control with hint and error; `control` gets the attributes that tie them together. */
export function Field({ label, hint, error, needed, class: more, control }) {
  const id = useId();
  const about = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ") || undefined;
  return html`
    <div class=${`field ${more || ""}`}>
      <label class="field__label" for=${id}>
        ${label}${needed === false && html` <span class="muted">· ${t("optional")}</span>`}
      </label>
      ${control({ id, "aria-describedby": about, "aria-invalid": error ? "true" : undefined })}
      ${hint && html`<p class="field__hint" id=${`${id}-hint`}>${hint}</p>`}
      ${error && html`<p class="field__error" id=${`${id}-error`}>${error}</p>`}
    </div>
  `;
}

export const TextField = ({ label, hint, error, needed, value, onInput, long, class: more, ...rest }) => html`
  <${Field}
    label=${label}
    hint=${hint}
    error=${error}
    needed=${needed}
    class=${more}
    control=${(ties) =>
      long
        ? html`<textarea class="input" value=${value} onInput=${(e) => onInput(e.currentTarget.value)} ...${ties} ...${rest}></textarea>`
        : html`<input class="input" value=${value} onInput=${(e) => onInput(e.currentTarget.value)} ...${ties} ...${rest} />`}
  />
`;

export const SelectField = ({ label, hint, error, needed, value, options, onInput, class: more, ...rest }) => html`
  <${Field}
    label=${label}
    hint=${hint}
    error=${error}
    needed=${needed}
    class=${more}
    control=${(ties) => html`
      <select class="input" value=${value} onChange=${(e) => onInput(e.currentTarget.value)} ...${ties} ...${rest}>
        ${options.map(([key, words]) => html`<option key=${key} value=${key} selected=${key === value}>${words}</option>`)}
      </select>
    `}
  />
`;

/** Copies, and says so on the button itself. */
export function CopyButton({ text, label }) {
  const [done, setDone] = useState(false);
  const field = useRef(null);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // plain http has no clipboard: select the address in a field instead
      field.current.hidden = false;
      field.current.select();
      return;
    }
    setDone(true);
    setTimeout(() => setDone(false), 2000);
  };
  return html`
    <${Button} kind="quiet" small onClick=${copy}>
      <${Icon} name=${done ? "check" : "link"} /><span aria-live="polite">${done ? t("copied") : label}</span>
    <//>
    <input ref=${field} class="input copy-field" readonly hidden value=${text} aria-label=${label} />
  `;
}

/** Tools in a row where there is room, behind one button where there is not. */
export function Menu({ wide, children }) {
  const [open, setOpen] = useState(false);
  const element = useRef(null);
  useEffect(() => {
    if (!open) return undefined;
    const away = (event) => element.current.contains(event.target) || setOpen(false);
    const escape = (event) => {
      if (event.key !== "Escape") return;
      setOpen(false);
      element.current.querySelector("button").focus();
    };
    document.addEventListener("pointerdown", away);
    document.addEventListener("keydown", escape);
    return () => {
      document.removeEventListener("pointerdown", away);
      document.removeEventListener("keydown", escape);
    };
  }, [open]);
  if (wide) return html`<div class="top__tools">${children}</div>`;
  return html`
    <div class="menu" ref=${element}>
      <${IconButton} name="more" label=${t("more")} aria-expanded=${String(open)} onClick=${() => setOpen(!open)} />
      ${open && html`<div class="menu__sheet">${children}</div>`}
    </div>
  `;
}

const WIDE = "(min-width: 1000px)";

/** Whether everything fits beside everything. */
export function useWide() {
  const [wide, setWide] = useState(() => matchMedia(WIDE).matches);
  useEffect(() => {
    const watch = matchMedia(WIDE);
    const change = () => setWide(watch.matches);
    watch.addEventListener("change", change);
    return () => watch.removeEventListener("change", change);
  }, []);
  return wide;
}

export const Badge = ({ badge }) => {
  if (badge !== "host" && badge !== "plan" && badge !== "guest") return null;
  return html`<span class=${`badge badge--${badge}`}>${t(`badge_${badge}`)}</span>`;
};

const KINDS = { pin: "pin", flash: "flash", benefit: "benefit", poll: "poll", announcement: "announcement" };
export const kindIcon = (kind) => KINDS[kind] || "list";

/** Marks a part of the page as changed for people who do not see it; one voice for the whole panel. */
export function say(words, urgent) {
  const voice = document.getElementById(urgent ? "voice-urgent" : "voice");
  if (!voice) return;
  voice.textContent = "";
  setTimeout(() => (voice.textContent = words), 60);
}

/** This device's own choices. A browser that keeps nothing costs only the choice. */
export function remembered(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // nothing hangs on it
  }
}
