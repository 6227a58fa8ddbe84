// The shelf: everything on offer in this show, in one list.

import { Picture, Prices, buy, limitsText, partsText } from "./deck.js";
import { html } from "./dom.js";
import { dayText } from "./format.js";
import { Sheet } from "./sheet.js";
import { incident, offers, piecesLeft } from "./state.js";
import { t } from "./words.js";

export function ShelfSheet() {
  return html`<${Sheet} title=${t("shelf.title", { n: offers.value.length })}>
    ${!offers.value.length && html`<p class="empty">${t("shelf.none")}</p>`}
    <ul class="shelf">
      ${offers.value.map((offer) => {
        const pieces = piecesLeft(offer);
        const out = offer.status === "sold_out" || pieces === 0;
        return html`<li key=${offer.key} class="shelf__row">
          <${Picture} product=${offer.product} big />
          <div class="grow stack" style=${{ "--gap": "6px" }}>
            <h3>${offer.product.name}</h3>
            ${offer.product.short && html`<p class="small muted">${offer.product.short}</p>`}
            <${Prices} offer=${offer} />
            ${offer.product.parts?.length > 0 && html`<p class="small muted">${partsText(offer.product.parts)}</p>`}
            ${offer.ship_by && html`<p class="small">${t("presale.by", { date: dayText(offer.ship_by) })}</p>`}
            ${limitsText(offer) && html`<p class="small muted">${limitsText(offer)}</p>`}
            ${pieces !== null && html`<p class="small num">${t("deal.pieces", { left: pieces, quota: offer.quota, n: pieces })}</p>`}
            <button type="button" class="button button--primary" disabled=${offer.status !== "open" || incident.value !== null} onClick=${() => buy(offer)}>
              ${offer.status === "paused" || incident.value ? t("deal.paused") : out ? t("deal.out") : t("deal.buy")}
            </button>
          </div>
        </li>`;
      })}
    </ul>
  <//>`;
}
