// Giving a plan back: every part of the sum before anything is done, or leaving at the period's end with an undo.

import { useEffect, useState } from "preact/hooks";

import { call, get, once, post } from "./api.js";
import { html } from "./dom.js";
import { dateText, money, shortTime } from "./format.js";
import { Busy, Notice, Sheet, openSheet } from "./sheet.js";
import { toast } from "./state.js";
import { refusalText, t } from "./words.js";

const keys = new Map();

function Row({ name, fen, off = true }) {
  if (!fen && off) return null;
  return html`<dt>${name}</dt><dd class=${off ? "sums__off" : ""}>${off ? "−" : ""}${money(fen)}</dd>`;
}

function Itemised({ bill }) {
  return html`<section class="bill">
    <dl class="pairs">
      <${Row} name=${t("leave.fee", { name: bill.plan_name })} fen=${bill.fee_fen} off=${false} />
      <${Row} name=${t("leave.price")} fen=${bill.price_fen} />
      <${Row} name=${t("leave.freight")} fen=${bill.freight_fen} />
      ${bill.gifts?.filter((one) => !one.returned).map((one) => html`<${Row} key=${one.title} name=${t("leave.gift", { title: one.title })} fen=${one.value_fen} />`)}
      <${Row} name=${t("leave.time")} fen=${bill.time_fen} />
    </dl>
    <p class="bill__total row row--apart"><span>${t("leave.payable")}</span><strong class="num">${money(bill.payable_fen)}</strong></p>
  </section>`;
}

export function LeaveSheet() {
  const [bill, setBill] = useState(null);
  const [error, setError] = useState("");
  const [busy, setBusy] = useState("");
  const [sure, setSure] = useState(false);
  const read = () => get("/v1/me/plan/refund").then(setBill, (refusal) => setError(refusalText(refusal)));
  useEffect(() => {
    read();
  }, []);
  const back = () => openSheet("mine", { tab: "me" });
  const act = (name, work) => async () => {
    setBusy(name);
    setError("");
    try {
      await work();
    } catch (refusal) {
      setError(refusalText(refusal));
      setSure(false);
      await read();
    } finally {
      setBusy("");
    }
  };
  const refund = act("refund", async () => {
    await once(keys, ["plan.refund", bill.order, bill.payable_fen], (key) => post("/v1/me/plan/refund", { payable_fen: bill.payable_fen }, { key }));
    toast(t("leave.done", { sum: money(bill.payable_fen) }), "ok");
    back();
  });
  const cancel = act("cancel", async () => {
    await post("/v1/me/plan/cancel");
    await read();
  });
  const undo = act("undo", async () => {
    await call("DELETE", "/v1/me/plan/cancel");
    await read();
  });
  if (!bill) {
    return html`<${Sheet} title=${t("leave.title")} onBack=${back}>
      ${error ? html`<${Notice} kind="bad" icon="warn">${error}<//>` : html`<div class="skeleton" style=${{ height: "200px" }}></div>`}
    <//>`;
  }
  const money_back = bill.way !== "end";
  const foot = html`<div class="stack">
    ${error && html`<p class="field__error" role="alert">${error}</p>`}
    ${money_back &&
    (sure
      ? html`<${Busy} busy=${busy === "refund"} large kind="danger" onClick=${refund}>${t("leave.sure", { sum: money(bill.payable_fen) })}<//>`
      : html`<${Busy} large kind="" onClick=${() => setSure(true)}>${t("leave.refund", { sum: money(bill.payable_fen) })}<//>`)}
    ${bill.cancelled
      ? html`<${Busy} busy=${busy === "undo"} kind="member" onClick=${undo}>${t("leave.undo")}<//>`
      : html`<${Busy} busy=${busy === "cancel"} kind=${money_back ? "quiet" : ""} onClick=${cancel}>${t("leave.end", { date: dateText(bill.ends_at) })}<//>`}
  </div>`;
  return html`<${Sheet} title=${t("leave.title")} onBack=${back} foot=${foot}>
    <div class="stack" style=${{ "--gap": "16px" }}>
      ${bill.cancelled && html`<${Notice} kind="warn" icon="clock">${t("leave.cancelled", { date: dateText(bill.ends_at) })}<//>`}
      <p>${t(`leave.way.${bill.way}`, { date: dateText(bill.ends_at) })}</p>
      ${money_back && html`<${Itemised} bill=${bill} />`}
      ${bill.way === "whole" && bill.whole_until && html`<p class="small num">${t("leave.until", { time: shortTime(bill.whole_until) })}</p>`}
      <p class="tiny muted">${t("leave.after")}</p>
    </div>
  <//>`;
}
