// Products: how each is counted, who may have how many, what a bundle is made of, and stock brought up to date.

import { useEffect, useState } from "preact/hooks";
import { get, patch, post, put } from "./api.js";
import { count, fenOf, money } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { PriceLines } from "./price_lines.js";
import { StockLedger } from "./stock_ledger.js";
import { Button, Dialog, Icon, Problem, SelectField, TextField, html, known, t, useAct } from "./ui.js";

const MODES = ["on_order", "on_payment", "presale"];
const ROWS_MAX = 500;
const OUTCOMES = { changed: "ok", same: "", refused: "bad" };

const whole = (text) => (String(text).trim() === "" ? null : /^\d{1,8}$/.test(String(text).trim()) ? Number(text) : NaN);

export function Products({ may }) {
  const [search, setSearch] = useState("");
  const page = usePage(`/v1/products?limit=100${search.trim() ? `&search=${encodeURIComponent(search.trim())}` : ""}`);
  const [editing, edit] = useState(null);
  const [pricing, price] = useState(null);
  const [making, make] = useState(false);
  const [imports, setImports] = useState(0);
  const can = may("catalog.write");
  const imported = () => {
    setImports(imports + 1);
    page.read();
  };
  const done = () => {
    edit(null);
    make(false);
    page.read();
  };
  return html`
    <section class="money__part" aria-labelledby="products-title">
      <header class="money__head row row--wrap"><h2 id="products-title" class="display grow">${t("money_products")}</h2>
        ${can && html`<${Button} small onClick=${() => make(true)}><${Icon} name="plus" />${t("bundle_new")}<//>`}</header>
      <${TextField} label=${t("products_search")} type="search" value=${search} onInput=${setSearch} class="money__pick" />
      <${Listed} page=${page} empty=${t("no_products")}>
        <ul class="rows rows--pairs">
          ${(page.list ?? []).map((product) => html`<${Row} key=${product.id} product=${product} can=${can} onEdit=${() => edit(product)} onPrices=${() => price(product)} />`)}
        </ul>
      <//>
      ${editing && html`<${Edit} product=${editing} onClose=${() => edit(null)} onDone=${done} />`}
      ${pricing && html`<${PriceLines} product=${pricing} can=${can} onClose=${() => price(null)} />`}
      ${making && html`<${NewBundle} products=${(page.list ?? []).filter((one) => !one.bundle && one.stock_mode !== "presale")} onClose=${() => make(false)} onDone=${done} />`}
    </section>
    ${can && html`<${StockImport} onDone=${imported} />`}
    <${StockLedger} products=${page.list ?? []} turn=${imports} />
  `;
}

function stockText(product) {
  if (product.bundle) return t("stock_bundle", { n: count(product.free ?? 0) });
  if (product.stock_mode === "presale") return t("stock_presale", { taken: count(product.presale_taken ?? 0), cap: count(product.presale_cap), date: product.ship_by });
  return t("stock_n", { n: count(product.stock) });
}

function Row({ product, can, onEdit, onPrices }) {
  const limits = [
    product.max_per_member && t("limit_member", { n: product.max_per_member }),
    product.max_per_household && t("limit_household", { n: product.max_per_household }),
  ].filter(Boolean);
  return html`
    <li class="row-card" aria-label=${product.name}>
      ${product.image && html`<img class="offer__picture" src=${product.image} alt="" width="48" height="48" loading="lazy" />`}
      <div class="row-card__main">
        <p class="row row--wrap"><span class="strong">${product.name}</span>
          <span class="badge">${product.bundle ? t("bundle") : t(`mode_${product.stock_mode ?? "on_order"}`)}</span>
          ${product.no_promo && html`<span class="badge badge--info">${t("no_promo")}</span>`}</p>
        <p class="small num row-card__facts"><span class="muted">${product.sku}</span><span>${t("price_list")} ${money(product.list_fen)}</span>
          ${product.member_fen != null && html`<span>${t("price_member")} ${money(product.member_fen)}</span>`}</p>
        <p class="small num row-card__facts"><span class=${(product.free ?? product.stock) === 0 ? "stock--out strong" : ""}>${stockText(product)}</span>${limits.map((one) => html`<span key=${one}>${one}</span>`)}</p>
      </div>
      <div class="row row-card__acts"><${Button} small onClick=${onPrices}>${t("prices")}<//>${can && html`<${Button} small onClick=${onEdit}>${t("edit")}<//>`}</div>
    </li>
  `;
}

function Edit({ product, onClose, onDone }) {
  const [form, setForm] = useState({
    stock_mode: product.stock_mode ?? "on_order",
    presale_cap: product.presale_cap ?? "",
    ship_by: product.ship_by ?? "",
    max_per_member: product.max_per_member ?? "",
    max_per_household: product.max_per_household ?? "",
    limit_days: product.limit_days ?? 30,
    no_promo: product.no_promo ?? false,
  });
  const [tried, setTried] = useState(false);
  const [parts, setParts] = useState([]);
  useEffect(() => {
    if (product.bundle) get(`/v1/products/${product.id}`).then((card) => setParts(card.parts ?? []), () => {});
  }, []);
  const set = (change) => setForm({ ...form, ...change });
  const errors = {};
  for (const name of ["max_per_member", "max_per_household"]) {
    const n = whole(form[name]);
    if (Number.isNaN(n) || n === 0) errors[name] = t("field_number", { min: 1, max: count(9999) });
  }
  if (!(whole(form.limit_days) >= 1)) errors.limit_days = t("field_number", { min: 1, max: count(3650) });
  if (form.stock_mode === "presale") {
    if (!(whole(form.presale_cap) >= 1)) errors.presale_cap = t("field_number", { min: 1, max: count(10_000_000) });
    if (!form.ship_by) errors.ship_by = t("field_needed");
  }
  const save = useAct(async (key, body) => {
    await patch(`/v1/products/${product.id}`, body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (Object.keys(errors).length) return;
    const body = {
      max_per_member: whole(form.max_per_member),
      max_per_household: whole(form.max_per_household),
      limit_days: whole(form.limit_days),
      no_promo: form.no_promo,
    };
    if (!product.bundle) {
      body.stock_mode = form.stock_mode;
      if (form.stock_mode === "presale") Object.assign(body, { presale_cap: whole(form.presale_cap), ship_by: form.ship_by });
    }
    save.run(body);
  };
  const shown = tried ? errors : {};
  return html`
    <${Dialog}
      title=${product.name}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${save.failure} onRetry=${save.failure?.unsure ? save.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${save.busy} onClick=${go}>${t("save")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go} novalidate>
        ${product.bundle
          ? html`<div class="field"><span class="field__label">${t("bundle_parts")}</span><ul class="list">${parts.map((one) => html`<li key=${one.product} class="list__row"><span class="grow">${one.name}</span><span class="num">× ${one.quantity}</span></li>`)}</ul></div>`
          : html`<${SelectField} label=${t("stock_mode")} hint=${t(`mode_${form.stock_mode}_help`)} value=${form.stock_mode} options=${MODES.map((one) => [one, t(`mode_${one}`)])} onInput=${(stock_mode) => set({ stock_mode })} />
              ${form.stock_mode === "presale" &&
              html`<div class="pair"><${TextField} label=${t("presale_cap")} inputmode="numeric" value=${form.presale_cap} error=${shown.presale_cap} onInput=${(presale_cap) => set({ presale_cap })} />
                <${TextField} label=${t("ship_by")} type="date" value=${form.ship_by} error=${shown.ship_by} onInput=${(ship_by) => set({ ship_by })} /></div>`}`}
        <div class="pair">
          <${TextField} label=${t("max_per_member")} needed=${false} inputmode="numeric" value=${form.max_per_member} error=${shown.max_per_member} onInput=${(max_per_member) => set({ max_per_member })} />
          <${TextField} label=${t("max_per_household")} needed=${false} inputmode="numeric" value=${form.max_per_household} error=${shown.max_per_household} onInput=${(max_per_household) => set({ max_per_household })} />
        </div>
        <${TextField} label=${t("limit_days")} inputmode="numeric" value=${form.limit_days} error=${shown.limit_days} onInput=${(limit_days) => set({ limit_days })} />
        <label class="row"><input class="switch" type="checkbox" role="switch" checked=${form.no_promo} onChange=${(event) => set({ no_promo: event.currentTarget.checked })} /><span>${t("no_promo_help")}</span></label>
      </form>
    <//>
  `;
}

function NewBundle({ products, onClose, onDone }) {
  const [form, setForm] = useState({ sku: "", name: "", list: "", member: "" });
  const [parts, setParts] = useState({}); // product -> quantity
  const [tried, setTried] = useState(false);
  const set = (change) => setForm({ ...form, ...change });
  const chosen = Object.entries(parts).filter(([, n]) => n > 0);
  const sum = chosen.reduce((all, [id, n]) => all + n * (products.find((one) => one.id === id)?.list_fen ?? 0), 0);
  const errors = {};
  for (const name of ["sku", "name"]) if (!form[name].trim()) errors[name] = t("field_needed");
  if (!fenOf(form.list)) errors.list = t("field_amount");
  if (form.member.trim() && !fenOf(form.member)) errors.member = t("field_amount");
  if (chosen.reduce((all, [, n]) => all + n, 0) < 2) errors.parts = t("bundle_two");
  const make = useAct(async (key, body) => {
    await post("/v1/products", body, { key });
    onDone();
  });
  const go = (event) => {
    event?.preventDefault();
    setTried(true);
    if (Object.keys(errors).length) return;
    make.run({
      sku: form.sku.trim(),
      name: form.name.trim(),
      list_fen: fenOf(form.list),
      member_fen: form.member.trim() ? fenOf(form.member) : null,
      parts: chosen.map(([product, quantity]) => ({ product, quantity })),
    });
  };
  const shown = tried ? errors : {};
  return html`
    <${Dialog}
      title=${t("bundle_new")}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${make.failure} onRetry=${make.failure?.unsure ? make.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${make.busy} onClick=${go}>${t("create")}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form class="stack" onSubmit=${go} novalidate>
        <div class="pair"><${TextField} label="SKU" value=${form.sku} error=${shown.sku} onInput=${(sku) => set({ sku })} />
          <${TextField} label=${t("bundle_name")} value=${form.name} error=${shown.name} onInput=${(name) => set({ name })} /></div>
        <fieldset class="field"><legend class="field__label">${t("bundle_parts")}</legend>
          <ul class="list bundle-parts">
            ${products.map(
              (one) => html`<li key=${one.id} class="list__row"><span class="grow">${one.name}<br /><span class="small muted num">${money(one.list_fen)}</span></span>
                <input class="input input--cell" inputmode="numeric" aria-label=${t("named", { what: t("pieces_word"), name: one.name })} value=${parts[one.id] ?? ""} placeholder="0" onInput=${(event) => setParts({ ...parts, [one.id]: Math.min(99, whole(event.currentTarget.value) || 0) })} /></li>`,
            )}
          </ul>
          ${shown.parts ? html`<p class="field__error">${shown.parts}</p>` : html`<p class="field__hint num">${t("bundle_sum", { sum: money(sum) })}</p>`}
        </fieldset>
        <div class="pair"><${TextField} label=${t("price_list")} inputmode="decimal" value=${form.list} error=${shown.list} onInput=${(list) => set({ list })} />
          <${TextField} label=${t("price_member")} needed=${false} inputmode="decimal" value=${form.member} error=${shown.member} onInput=${(member) => set({ member })} /></div>
      </form>
    <//>
  `;
}

/** "SKU, +24" changes, "SKU, 120 = 96" sets to 120 only where 96 still stand. */
export function parseStock(text) {
  const rows = [];
  const bad = [];
  for (const [at, line] of text.replace(/^\ufeff/, "").split(/\r?\n/).entries()) {
    if (!line.trim() || /^sku\b/i.test(line.trim())) continue;
    const change = /^(.+?)[\s,，\t]+([+-]\d{1,8})$/.exec(line.trim());
    const set = /^(.+?)[\s,，\t]+(\d{1,8})\s*=\s*(\d{1,8})$/.exec(line.trim());
    if (change) rows.push({ sku: change[1].trim(), change: Number(change[2]) });
    else if (set) rows.push({ sku: set[1].trim(), set_to: Number(set[2]), expected: Number(set[3]) });
    else bad.push(at + 1);
  }
  return { rows, bad };
}

function StockImport({ onDone }) {
  const [text, setText] = useState("");
  const [reason, setReason] = useState("");
  const [tried, setTried] = useState(false);
  const [outcomes, setOutcomes] = useState(null);
  const { rows, bad } = parseStock(text);
  const errors = {
    rows: !rows.length ? t("stock_none") : bad.length ? t("tracking_bad", { lines: bad.slice(0, 8).join(", ") }) : rows.length > ROWS_MAX ? t("tracking_many", { n: ROWS_MAX }) : null,
    reason: reason.trim() ? null : t("field_needed"),
  };
  const bring = useAct(async (key, body) => {
    setOutcomes((await put("/v1/stock", { ...body, key }, { key })).rows);
    onDone();
  });
  const go = (event) => {
    event.preventDefault();
    setTried(true);
    if (!errors.rows && !errors.reason) bring.run({ reason: reason.trim(), rows });
  };
  return html`
    <section class="money__part" aria-labelledby="stock-title">
      <header class="money__head"><h2 id="stock-title" class="display">${t("stock_import")}</h2><p class="muted small">${t("stock_lead")}</p></header>
      <form class="stack" onSubmit=${go} novalidate>
        <${TextField} label=${t("stock_rows")} hint=${rows.length ? t("tracking_n", { n: rows.length }) : t("stock_example")} long rows="4" spellcheck="false" value=${text} error=${tried && errors.rows} onInput=${(value) => (setText(value), setOutcomes(null))} />
        <${TextField} label=${t("stock_reason")} value=${reason} maxlength="80" error=${tried && errors.reason} onInput=${setReason} />
        <div class="row"><${Button} kind="primary" type="submit" busy=${bring.busy}>${t("stock_do")}<//></div>
        <${Problem} failure=${bring.failure} onRetry=${bring.failure?.unsure ? bring.again : null} />
      </form>
      ${outcomes &&
      html`<div class="scroll-x" role="status"><table class="table">
        <thead><tr><th scope="col">SKU</th><th scope="col">${t("outcome")}</th><th scope="col" class="right">${t("stock_after")}</th></tr></thead>
        <tbody>${outcomes.map(
          (one, i) => html`<tr key=${i}><td>${one.sku}</td>
            <td><span class=${`badge ${OUTCOMES[one.outcome] ? `badge--${OUTCOMES[one.outcome]}` : ""}`}>${t(`stock_${one.outcome}`)}</span> ${one.reason && (known(`row_${one.reason}`) ? t(`row_${one.reason}`) : one.reason)}</td>
            <td class="right">${count(one.stock)}</td></tr>`,
        )}</tbody>
      </table></div>`}
    </section>
  `;
}
