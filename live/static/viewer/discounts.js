// At the checkout: the coupons that fit, the best of them chosen already, and points by hundreds.

import { useState } from "preact/hooks";

import { Icon, classes, html } from "./dom.js";
import { money } from "./format.js";
import { Busy, Sheet } from "./sheet.js";
import { t } from "./words.js";

export const COUPONS_MAX = 3;
export const BEST = { coupons: null, points: 0 }; // null: the server chooses the best allowed ones

/** What a quote is asked with besides its lines. A guest has neither coupons nor points. */
export function asked(wish, member) {
  if (!member) return {};
  return { best: wish.coupons === null, coupons: wish.coupons ?? [], points: wish.points };
}

/** Why a coupon is not used, in words; nothing where it was only not chosen. */
function whyNot(reason) {
  if (reason === "not_chosen") return "";
  const key = `coupon.not.${reason}`;
  const words = t(key);
  return words === key ? t("coupon.not") : words;
}

/** One row each: what is taken off, and the way to change it. */
export function Discounts({ quote, wish, setWish, choose }) {
  if (!quote) return null;
  const coupons = quote.coupons ?? [];
  const used = coupons.filter((one) => one.used);
  const most = quote.points_max ?? 0;
  if (!coupons.length && !most && !quote.points) return null;
  return html`<section class="discounts">
    ${coupons.length > 0 &&
    html`<button type="button" class="discount" onClick=${choose}>
      <span class="grow">${t("coupon.title")}<span class="tiny muted discount__more">${used.length ? used.map((one) => one.title).join(" · ") : t("coupon.none_used", { n: coupons.length })}</span></span>
      ${quote.coupon_fen > 0 && html`<strong class="num sums__off">−${money(quote.coupon_fen)}</strong>`}
      <span class="discount__go"><${Icon} name="back" /></span>
    </button>`}
    ${most > 0 &&
    html`<label class="discount">
      <span class="grow">${t("points.use", { n: wish.points || most })}<span class="tiny muted discount__more">${t("points.use.rule")}</span></span>
      <strong class="num sums__off">−${money(quote.points_fen || most)}</strong>
      <input class="switch" type="checkbox" role="switch" checked=${wish.points > 0} onChange=${(event) => setWish({ ...wish, points: event.currentTarget.checked ? most : 0 })} />
    </label>`}
  </section>`;
}

/** All coupons one has, those that cannot be used here with the reason. */
export function CouponSheet({ quote, wish, setWish, onBack }) {
  const coupons = quote.coupons ?? [];
  const [picked, setPicked] = useState(() => coupons.filter((one) => one.used).map((one) => one.coupon));
  const toggle = (one) => setPicked(picked.includes(one.coupon) ? picked.filter((id) => id !== one.coupon) : [...picked, one.coupon].slice(-COUPONS_MAX));
  const apply = () => {
    setWish({ ...wish, coupons: picked });
    onBack();
  };
  const best = () => {
    setWish({ ...wish, coupons: null });
    onBack();
  };
  const usable = coupons.filter((one) => one.used || !one.why_not || ["not_chosen", "not_stacking", "nothing_left"].includes(one.why_not));
  const rest = coupons.filter((one) => !usable.includes(one));
  return html`<${Sheet}
    title=${t("coupon.title")}
    onBack=${onBack}
    foot=${html`<div class="row"><${Busy} kind="" block=${false} onClick=${best}>${t("coupon.best")}<//><${Busy} block=${false} class="grow" onClick=${apply} data-focus>${t("coupon.apply", { n: picked.length })}<//></div>`}
  >
    <div class="stack" style=${{ "--gap": "10px" }}>
      ${usable.map(
        (one) => html`<label key=${one.coupon} class="option coupon">
          <input type="checkbox" checked=${picked.includes(one.coupon)} onChange=${() => toggle(one)} />
          <span class="grow"><strong>${one.title}</strong>${one.why_not && !one.used && html`<span class="tiny muted discount__more">${whyNot(one.why_not)}</span>`}</span>
          ${one.off_fen > 0 && html`<strong class="num sums__off">−${money(one.off_fen)}</strong>`}
        </label>`,
      )}
      ${rest.length > 0 && html`<h3 class="small muted">${t("coupon.rest")}</h3>`}
      ${rest.map(
        (one) => html`<div key=${one.coupon} class=${classes("option", "coupon", "coupon--off")} aria-disabled="true">
          <span class="grow"><strong>${one.title}</strong><span class="tiny muted discount__more">${whyNot(one.why_not)}</span></span>
        </div>`,
      )}
      <p class="tiny muted">${t("coupon.rule")}</p>
    </div>
  <//>`;
}
