// After-sales cases: what buyers asked, with their photos; staff settle each once, with a word to the buyer.

import { useEffect, useState } from "preact/hooks";
import { get, post } from "./api.js";
import { count, day, fenOf, money } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Dialog, Problem, TextField, html, t, useAct } from "./ui.js";

const NOTE_MAX = 500;
const STATES = ["open", "settled", "declined", "withdrawn"];
const BADGES = { open: "warn", settled: "ok", declined: "bad", withdrawn: "" };

export function Cases({ may }) {
  const [state, setState] = useState("open");
  const page = usePage(`/v1/cases?state=${state}`, { everyMs: 15_000 });
  const [deciding, decide] = useState(null);
  return html`
    <section class="money__part" aria-labelledby="cases-title">
      <header class="money__head">
        <h2 id="cases-title" class="display">${t("money_cases")}</h2>
        <div class="segments" role="group" aria-label=${t("cases_state")}>
          ${STATES.map((one) => html`<button key=${one} type="button" class="segment" aria-pressed=${String(one === state)} onClick=${() => setState(one)}>${t(`case_${one}`)}</button>`)}
        </div>
      </header>
      <${Listed} page=${page} empty=${t(state === "open" ? "cases_empty" : "cases_none")}>
        <ul class="rows">
          ${(page.list ?? []).map((one) => html`<${Case} key=${one.id} one=${one} can=${may("member.write")} onDecide=${() => decide(one)} />`)}
        </ul>
      <//>
      ${deciding &&
      html`<${Decide}
        one=${deciding}
        onClose=${() => decide(null)}
        onDone=${() => {
          decide(null);
          page.read();
        }}
      />`}
    </section>
  `;
}

function Photos({ one }) {
  if (!one.photos?.length) return null;
  return html`<ul class="evidence-row">
    ${one.photos.map((photo, i) => {
      const address = `/v1/cases/${one.id}/photos/${photo.id}`;
      return html`<li key=${photo.id}><a href=${address} target="_blank" rel="noopener"><img src=${address} alt=${t("photo_n", { n: i + 1 })} width="72" height="72" loading="lazy" /></a></li>`;
    })}
  </ul>`;
}

const linesText = (one) => (one.lines ?? []).map((line) => `${line.name} × ${line.quantity}`).join(" · ");

function Case({ one, can, onDecide }) {
  return html`
    <li class="row-card" aria-label=${`${t(`case_kind_${one.kind}`)} ${linesText(one)}`}>
      <div class="row-card__main">
        <p class="row row--wrap"><strong>${t(`case_kind_${one.kind}`)}</strong><span class=${`badge ${BADGES[one.state] ? `badge--${BADGES[one.state]}` : ""}`}>${t(`case_${one.state}`)}</span><span class="small muted num">${day(one.opened_at)}</span></p>
        <p>${one.reason}</p>
        <p class="small">${linesText(one)}</p>
        <p class="small muted num">${t("order_n", { id: one.order })}</p>
        <${Photos} one=${one} />
        ${one.act &&
        html`<p class="small"><span class="badge badge--ok">${t(`case_act_${one.act}`)}${one.amount_fen > 0 ? ` ${money(one.amount_fen)}` : ""}</span> ${one.note}</p>`}
      </div>
      ${can && one.state === "open" && html`<div class="row row-card__acts"><${Button} kind="primary" small onClick=${onDecide}>${t("case_decide")}<//></div>`}
    </li>
  `;
}

/** What a refund would send back, of which order and to whom: read before anything is done. */
function useRefund(one) {
  const [state, set] = useState({ refund: null, failure: null });
  const read = async () => {
    set({ refund: null, failure: null });
    try {
      set({ refund: await get(`/v1/cases/${one.id}/refund`), failure: null });
    } catch (failure) {
      set({ refund: null, failure });
    }
  };
  useEffect(() => {
    read();
  }, [one.id]);
  return { ...state, read };
}

function About({ refund }) {
  const { order } = refund;
  const sent = order.parcels.filter((one) => !one.case);
  return html`<dl class="case-facts small num">
    <div><dt>${t("case_buyer")}</dt><dd>${[refund.buyer, refund.phone].filter(Boolean).join(" · ")}</dd></div>
    <div><dt>${t("order_word")}</dt><dd>${t("case_paid", { sum: money(order.total_fen), at: day(order.paid_at) })}
      ${order.refunded_fen > 0 && html` · <span class="strong">${t("case_back_before", { sum: money(order.refunded_fen) })}</span>`}</dd></div>
    <div><dt>${t("case_sending")}</dt><dd>${sent.length ? sent.map((one) => [t(one.returned_at ? "sent_returned" : "sent_sent"), one.carrier, one.tracking].join(" ")).join(" · ") : t("case_unsent")}</dd></div>
  </dl>`;
}

/** The lines that go back with their money; position 0 is the freight. */
function Back({ refund }) {
  const nameOf = (position) => refund.order.lines.find((one) => one.position === position)?.name ?? "";
  if (!refund.lines.length) return html`<p class="notice notice--warn notice--slim" role="status">${t("case_nothing_left")}</p>`;
  return html`<ul class="case-back num">
    ${refund.lines.map(
      (one) => html`<li key=${one.position} class="row"><span class="grow">${one.position === 0 ? t("case_freight") : `${nameOf(one.position)} × ${one.quantity}`}</span><span>${money(one.money_fen)}</span></li>`,
    )}
    <li class="row strong"><span class="grow">${t("case_goes_back")}</span><span>${money(refund.money_fen)}${refund.points > 0 ? ` + ${t("case_points", { n: count(refund.points) })}` : ""}</span></li>
  </ul>`;
}

function Decide({ one, onClose, onDone }) {
  const [act, setAct] = useState(one.kind === "missing" || one.kind === "exchange" ? "resend" : "refund");
  const [whole, setWhole] = useState(true);
  const [amount, setAmount] = useState("");
  const [note, setNote] = useState("");
  const [restock, setRestock] = useState(false);
  const [tried, setTried] = useState(false);
  const { refund, failure, read } = useRefund(one);
  const fen = whole || act !== "refund" ? null : fenOf(amount);
  const blind = act === "refund" && whole && !refund?.lines.length; // no sum is known: nothing is confirmed
  const sum = act !== "refund" ? null : whole ? refund?.money_fen : fen;
  const errors = { note: !note.trim() && t("field_needed"), amount: act === "refund" && !whole && !fen && t("field_amount") };
  const decision = useAct(async (key, body) => {
    await post(`/v1/cases/${one.id}/decision`, body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (blind || errors.note || errors.amount) return;
    decision.run({ act, note: note.trim(), amount_fen: fen, restock: act === "refund" && whole && restock });
  };
  return html`
    <${Dialog}
      title=${`${t("case_decide")} · ${t(`case_kind_${one.kind}`)}`}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${decision.failure} onRetry=${decision.failure?.unsure ? decision.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${decision.busy} disabled=${blind} onClick=${go}>${sum ? t("case_do_refund_sum", { sum: money(sum) }) : t(`case_do_${act}`)}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go}>
        <p class="small">${one.reason}</p>
        <p class="small muted">${linesText(one)}</p>
        <${Photos} one=${one} />
        <${Problem} failure=${failure} onRetry=${read} />
        ${refund ? html`<${About} refund=${refund} />` : !failure && html`<p class="small muted" role="status">${t("loading")}</p>`}
        <div class="segments segments--fill" role="group" aria-label=${t("case_decide")}>
          ${["refund", "resend", "decline"].map((name) => html`<button key=${name} type="button" class="segment" aria-pressed=${String(act === name)} onClick=${() => setAct(name)}>${t(`case_act_${name}`)}</button>`)}
        </div>
        ${act === "refund" &&
        html`<label class="row"><input class="switch" type="checkbox" role="switch" checked=${whole} onChange=${(event) => setWhole(event.currentTarget.checked)} /><span>${t("case_whole")}</span></label>
          <p class="small muted">${t(whole ? "case_whole_help" : "case_amount_help")}</p>
          ${whole && refund && html`<${Back} refund=${refund} />`}
          ${whole
            ? html`<label class="row"><input class="switch" type="checkbox" role="switch" checked=${restock} onChange=${(event) => setRestock(event.currentTarget.checked)} /><span>${t("case_restock")}</span></label>`
            : html`<${TextField} label=${t("case_amount")} inputmode="decimal" value=${amount} onInput=${setAmount} error=${tried && errors.amount} />`}`}
        ${act === "resend" && html`<p class="small muted">${t("case_resend_help")}</p>`}
        <${TextField} label=${t("case_note")} long value=${note} maxlength=${NOTE_MAX} onInput=${setNote} error=${tried && errors.note} />
      </form>
    <//>
  `;
}
