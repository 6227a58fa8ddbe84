// Budgets, and the second person: who asks cannot grant, and what was granted is used once.

import { useEffect, useState } from "preact/hooks";
import { get, items, post, put } from "./api.js";
import { clock as timeOfDay, day, fenOf, money, yuan } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { Button, Dialog, Problem, TextField, html, known, t, useAct } from "./ui.js";

const ASKED_MS = 5_000;
const NOTE_MAX = 200;

const ownAsk = (me, one) => one.asked_by === `staff:${me.id}` || one.asked_by === me.id;

/** What waits for a second person. `show`: only that show's, and nothing at all where nothing waits. */
export function Approvals({ me, show = null, onDone = () => {} }) {
  const page = usePage("/v1/approvals?state=asked&limit=100", { everyMs: ASKED_MS });
  const [deciding, decide] = useState(null); // {ask, grant}
  const list = (page.list ?? []).filter((one) => !show || one.show === show);
  if (show && !list.length) return null;
  const may = me.permissions.includes("approve");
  const body = html`<ul class="rows">
    ${list.map((one) => html`<${Ask} key=${one.id} ask=${one} own=${ownAsk(me, one)} may=${may} decide=${(grant) => decide({ ask: one, grant })} />`)}
  </ul>`;
  return html`
    <section class=${show ? "pane" : "money__part"} aria-labelledby="approvals-title">
      <header class=${show ? "pane__head" : "money__head"}><h2 id="approvals-title" class=${show ? "pane__title" : "display"}>${t("approvals")}</h2>${!show && html`<p class="muted small">${t("approvals_lead")}</p>`}</header>
      ${show ? html`<div class="pane__body">${body}</div>` : html`<${Listed} page=${{ ...page, list: page.list && list }} empty=${t("approvals_empty")}>${body}<//>`}
      ${deciding &&
      html`<${Decide}
        ...${deciding}
        onClose=${() => decide(null)}
        onDone=${() => {
          decide(null);
          page.read();
          onDone();
        }}
      />`}
    </section>
  `;
}

const ruleText = (rule) => {
  const key = `rule_${rule.rule}`;
  return known(key) ? t(key, { sum: money(rule.fen), limit: money(rule.limit_fen) }) : rule.text;
};

function Ask({ ask, own, may, decide }) {
  return html`
    <li class="row-card" aria-label=${ask.title}>
      <div class="row-card__main">
        <p class="strong">${ask.title}</p>
        <p class="small muted">${known(`ask_${ask.act.replace(/\W/g, "_")}`) ? t(`ask_${ask.act.replace(/\W/g, "_")}`) : ask.act}</p>
        <ul class="row-card__rules">${ask.rules.map((rule, i) => html`<li key=${i} class="small">${ruleText(rule)}</li>`)}</ul>
        <p class="small muted num">${t("asked_by", { name: ask.asked_name, time: timeOfDay(ask.asked_at, false) })} · ${t("valid_to", { time: timeOfDay(ask.expires_at, false) })}</p>
      </div>
      ${own
        ? html`<p class="small muted">${t("approval_own")}</p>`
        : may &&
          html`<div class="row row-card__acts">
            <${Button} kind="primary" small onClick=${() => decide(true)}>${t("grant")}<//>
            <${Button} small onClick=${() => decide(false)}>${t("decline")}<//>
          </div>`}
    </li>
  `;
}

function Decide({ ask, grant, onClose, onDone }) {
  const [note, setNote] = useState("");
  const act = useAct(async (key, body) => {
    await post(`/v1/approvals/${ask.id}/decision`, body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    act.run({ grant, note: note.trim() });
  };
  return html`
    <${Dialog}
      title=${`${t(grant ? "grant" : "decline")} · ${ask.title}`}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${act.failure?.unsure ? act.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${act.busy} onClick=${go}>${t(grant ? "grant" : "decline")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go}>
        <ul class="row-card__rules">${ask.rules.map((rule, i) => html`<li key=${i}>${ruleText(rule)}</li>`)}</ul>
        <p class="small muted">${t(grant ? "grant_help" : "decline_help")}</p>
        <${TextField} label=${t("note_audit")} needed=${false} long value=${note} maxlength=${NOTE_MAX} onInput=${setNote} />
      </form>
    <//>
  `;
}

// — budgets —

const monthOf = () => {
  const parts = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", timeZone: document.body.dataset.timezone || undefined }).formatToParts(Date.now());
  const part = (type) => parts.find((one) => one.type === type).value;
  return `${part("year")}-${part("month")}`;
};

export function Budgets({ me, may }) {
  const [shows, setShows] = useState([]);
  const [show, setShow] = useState("");
  useEffect(() => {
    get("/v1/shows?limit=100").then((answer) => {
      const found = items(answer);
      setShows(found);
      setShow((old) => old || (found.find((one) => ["live", "paused", "ending", "waiting"].includes(one.status)) ?? found[0])?.id || "");
    }, () => {});
  }, []);
  return html`
    <${Approvals} me=${me} />
    <section class="money__part" aria-labelledby="budgets-title">
      <header class="money__head">
        <h2 id="budgets-title" class="display">${t("budgets")}</h2>
        <p class="muted small">${t("budgets_lead")}</p>
      </header>
      ${may("report.read")
        ? html`
            <label class="field money__pick"><span class="field__label">${t("shows")}</span>
              <select class="input" value=${show} onChange=${(event) => setShow(event.currentTarget.value)}>
                ${shows.map((one) => html`<option key=${one.id} value=${one.id} selected=${one.id === show}>${one.title} · ${day(one.starts_at)}</option>`)}
              </select></label>
            ${show && html`<${Limits} show=${show} shows=${shows} can=${may("approve")} />`}
          `
        : html`<p class="muted">${t("fail_forbidden")}</p>`}
    </section>
  `;
}

function Limits({ show, shows, can }) {
  const page = usePage(`/v1/budgets?show=${encodeURIComponent(show)}`, { everyMs: 15_000 });
  const [editing, edit] = useState(null);
  const rows = [...(page.list ?? [])];
  for (const [scope, subject] of [["month", monthOf()], ["show", show]]) {
    if (!rows.some((one) => one.scope === scope)) rows.push({ scope, subject, limit_fen: null, committed_fen: 0, spent_fen: 0, left_fen: null });
  }
  const order = ["month", "show", "benefit"];
  rows.sort((a, b) => order.indexOf(a.scope) - order.indexOf(b.scope));
  const nameOf = (row) => row.title || (row.scope === "show" ? (shows.find((one) => one.id === row.subject)?.title ?? row.subject) : row.subject);
  return html`
    <${Listed} page=${{ ...page, list: page.list && rows }} empty="">
      <ul class="rows">
        ${rows.map((row) => {
          const whole = Math.max(row.limit_fen ?? 0, row.committed_fen, row.spent_fen, 1);
          return html`<li key=${`${row.scope} ${row.subject}`} class="row-card" aria-label=${`${t(`budget_${row.scope}`)} ${nameOf(row)}`}>
            <div class="row-card__main">
              <p class="row row--wrap"><span class="badge">${t(`budget_${row.scope}`)}</span><span class="strong">${nameOf(row)}</span></p>
              ${row.limit_fen !== null &&
              html`<div class=${`cost-meter ${row.committed_fen > row.limit_fen ? "cost-meter--over" : ""}`} aria-hidden="true">
                <div class="cost-meter__track" style=${{ "--spent": row.spent_fen / whole, "--committed": Math.max(row.committed_fen, row.spent_fen) / whole }}></div>
              </div>`}
              <p class="small num row-card__facts">
                <span>${t("costs_spent")} ${yuan(row.spent_fen)}</span><span>${t("costs_committed")} ${yuan(row.committed_fen)}</span>
                <span>${t("budget_limit")} ${row.limit_fen === null ? t("costs_no_limit") : yuan(row.limit_fen)}</span>
              </p>
            </div>
            ${can && html`<div class="row row-card__acts"><${Button} small onClick=${() => edit(row)}>${t("budget_set")}<//></div>`}
          </li>`;
        })}
      </ul>
    <//>
    ${editing &&
    html`<${SetLimit}
      row=${editing}
      name=${nameOf(editing)}
      onClose=${() => edit(null)}
      onDone=${() => {
        edit(null);
        page.read();
      }}
    />`}
  `;
}

function SetLimit({ row, name, onClose, onDone }) {
  const [text, setText] = useState(row.limit_fen === null ? "" : yuan(row.limit_fen));
  const [tried, setTried] = useState(false);
  const limit = text.trim() ? fenOf(text) : null;
  const wrong = text.trim() !== "" && limit === null;
  const act = useAct(async (key, body) => {
    await put("/v1/budgets", body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (!wrong) act.run({ scope: row.scope, subject: row.subject, limit_fen: limit });
  };
  return html`
    <${Dialog}
      title=${`${t("budget_set")} · ${name}`}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${act.failure?.unsure ? act.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${act.busy} onClick=${go}>${t("save")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go}>
        <${TextField} label=${t("budget_yuan")} inputmode="decimal" value=${text} onInput=${setText} hint=${t("budget_none_help")} error=${tried && wrong ? t("field_amount") : null} />
      </form>
    <//>
  `;
}
