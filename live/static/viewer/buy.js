// Buying: how many, where to, and why this price; then the payment page and back to the same show.

import { useEffect, useState } from "preact/hooks";

import { ask } from "./actions.js";
import { AddressChoice, AddressForm, addresses, chosenAddress, readAddresses } from "./addresses.js";
import { once, post } from "./api.js";
import { AskWhy, Meter, Sums } from "./bill.js";
import { Countdown, Picture, Prices, limitsText, partsText } from "./deck.js";
import { BEST, CouponSheet, Discounts, asked } from "./discounts.js";
import { Icon, html } from "./dom.js";
import { Price, dayText, money } from "./format.js";
import { orderId, pay } from "./join.js";
import { Busy, Sheet, openSheet } from "./sheet.js";
import { boot, card, incident, isMember, isPlan, offers, orderNews, piecesLeft, planSaves, priceFor, sheet, tick, toast, you } from "./state.js";
import { refusalText, t } from "./words.js";

const QUANTITY_MAX = 99;
const QUOTE_SLACK_MS = 5_000; // a quote about to end is asked for anew
const keys = new Map();

const showId = () => encodeURIComponent(card.value.id ?? boot.show.id);

/** The signed quote for what is in the sheet: asked for again when the number, the person or its end changes. */
function useQuote(offer, quantity, wish, address) {
  const [quote, setQuote] = useState(null);
  const [error, setError] = useState("");
  const [turn, setTurn] = useState(0);
  const plan = isPlan.value;
  const person = you.value.id;
  const more = JSON.stringify({ ...asked(wish, isMember.value), ...(isMember.value && address ? { address } : {}) });
  useEffect(() => {
    let gone = false;
    // Half a second of quiet, so that a thumb on the plus asks once.
    const timer = setTimeout(
      async () => {
        try {
          const answer = await post(`/v1/shows/${showId()}/quotes`, { lines: [{ offer: offer.id, quantity }], ...JSON.parse(more) });
          if (gone) return;
          setQuote({ ...answer, quantity, asked: more });
          setError("");
        } catch (refusal) {
          if (gone) return;
          setQuote(null);
          setError(refusalText(refusal));
        }
      },
      quote ? 400 : 0,
    );
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [offer.id, quantity, plan, person, turn, offer.status, more]);
  const ends = quote?.expires_at ?? null;
  const stale = ends !== null && ends - QUOTE_SLACK_MS < tick.value;
  useEffect(() => {
    if (stale) setTurn((old) => old + 1);
  }, [stale]);
  // What was asked for has changed since: the sums stand until the new ones come, but nothing is ordered at them.
  const current = quote?.quantity === quantity && quote.asked === more;
  return [quote, error, () => setTurn((old) => old + 1), current];
}

export function BuySheet() {
  const offer = offers.value.find((one) => one.id === sheet.value.offer);
  if (!offer) return html`<${Sheet} title=${t("buy.title")}><p class="empty">${t("refused.closed")}</p><//>`;
  return html`<${BuyForm} offer=${offer} />`;
}

function BuyForm({ offer }) {
  const [quantity, setQuantity] = useState(1);
  const [wish, setWish] = useState(BEST);
  const [choosing, choose] = useState(false);
  const [adding, setAdding] = useState(false);
  const [busy, setBusy] = useState(false);
  const [failed, setFailed] = useState("");
  const [quote, quoteError, requote, current] = useQuote(offer, quantity, wish, chosenAddress.value);
  const pieces = piecesLeft(offer);
  const most = Math.max(1, Math.min(QUANTITY_MAX, offer.per_person ?? QUANTITY_MAX, offer.product.max_per_member ?? QUANTITY_MAX, pieces ?? QUANTITY_MAX));
  const member = isMember.value;

  useEffect(() => {
    if (member && addresses.value === null) readAddresses().catch((error) => setFailed(refusalText(error)));
  }, [member]);
  useEffect(() => {
    if (quantity > most) setQuantity(most);
  }, [most]);

  const limits = limitsText(offer);
  const { parts } = offer.product;
  const shipBy = offer.ship_by;
  const fresh = quote && quote.quantity === quantity ? quote : null;
  const saves = planSaves(offer) * quantity;

  const place = async () => {
    if (!fresh || !current || busy) return;
    const address = chosenAddress.value;
    setBusy(true);
    setFailed("");
    try {
      const { token } = fresh;
      const placed = await once(keys, ["order", token, address], (key) =>
        post(`/v1/shows/${showId()}/orders`, { quote: token, address, key }, { key }),
      );
      const order = orderId(placed);
      orderNews.value = { ...orderNews.value, [order]: { ...placed, order, lines: [{ name: offer.product.name }] } };
      if (placed.state === "paid") {
        // coupons and points were all of it: there is nothing to pay
        toast(t("order.toast.paid"), "ok");
        openSheet("order", { order });
        return;
      }
      await pay(order).catch((error) => {
        toast(refusalText(error), "bad"); // placed and held: the payment can be begun from the order
        openSheet("mine", { tab: "orders" });
      });
    } catch (error) {
      setBusy(false);
      setFailed(refusalText(error));
      if (["coupon_used", "not_enough_points"].includes(error.code)) setWish(BEST);
      if (["price_changed", "quote_expired", "closed", "bad_quote", "coupon_used", "not_enough_points"].includes(error.code)) requote();
    }
  };

  const submit = () => {
    if (!member) {
      ask("buy", {}, () => openSheet("buy", { offer: offer.id }));
      return;
    }
    if (!chosenAddress.value) {
      setAdding(true);
      return;
    }
    place();
  };

  if (adding) {
    return html`<${AddressForm}
      onBack=${() => setAdding(false)}
      onDone=${() => setAdding(false)}
    />`;
  }
  if (choosing && quote) {
    return html`<${CouponSheet} quote=${quote} wish=${wish} setWish=${setWish} onBack=${() => choose(false)} />`;
  }
  const address = (addresses.value ?? []).find((one) => one.id === chosenAddress.value);
  const line = fresh?.lines?.[0];
  const total = fresh ? fresh.total_fen : null;
  const foot = html`<div class="stack" style=${{ "--gap": "8px" }}>
    ${(failed || quoteError) && html`<p class="field__error" role="alert">${failed || quoteError}</p>`}
    <div class="row row--apart">
      <div class="total" aria-live="polite">
        <span class="small muted">${t("buy.total")}</span>
        ${total === null ? html`<span class="price muted">${money(priceFor(offer).fen * quantity)}</span>` : html`<${Price} minor=${total} />`}
      </div>
      <${Busy} busy=${busy} large block=${false} disabled=${member && (!current || pieces === 0 || incident.value !== null)} onClick=${submit} data-focus>
        ${!member ? t("buy.sign") : !chosenAddress.value ? t("buy.address.add") : t("buy.place")}
      <//>
    </div>
  </div>`;
  return html`<${Sheet} title=${t("buy.title")} foot=${foot}>
    <div class="stack" style=${{ "--gap": "16px" }}>
      <div class="row" style=${{ "--gap": "12px", alignItems: "flex-start" }}>
        <${Picture} product=${offer.product} big />
        <div class="grow stack" style=${{ "--gap": "6px" }}>
          <h3>${offer.product.name}</h3>
          <p class="small muted">${[offer.product.short, offer.product.unit].filter(Boolean).join(" · ")}</p>
          <${Prices} offer=${offer} />
        </div>
      </div>
      ${parts?.length > 0 && html`<p class="small">${partsText(parts)}</p>`}
      ${shipBy && html`<p class="small row"><${Icon} name="clock" />${t("presale.by", { date: dayText(shipBy) })}</p>`}
      ${offer.closes_at &&
      html`<div class="stack" style=${{ "--gap": "2px" }}>
        <p class="small row"><${Icon} name="clock" />${t("deal.ends")} <${Countdown} until=${offer.closes_at} /></p>
        <p class="tiny muted">${t("clock.note")}</p>
      </div>`}
      <${Saving} meter=${fresh?.plan_saves} guess=${saves} />
      <div class="row row--apart">
        <span class="field__label" id="quantity-label">${t("buy.quantity")}${limits ? html` <span class="muted">${limits}</span>` : ""}</span>
        <div class="stepper" role="group" aria-labelledby="quantity-label">
          <button type="button" class="icon-button" disabled=${quantity <= 1} onClick=${() => setQuantity(quantity - 1)} aria-label=${t("buy.less")}><${Icon} name="minus" /></button>
          <output class="stepper__value" aria-live="polite">${quantity}</output>
          <button type="button" class="icon-button" disabled=${quantity >= most} onClick=${() => setQuantity(quantity + 1)} aria-label=${t("buy.more")}><${Icon} name="plus" /></button>
        </div>
      </div>
      ${member && html`<${AddressChoice} address=${address} onAdd=${() => setAdding(true)} />`}
      <${Discounts} quote=${fresh} wish=${wish} setWish=${setWish} choose=${() => choose(true)} />
      ${fresh &&
      html`<section class="bill">
        <${Sums} of=${fresh} lines=${fresh.lines} promised=${promisedOf(fresh)} />
        <${AskWhy} line=${line} />
      </section>`}
      ${offer.product.gift_text && html`<p class="small row"><${Icon} name="gift" />${t("deal.gift", { gift: offer.product.gift_text })}</p>`}
      <p class="tiny muted">${t("buy.hold")}</p>
    </div>
  <//>`;
}

/** By when it is there, as the quote says: a date or a range of two. */
function promisedOf(quote) {
  const [from, to] = [quote.promised_from, quote.promised_until].map((one) => one && dayText(one));
  return from && to && from !== to ? t("buy.promised.range", { from, to }) : to || from || null;
}

/** What a plan would save on this order: the parts apart, and their sum against the plan's fee. */
function Saving({ meter, guess }) {
  const sum = meter?.total_fen ?? guess;
  if (!(sum > 0) || isPlan.value) return null;
  return html`<button type="button" class="saving" onClick=${() => openSheet("join")}>
    <span class="grow">
      ${t("buy.saves", { sum: money(sum) })}
      ${meter && html`<${Meter} saves=${meter} />`}
    </span>
    <strong>${t("buy.join")}</strong>
  </button>`;
}
