// The stock ledger: every piece that came in or was counted away other than by an order, newest first.

import { useEffect, useState } from "preact/hooks";
import { count, day } from "./format.js";
import { Listed, usePage } from "./lists.js";
import { SelectField, html, known, t } from "./ui.js";

const PAGE = 20;

export function StockLedger({ products, turn }) {
  const [product, setProduct] = useState("");
  const page = usePage(`/v1/stock-entries?limit=${PAGE}${product ? `&product=${product}` : ""}`);
  useEffect(() => {
    if (turn) page.read(); // an import wrote new entries
  }, [turn]);
  const options = [["", t("ledger_all")], ...products.filter((one) => !one.bundle).map((one) => [one.id, `${one.name} · ${one.sku}`])];
  return html`
    <section class="money__part" aria-labelledby="ledger-title">
      <header class="money__head"><h2 id="ledger-title" class="display">${t("ledger")}</h2><p class="muted small">${t("ledger_lead")}</p></header>
      <${SelectField} label=${t("ledger_product")} value=${product} options=${options} onInput=${setProduct} class="money__pick" />
      <${Listed} page=${page} empty=${t("ledger_empty")}>
        <div class="scroll-x"><table class="table" aria-labelledby="ledger-title">
          <thead><tr><th scope="col">${t("ledger_at")}</th><th scope="col">SKU</th><th scope="col" class="right">${t("ledger_delta")}</th><th scope="col" class="right">${t("ledger_after")}</th><th scope="col">${t("ledger_reason")}</th></tr></thead>
          <tbody>${(page.list ?? []).map(
            (one) => html`<tr key=${one.id}>
              <td class="num nowrap">${day(one.at)}</td><td class="nowrap">${one.sku}</td>
              <td class="right num strong nowrap">${one.delta > 0 ? `+${count(one.delta)}` : count(one.delta).replace("-", "−")}</td>
              <td class="right num nowrap">${count(one.stock_after)}</td>
              <td class="ledger__reason">${one.reason || (known(`ledger_${one.kind}`) ? t(`ledger_${one.kind}`) : one.kind)}</td>
            </tr>`,
          )}</tbody>
        </table></div>
      <//>
    </section>
  `;
}
