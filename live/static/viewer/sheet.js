// The sheet: one thing at a time over the stage. Keeps the focus, gives it back, closes by Esc and by its veil.

import { useId, useLayoutEffect, useRef } from "preact/hooks";

import { Icon, html } from "./dom.js";
import { said, sheet, toasts } from "./state.js";
import { t } from "./words.js";

const FOCUSABLE = 'a[href], button:not(:disabled), input:not(:disabled), select, textarea, [tabindex="0"]';

export function openSheet(name, more = {}) {
  sheet.value = { name, ...more };
}

export function closeSheet() {
  sheet.value = null;
}

export function Sheet({ title, children, foot, onClose = closeSheet, onBack = null }) {
  const panel = useRef();
  const titleId = useId();

  useLayoutEffect(() => {
    const before = document.activeElement;
    const rest = [...document.querySelectorAll("[data-behind-sheet]")];
    for (const element of rest) element.inert = true;
    const wish = panel.current.querySelector("[data-focus]");
    // On a phone the keyboard would cover the sheet before it was read: focus the panel instead.
    (wish && matchMedia("(pointer: fine)").matches ? wish : panel.current).focus({ preventScroll: true });
    return () => {
      for (const element of rest) element.inert = false;
      if (before?.isConnected) before.focus({ preventScroll: true });
    };
  }, []);

  useLayoutEffect(() => {
    const onKey = (event) => {
      if (event.key === "Escape" && !event.isComposing) {
        event.stopPropagation();
        onClose();
      } else if (event.key === "Tab") keepInside(event, panel.current);
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, [onClose]);

  const onVeil = (event) => event.target === event.currentTarget && onClose();
  return html`<div class="sheet" onClick=${onVeil}>
    <div class="sheet__panel" role="dialog" aria-modal="true" aria-labelledby=${titleId} tabindex="-1" ref=${panel}>
      <div class="sheet__head">
        ${onBack &&
        html`<button class="icon-button" type="button" onClick=${onBack} aria-label=${t("back")}><${Icon} name="back" /></button>`}
        <h2 class="sheet__title" id=${titleId}>${title}</h2>
        <button class="icon-button" type="button" onClick=${onClose} aria-label=${t("close")}><${Icon} name="close" /></button>
      </div>
      <div class="sheet__body">${children}</div>
      ${foot && html`<div class="sheet__foot">${foot}</div>`}
    </div>
  </div>`;
}

function keepInside(event, panel) {
  const inside = [...panel.querySelectorAll(FOCUSABLE)].filter((element) => element.offsetParent !== null);
  if (!inside.length) {
    event.preventDefault();
    return;
  }
  const [first, last] = [inside[0], inside[inside.length - 1]];
  const now = document.activeElement;
  if (event.shiftKey && (now === first || now === panel || !panel.contains(now))) {
    event.preventDefault();
    last.focus();
  } else if (!event.shiftKey && (now === last || !panel.contains(now))) {
    event.preventDefault();
    first.focus();
  }
}

export function Toasts() {
  return html`<div class="toasts">
      ${toasts.value.map((one) => html`<div key=${one.id} class=${`toast ${one.kind ? `toast--${one.kind}` : ""}`}>${one.text}</div>`)}
    </div>
    <div class="visually-hidden" role="status" aria-live="polite">${said.value}</div>`;
}

export function Field({ label, hint, error, id, children }) {
  return html`<div class="field">
    <label class="field__label" for=${id}>${label}</label>
    ${children}
    ${hint && !error && html`<p class="field__hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="field__error" id=${`${id}-error`} role="alert">${error}</p>`}
  </div>`;
}

export function Busy({ busy, kind = "primary", children, block = true, large = false, class: more, ...rest }) {
  const names = ["button", kind && `button--${kind}`, block && "button--block", large && "button--large", more];
  return html`<button type="button" class=${names.filter(Boolean).join(" ")} aria-busy=${busy ? "true" : null} ...${rest}>
    ${children}
  </button>`;
}

export function Notice({ kind = "", icon = "info", children, ...rest }) {
  return html`<div class=${`notice ${kind && `notice--${kind}`}`} ...${rest}><${Icon} name=${icon} /><div>${children}</div></div>`;
}
