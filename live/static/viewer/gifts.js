// The gifts of one's plan, each in its period: what is due, taking it, and the birthday that one of them waits for.

import { useEffect, useId, useState } from "preact/hooks";

import { AddressChoice, AddressForm, addresses, chosenAddress, readAddresses } from "./addresses.js";
import { call, get, once, post } from "./api.js";
import { Icon, html } from "./dom.js";
import { birthdayText, dateText, money, shortTime, toMs } from "./format.js";
import { Busy, Field, Notice, Sheet, openSheet } from "./sheet.js";
import { sheet, toast, you } from "./state.js";
import { refusalText, t } from "./words.js";

const SOON_MS = 40 * 86_400_000; // what is further away is told with its year
const MONTHS = Array.from({ length: 12 }, (_, i) => String(i + 1).padStart(2, "0"));
const keys = new Map();

const untilText = (time) => (toMs(time) - Date.now() < SOON_MS ? shortTime(time) : dateText(time));
const back = () => openSheet("mine", { tab: "benefits" });

/** The days a month can have; February with its 29th. */
const daysOf = (month) => new Date(Date.UTC(2000, Number(month), 0)).getUTCDate();

/** `items` is null until they are read. */
export function useGifts() {
  const [answer, setAnswer] = useState({ items: null, birthday: null, error: "" });
  const read = async () => {
    try {
      setAnswer({ ...(await get("/v1/me/gifts")), error: "" });
    } catch (refusal) {
      setAnswer((old) => ({ ...old, error: refusalText(refusal) }));
    }
  };
  useEffect(() => {
    read();
  }, [you.value.plan?.name]);
  return { ...answer, read };
}

const facts = (gift) => [t(`gift.every.${gift.every}`), gift.value_fen ? t("gift.worth", { sum: money(gift.value_fen) }) : ""].filter(Boolean).join(" · ");

/** When the parcel of a gift went out, or came back. */
export const parcelText = ({ carrier, tracking, sent_at, returned_at }) => t(returned_at ? "gift.returned.by" : "gift.sent.by", { time: shortTime(returned_at ?? sent_at), carrier, tracking });

/** What became of it, or until when it may be taken. */
function stateText({ gift, state, until_at, claimed_at, parcel }, birthday) {
  if (parcel) return parcelText(parcel);
  if (state === "claimed") return t(gift.needs_address ? "gift.claimed.sent" : "gift.claimed.given", { time: shortTime(claimed_at) });
  if (state === "due") return t("gift.until", { time: untilText(until_at) });
  return birthday ? t("gift.waiting", { day: birthdayText(birthday) }) : t("gift.waiting.unknown");
}

export function Gifts({ gifts }) {
  const { items, birthday, error, read } = gifts;
  if (error) return html`<${Notice} kind="bad" icon="warn">${error}<//>`;
  if (!items?.length) return null;
  return html`<section class="stack gifts" aria-labelledby="gifts-title">
    <h3 id="gifts-title">${t("gift.mine")}</h3>
    <ul class="stack" style=${{ "--gap": "8px" }}>
      ${items.map(
        (one) => html`<li key=${one.gift.id} class="card card--flat row gift" aria-label=${one.gift.title}>
          <span class="gift__icon"><${Icon} name="gift" /></span>
          <span class="grow"><strong>${one.gift.title}</strong>
            <span class="small muted discount__more">${facts(one.gift)}</span>
            <span class="small discount__more num">${stateText(one, birthday)}</span></span>
          ${one.state === "due" && html`<button type="button" class="button button--primary button--small" aria-label=${t("gift.take.named", { title: one.gift.title })} onClick=${() => openSheet("gift", { one })}>${t("gift.take")}</button>`}
          ${one.state === "claimed" && html`<span class="badge badge--ok"><${Icon} name="check" />${t(one.parcel?.returned_at ? "gift.returned" : one.parcel ? "gift.sent" : "gift.claimed")}</span>`}
        </li>`,
      )}
    </ul>
    ${!birthday && items.some((one) => one.gift.every === "birthday") && html`<${Birthday} onDone=${read} />`}
    <p class="tiny muted">${t("gift.rule")}</p>
  </section>`;
}

/** Told once, without the year: chosen from lists, so that it is a day there is. */
function Birthday({ onDone }) {
  const id = useId();
  const [month, setMonth] = useState("");
  const [day, setDay] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const days = Array.from({ length: month ? daysOf(month) : 31 }, (_, i) => String(i + 1).padStart(2, "0"));
  const choose = (chosen) => {
    setError("");
    setMonth(chosen);
    if (chosen && Number(day) > daysOf(chosen)) setDay("");
  };
  const save = async (event) => {
    event.preventDefault();
    if (busy) return;
    if (!month || !day) {
      setError(t("birthday.needed"));
      document.getElementById(`${id}-${month ? "day" : "month"}`).focus();
      return;
    }
    setBusy(true);
    setError("");
    try {
      await call("PUT", "/v1/me/birthday", { birthday: `${month}-${day}` });
      toast(t("birthday.saved"), "ok");
      await onDone();
    } catch (refusal) {
      setBusy(false);
      setError(refusal.code === "already_decided" ? t("birthday.told") : refusalText(refusal));
    }
  };
  const ties = { "aria-describedby": error ? `${id}-about ${id}-month-error` : `${id}-about`, "aria-invalid": error ? "true" : null };
  return html`<form class="card card--flat stack" style=${{ "--gap": "8px" }} onSubmit=${save} novalidate>
    <${Field} id=${`${id}-month`} label=${t("birthday.title")} error=${error}>
      <div class="row row--wrap birthday">
        <select id=${`${id}-month`} class="input" value=${month} aria-label=${t("birthday.month")} onChange=${(event) => choose(event.currentTarget.value)} ...${ties}>
          <option value="">${t("birthday.month")}</option>
          ${MONTHS.map((one) => html`<option key=${one} value=${one}>${t("birthday.month.n", { month: Number(one) })}</option>`)}
        </select>
        <select id=${`${id}-day`} class="input" value=${day} aria-label=${t("birthday.day")} onChange=${(event) => (setDay(event.currentTarget.value), setError(""))} ...${ties}>
          <option value="">${t("birthday.day")}</option>
          ${days.map((one) => html`<option key=${one} value=${one}>${t("birthday.day.n", { day: Number(one) })}</option>`)}
        </select>
        <${Busy} busy=${busy} block=${false} kind="" type="submit">${t("birthday.save")}<//>
      </div>
    <//>
    <p class="field__hint" id=${`${id}-about`}>${t("birthday.hint")}</p>
  </form>`;
}

/** Taking one: what it is, until when, and where to. */
export function GiftSheet() {
  const { one } = sheet.value;
  const { gift } = one;
  const [adding, setAdding] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  useEffect(() => {
    if (gift.needs_address && addresses.value === null) readAddresses().catch((refusal) => setError(refusalText(refusal)));
  }, []);
  if (adding) return html`<${AddressForm} onBack=${() => setAdding(false)} onDone=${() => setAdding(false)} />`;
  const address = gift.needs_address ? ((addresses.value ?? []).find((each) => each.id === chosenAddress.value) ?? null) : null;
  const take = async () => {
    if (gift.needs_address && !address) {
      setAdding(true);
      return;
    }
    setBusy(true);
    setError("");
    try {
      const body = { address: address?.id ?? null };
      await once(keys, ["gift", gift.id, one.from_at, body], (key) => post(`/v1/me/gifts/${encodeURIComponent(gift.id)}/claim`, body, { key }));
      toast(t("gift.toast", { title: gift.title }), "ok");
      back();
    } catch (refusal) {
      setBusy(false);
      setError(refusal.code === "not_eligible" ? t("gift.gone") : refusalText(refusal));
    }
  };
  return html`<${Sheet}
    title=${t("gift.title")}
    onBack=${back}
    foot=${html`<div class="stack" style=${{ "--gap": "8px" }}>
      ${error && html`<p class="field__error" role="alert">${error}</p>`}
      <${Busy} busy=${busy} large disabled=${gift.needs_address && addresses.value === null} onClick=${take} data-focus>${t(gift.needs_address && !address ? "address.add" : gift.needs_address ? "gift.take.send" : "gift.take.now")}<//>
    </div>`}
  >
    <div class="stack" style=${{ "--gap": "14px" }}>
      <div class="row gift" style=${{ "--gap": "12px" }}>
        <span class="gift__icon"><${Icon} name="gift" /></span>
        <span class="grow"><strong class="display">${gift.title}</strong>
          <span class="small muted discount__more">${facts(gift)}</span>
          <span class="small discount__more num">${stateText(one, null)}</span></span>
      </div>
      ${gift.needs_address
        ? html`<div class="stack" style=${{ "--gap": "8px" }}><h3 class="small">${t("address.label")}</h3><${AddressChoice} address=${address} onAdd=${() => setAdding(true)} /></div>`
        : html`<p class="small">${t("gift.handed")}</p>`}
      <p class="tiny muted">${t("gift.rule")}</p>
    </div>
  <//>`;
}
