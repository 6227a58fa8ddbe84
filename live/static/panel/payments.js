// Odd payments: money that came and fits no order. A person decides, with a note for the audit log.

import { useState } from "preact/hooks";
import { post } from "./api.js";
import { day, money } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Dialog, Problem, TextField, html, known, t, useAct } from "./ui.js";

const NOTE_MAX = 200;

/** What may still be decided: `by_hand` only where the provider would not send it back. */
export function actsOf(payment) {
  if (payment.outcome === "quarantined" && !payment.decided.length) return ["return", "keep"];
  if (payment.stuck && !payment.decided.includes("by_hand")) return ["by_hand"];
  return [];
}

const reasonText = ({ reason }) => (reason && known(`odd_${reason}`) ? t(`odd_${reason}`) : (reason ?? ""));

export function Payments({ may }) {
  const page = usePage("/v1/odd-payments", { everyMs: 15_000 });
  const [deciding, decide] = useState(null); // {payment, act}
  return html`
    <section class="money__part" aria-labelledby="payments-title">
      <header class="money__head">
        <h2 id="payments-title" class="display">${t("money_payments")}</h2>
        <p class="muted small">${t("odd_lead")}</p>
      </header>
      <${Listed} page=${page} empty=${t("odd_empty")}>
        <ul class="rows">
          ${(page.list ?? []).map((payment) => html`<${Payment} key=${payment.id} payment=${payment} can=${may("member.write")} decide=${(act) => decide({ payment, act })} />`)}
        </ul>
      <//>
      ${deciding &&
      html`<${Decide}
        ...${deciding}
        onClose=${() => decide(null)}
        onDone=${() => {
          decide(null);
          page.read();
        }}
      />`}
    </section>
  `;
}

function Payment({ payment, can, decide }) {
  const acts = actsOf(payment);
  return html`
    <li class="row-card" aria-label=${`${payment.ref} ${money(payment.amount_fen)}`}>
      <div class="row-card__main">
        <p class="row row--wrap"><strong class="row-card__sum num">${money(payment.amount_fen)}</strong>
          <span class=${`badge ${acts.length ? "badge--warn" : payment.outcome === "returned" ? "badge--info" : "badge--ok"}`}>${t(`odd_outcome_${payment.outcome}`)}</span></p>
        <p>${reasonText(payment)}</p>
        <p class="small muted num row-card__facts">
          <span>${payment.provider} ${payment.ref}</span>
          <time>${day(payment.recorded_at)}</time>
          ${payment.order && html`<span>${t("order_n", { id: payment.order })}</span>`}
        </p>
        ${payment.returning_fen > 0 && html`<p class="small">${t("odd_returning", { sum: money(payment.returning_fen) })}</p>`}
        ${payment.returned_fen > 0 && html`<p class="small">${t("odd_returned", { sum: money(payment.returned_fen) })}</p>`}
        ${payment.stuck && html`<p class="notice notice--bad notice--slim">${t("odd_stuck", { why: payment.stuck })}</p>`}
        ${payment.decided.length > 0 && html`<p class="small"><span class="badge badge--ok">${t("odd_decided")}</span> ${payment.decided.map((one) => t(`odd_act_${one}`)).join(" · ")}</p>`}
      </div>
      ${can &&
      acts.length > 0 &&
      html`<div class="row row-card__acts">
        ${acts.map((act, i) => html`<${Button} key=${act} kind=${i === 0 ? "primary" : undefined} small onClick=${() => decide(act)}>${t(`odd_act_${act}`)}<//>`)}
      </div>`}
    </li>
  `;
}

function Decide({ payment, act, onClose, onDone }) {
  const [note, setNote] = useState("");
  const [tried, setTried] = useState(false);
  const decision = useAct(async (key, body) => {
    await post(`/v1/odd-payments/${payment.id}/decision`, body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (note.trim()) decision.run({ act, note: note.trim() });
  };
  return html`
    <${Dialog}
      title=${`${t(`odd_act_${act}`)} · ${money(payment.amount_fen)}`}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${decision.failure} onRetry=${decision.failure?.unsure ? decision.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${decision.busy} onClick=${go}>${t(`odd_act_${act}`)}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go}>
        <p>${t(`odd_help_${act}`)}</p>
        <${TextField} label=${t("note_audit")} long value=${note} maxlength=${NOTE_MAX} onInput=${setNote} error=${tried && !note.trim() ? t("field_needed") : null} />
      </form>
    <//>
  `;
}
