// The incident switch for money: one act stops offers and benefits, tells viewers why, and ends as it began.

import { useEffect, useRef, useState } from "preact/hooks";
import { get, post, remove } from "./api.js";
import { asMs, clock as timeOfDay, span } from "./format.js";
import { Button, Dialog, Icon, Problem, TextField, html, say, t, useAct } from "./ui.js";

const READ_MS = 8_000;
const EXTENSIONS = [0, 300, 600, 900]; // seconds more to pay, once
const REASON_MAX = 100;

/** What the switch says now, read again as others may have thrown it. `told`: what the show's socket says. */
export function useIncident(told) {
  const [state, setState] = useState({ incident: null, payments: null, known: false });
  const turn = useRef(0);
  const read = async () => {
    const mine = (turn.current += 1);
    try {
      const answer = await get("/v1/incident");
      if (mine === turn.current) setState({ incident: answer.incident, payments: answer.payments ?? null, known: true });
    } catch {
      // the next reading tells; an act says its own failure
    }
  };
  useEffect(() => {
    read();
    const timer = setInterval(() => document.visibilityState === "visible" && read(), READ_MS);
    return () => clearInterval(timer);
  }, []);
  useEffect(() => {
    if (state.known) read();
  }, [told]);
  return { ...state, read };
}

export function IncidentButton({ incident }) {
  const [asking, ask] = useState(false);
  if (!incident.known || incident.incident) return null;
  return html`
    <${Button} kind="danger" class="incident-button" onClick=${() => ask(true)}><${Icon} name="warn" />${t("incident_throw")}<//>
    ${asking && html`<${Throw} incident=${incident} onClose=${() => ask(false)} />`}
  `;
}

function Throw({ incident, onClose }) {
  const [reason, setReason] = useState("");
  const [extend, setExtend] = useState(600);
  const [tried, setTried] = useState(false);
  const act = useAct(async (key, body) => {
    await post("/v1/incident", body, { key });
    await incident.read();
    say(t("incident_on"), true);
    onClose();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (reason.trim()) act.run({ reason: reason.trim(), extend_s: extend });
  };
  return html`
    <${Dialog}
      title=${t("incident_title")}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${act.failure?.unsure ? act.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${act.busy} onClick=${go}>${t("incident_confirm")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go}>
        <p>${t("incident_lead")}</p>
        <${TextField} label=${t("incident_reason")} hint=${t("incident_reason_help")} value=${reason} maxlength=${REASON_MAX} onInput=${setReason} error=${tried && !reason.trim() ? t("field_needed") : null} />
        <div class="field">
          <span class="field__label" id="extend-label">${t("incident_extend")}</span>
          <div class="segments segments--fill" role="group" aria-labelledby="extend-label">
            ${EXTENSIONS.map(
              (seconds) => html`<button key=${seconds} type="button" class="segment" aria-pressed=${String(extend === seconds)} onClick=${() => setExtend(seconds)}>${seconds ? t("minutes_n", { n: seconds / 60 }) : t("none")}</button>`,
            )}
          </div>
          <p class="field__hint">${t("incident_extend_help")}</p>
        </div>
      </form>
    <//>
  `;
}

/** Across the screen while it is thrown: since when, why, and the way back. Payments in trouble are said here, too. */
export function IncidentBar({ incident, can, now }) {
  const [tick, setTick] = useState(Date.now());
  const end = useAct(async (key) => {
    await remove("/v1/incident", undefined, { key });
    await incident.read();
    say(t("incident_off"));
  });
  const open = incident.incident;
  useEffect(() => {
    if (!open || now) return undefined;
    const timer = setInterval(() => setTick(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [Boolean(open)]);
  const payments = incident.payments;
  if (open) {
    return html`
      <section class="incident-bar" aria-label=${t("incident_on")}>
        <${Icon} name="warn" />
        <div class="grow" role="alert">
          <p class="incident-bar__title">${t("incident_on")}</p>
          <p>${open.reason}</p>
          <p class="small num">${t("incident_by", { name: open.began_by, time: timeOfDay(open.began_at, false) })} · <span aria-hidden="true">${span((now ?? tick) - asMs(open.began_at))}</span>${open.extended > 0 ? ` · ${t("incident_extended", { n: open.extended })}` : ""}</p>
        </div>
        ${can && html`<${Button} class="incident-bar__end" busy=${end.busy} onClick=${() => end.run()}>${t("incident_end")}<//>`}
      </section>
      ${end.failure && html`<div class="bar-notice"><${Problem} failure=${end.failure} onRetry=${end.again} onClose=${end.clear} /></div>`}
    `;
  }
  if (!payments || payments.state === "ok") return null;
  return html`<div class="bar-notice">
    <p class="notice notice--bad notice--slim" role="alert"><${Icon} name="warn" />
      <span><span class="strong">${t(`payments_${payments.state}`)}</span>${t("gap")}${t("payments_waiting", { n: payments.waiting, s: payments.oldest_s })}</span></p>
  </div>`;
}
