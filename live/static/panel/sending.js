// Parcels: the list of what is to be sent as a file, and the tracking numbers back in, row by row.

import { useEffect, useState } from "preact/hooks";
import { get, items, post, put } from "./api.js";
import { day, fenOf, yuan } from "./format.js";
import { usePage } from "./lists.js";
import { Button, Icon, IconButton, Problem, TextField, html, known, t, useAct } from "./ui.js";

const ROWS_MAX = 500;
const SENT = { sent: "ok", again: "", returned: "info", refused: "bad" };

const COLUMNS = { order: /^(order|订单)/i, carrier: /^(carrier|快递|承运)/i, tracking: /^(tracking|单号|运单)/i, case: /^(case|售后)/i, gift: /^(gift|会员礼)/i, claim: /^(claim|权益)/i };

/** Rows of "order, carrier, tracking[, case]", with commas or tabs, a head or none. With a head, also of gifts of
 *  periods and of what a claim won, which has no order. */
export function parseTracking(text) {
  const rows = [];
  const bad = [];
  let columns = ["order", "carrier", "tracking", "case"];
  for (const [at, line] of text.replace(/^\ufeff/, "").split(/\r?\n/).entries()) {
    if (!line.trim()) continue;
    const cells = line.split(/[\t,，]/).map((cell) => cell.trim().replace(/^"(.*)"$/, "$1"));
    if (/^(order|订单)/i.test(cells[0])) {
      columns = cells.map((cell) => Object.keys(COLUMNS).find((name) => COLUMNS[name].test(cell)) ?? "");
      continue;
    }
    const row = Object.fromEntries(columns.map((name, i) => [name, cells[i] ?? ""]));
    const { order, carrier, tracking, claim } = row;
    if ((order || claim) && carrier && tracking) rows.push({ order, carrier, tracking, case: row.case || null, gift: row.gift || null, claim: claim || null });
    else bad.push(at + 1);
  }
  return { rows, bad };
}

export function Sending({ may }) {
  const [shows, setShows] = useState([]);
  const [show, setShow] = useState("");
  useEffect(() => {
    get("/v1/shows?limit=100").then((answer) => setShows(items(answer)), () => {});
  }, []);
  return html`
    <section class="money__part" aria-labelledby="sending-title">
      <header class="money__head"><h2 id="sending-title" class="display">${t("sending_out")}</h2><p class="muted small">${t("sending_lead")}</p></header>
      <div class="row row--wrap money__line">
        <label class="field money__pick"><span class="field__label">${t("shows")}</span>
          <select class="input" value=${show} onChange=${(event) => setShow(event.currentTarget.value)}>
            <option value="">${t("sending_all")}</option>
            ${shows.map((one) => html`<option key=${one.id} value=${one.id}>${one.title} · ${day(one.starts_at)}</option>`)}
          </select></label>
        <a class="button button--primary" download href=${`/v1/fulfilment.csv${show ? `?show=${encodeURIComponent(show)}` : ""}`}><${Icon} name="download" />${t("sending_download")}</a>
      </div>
    </section>
    ${may("member.write") && html`<${Tracking} />`}
    <${Regions} can=${may("catalog.write")} />
  `;
}

function Tracking() {
  const [text, setText] = useState("");
  const [tried, setTried] = useState(false);
  const [outcomes, setOutcomes] = useState(null);
  const { rows, bad } = parseTracking(text);
  const error = !rows.length ? t("tracking_none") : bad.length ? t("tracking_bad", { lines: bad.slice(0, 8).join(", ") }) : rows.length > ROWS_MAX ? t("tracking_many", { n: ROWS_MAX }) : null;
  const send = useAct(async (key, given) => {
    setOutcomes((await post("/v1/fulfilment", { rows: given }, { key })).rows);
  });
  const go = (event) => {
    event.preventDefault();
    setTried(true);
    if (!error) send.run(rows);
  };
  const read = async (event) => {
    const [file] = event.currentTarget.files;
    event.currentTarget.value = "";
    if (file) setText(await file.text());
  };
  return html`
    <section class="money__part" aria-labelledby="tracking-title">
      <header class="money__head"><h2 id="tracking-title" class="display">${t("tracking")}</h2><p class="muted small">${t("tracking_lead")}</p></header>
      <form class="stack" onSubmit=${go}>
        <${TextField} label=${t("tracking_rows")} hint=${rows.length ? t("tracking_n", { n: rows.length }) : t("tracking_example")} long rows="4" spellcheck="false" value=${text} onInput=${(value) => (setText(value), setOutcomes(null))} error=${tried && error} />
        <div class="row row--wrap">
          <${Button} kind="primary" type="submit" busy=${send.busy}>${t("tracking_send")}<//>
          <label class="button file-button"><input class="visually-hidden" type="file" accept=".csv,text/csv,text/plain" onChange=${read} />${t("tracking_file")}</label>
        </div>
        <${Problem} failure=${send.failure} onRetry=${send.failure?.unsure ? send.again : null} />
      </form>
      ${outcomes &&
      html`<div class="scroll-x" role="status"><table class="table">
        <caption class="small muted">${t("tracking_done", { n: outcomes.filter((one) => one.outcome !== "refused").length, bad: outcomes.filter((one) => one.outcome === "refused").length })}</caption>
        <thead><tr><th scope="col">${t("order_word")}</th><th scope="col">${t("tracking_number")}</th><th scope="col">${t("outcome")}</th></tr></thead>
        <tbody>${outcomes.map(
          (one, i) => html`<tr key=${i}><td class="num">${one.order || one.claim}</td><td class="num">${one.tracking}</td>
            <td><span class=${`badge ${SENT[one.outcome] ? `badge--${SENT[one.outcome]}` : ""}`}>${t(`sent_${one.outcome}`)}</span> ${one.code && (known(`row_${one.code}`) ? t(`row_${one.code}`) : (one.message ?? one.code))}</td></tr>`,
        )}</tbody>
      </table></div>`}
    </section>
  `;
}

// — freight by region —

const blank = { region: "", flat: "", free: "", min: "", max: "", covered: true };
const asText = (row) => ({
  region: row.region ?? "",
  flat: yuan(row.flat_fen ?? 0),
  free: row.free_from_fen == null ? "" : yuan(row.free_from_fen),
  min: row.days_min ?? "",
  max: row.days_max ?? "",
  covered: row.covered !== false,
});
const numberOf = (text) => (String(text).trim() === "" ? null : /^\d{1,2}$/.test(String(text).trim()) ? Number(text) : NaN);

function Regions({ can }) {
  const page = usePage("/v1/freight");
  const [draft, setDraft] = useState(null);
  const [tried, setTried] = useState(false);
  const rows = draft ?? (page.list ?? []).map(asText);
  const save = useAct(async (key, body) => {
    await put("/v1/freight", body, { key });
    setDraft(null);
    setTried(false);
    await page.read();
  });
  const wrong = rows.map((row) => {
    if (!row.covered) return null;
    if (fenOf(row.flat) === null || (String(row.free).trim() && fenOf(row.free) === null)) return t("field_amount");
    const [min, max] = [numberOf(row.min), numberOf(row.max)];
    return Number.isNaN(min) || Number.isNaN(max) || (min === null) !== (max === null) || (min !== null && min > max) ? t("freight_days_wrong") : null;
  });
  const set = (at, change) => setDraft(rows.map((row, i) => (i === at ? { ...row, ...change } : row)));
  const go = () => {
    setTried(true);
    if (wrong.some(Boolean)) return;
    save.run({
      rows: rows.map((row) =>
        row.covered
          ? { region: row.region.trim(), flat_fen: fenOf(row.flat), free_from_fen: String(row.free).trim() ? fenOf(row.free) : null, days_min: numberOf(row.min), days_max: numberOf(row.max), covered: true }
          : { region: row.region.trim(), covered: false },
      ),
    });
  };
  const cell = (row, i, name, label, mode) => html`<input class="input input--cell" aria-label=${`${label} ${row.region || t("freight_rest")}`} inputmode=${mode} disabled=${!can || (!row.covered && name !== "region")} value=${row[name]} onInput=${(event) => set(i, { [name]: event.currentTarget.value })} />`;
  return html`
    <section class="money__part" aria-labelledby="freight-title">
      <header class="money__head"><h2 id="freight-title" class="display">${t("freight")}</h2><p class="muted small">${t("freight_lead")}</p></header>
      <${Problem} failure=${page.failure} onRetry=${page.read} />
      ${page.list !== null &&
      html`<div class="scroll-x"><table class="table freight">
        <thead><tr><th scope="col">${t("freight_region")}</th><th scope="col">${t("freight_flat")}</th><th scope="col">${t("freight_free")}</th><th scope="col">${t("freight_days")}</th><th scope="col">${t("freight_covered")}</th><th></th></tr></thead>
        <tbody>${rows.map(
          (row, i) => html`<tr key=${i}>
            <td>${row.region === "" && i === 0 && !draft ? html`<span class="strong">${t("freight_rest")}</span>` : cell(row, i, "region", t("freight_region"))}</td>
            <td>${cell(row, i, "flat", t("freight_flat"), "decimal")}</td>
            <td>${cell(row, i, "free", t("freight_free"), "decimal")}</td>
            <td class="freight__days">${cell(row, i, "min", t("freight_from"), "numeric")} – ${cell(row, i, "max", t("freight_to"), "numeric")}${tried && wrong[i] && html`<p class="field__error">${wrong[i]}</p>`}</td>
            <td><input class="switch" type="checkbox" role="switch" aria-label=${`${t("freight_covered")} ${row.region || t("freight_rest")}`} disabled=${!can} checked=${row.covered} onChange=${(event) => set(i, { covered: event.currentTarget.checked })} /></td>
            <td>${can && html`<${IconButton} name="trash" label=${t("named", { what: t("remove"), name: row.region || t("freight_rest") })} onClick=${() => setDraft(rows.filter((_, other) => other !== i))} />`}</td>
          </tr>`,
        )}</tbody>
      </table></div>
      ${rows.length === 0 && html`<p class="muted small">${t("freight_none")}</p>`}
      ${can &&
      html`<div class="row row--wrap">
        <${Button} small onClick=${() => setDraft([...rows, { ...blank, flat: "8" }])}><${Icon} name="plus" />${t("freight_add")}<//>
        ${draft && html`<${Button} small kind="primary" busy=${save.busy} onClick=${go}>${t("save")}<//><${Button} small kind="quiet" onClick=${() => setDraft(null)}>${t("cancel")}<//>`}
      </div>`}
      <${Problem} failure=${save.failure} onRetry=${save.failure?.unsure ? save.again : null} />`}
    </section>
  `;
}
