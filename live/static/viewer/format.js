// Money, time and counts as people read them. Money comes as an integer of the smallest unit.

import { html, classes } from "./dom.js";
import { lang, t } from "./words.js";

const boot = JSON.parse(document.getElementById("boot")?.textContent ?? "{}");
const CURRENCY = boot.currency ?? "CNY";
const ZONE = boot.timezone ?? "Asia/Shanghai";
const LOCALE = lang === "zh" ? "zh-CN" : "en-GB";

const parts = new Intl.NumberFormat(LOCALE, { style: "currency", currency: CURRENCY, currencyDisplay: "narrowSymbol" });
const SIGN = parts.formatToParts(0).find((part) => part.type === "currency")?.value ?? CURRENCY;
const DIGITS = parts.resolvedOptions().maximumFractionDigits;
const UNIT = 10 ** DIGITS;
const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const day = new Intl.DateTimeFormat(LOCALE, { timeZone: ZONE, month: "long", day: "numeric", weekday: "short" });
const clockTime = new Intl.DateTimeFormat(LOCALE, { timeZone: ZONE, hour: "2-digit", minute: "2-digit", hour12: false });
const short = new Intl.DateTimeFormat(LOCALE, {
  timeZone: ZONE,
  month: "numeric",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  hour12: false,
});
const calendarDay = new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", month: "long", day: "numeric", weekday: "short" });
const dayOfYear = new Intl.DateTimeFormat(LOCALE, { timeZone: "UTC", month: "long", day: "numeric" });
const dateOnly = new Intl.DateTimeFormat(LOCALE, { timeZone: ZONE, year: "numeric", month: "numeric", day: "numeric" });

/** 10900 → "¥109", 10950 → "¥109.50". */
export function money(minor) {
  const { negative, units, cents } = split(minor);
  return `${negative ? "-" : ""}${SIGN}${units}${cents ? `.${cents}` : ""}`;
}

function split(minor) {
  const sum = Math.abs(minor);
  const rest = sum % UNIT;
  return {
    negative: minor < 0,
    units: whole.format(Math.floor(sum / UNIT)),
    cents: rest ? String(rest).padStart(DIGITS, "0") : "",
  };
}

export function Price({ minor, kind = "" }) {
  const { negative, units, cents } = split(minor);
  return html`<span class=${classes("price", kind && `price--${kind}`)}>
    <span class="price__sign">${negative ? "-" : ""}${SIGN}</span>${units}${cents && html`<span class="price__cents">.${cents}</span>`}
  </span>`;
}

/** Whole things as they are; tens of thousands shortened the way the language does. */
export function count(number) {
  if (number < 10_000) return String(number);
  if (lang === "zh") return `${(Math.floor(number / 1000) / 10).toFixed(1).replace(/\.0$/, "")}万`;
  return `${(Math.floor(number / 100) / 10).toFixed(1).replace(/\.0$/, "")}k`;
}

/** Time left as m:ss, h:mm:ss or days; never negative, rounded up so that 0:00 is the end. */
export function left(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const days = Math.floor(seconds / 86_400);
  const hours = Math.floor((seconds % 86_400) / 3600);
  const minutes = Math.floor((seconds % 3600) / 60);
  const two = (value) => String(value).padStart(2, "0");
  if (days) return t("left.days", { days, time: `${two(hours)}:${two(minutes)}:${two(seconds % 60)}` });
  if (hours) return `${hours}:${two(minutes)}:${two(seconds % 60)}`;
  return `${minutes}:${two(seconds % 60)}`;
}

/** For a `time` element: 300000 → "PT300S". */
export function duration(ms) {
  return `PT${Math.max(0, Math.ceil(ms / 1000))}S`;
}

/** "11月22日周日" → "11月22日 周日". */
const spaced = (text) => text.replace(/(?<=日)周/, " 周");
const moment = (value) => new Date(typeof value === "number" ? value : Date.parse(value));
/** +8613800000000 → 138 0000 0000; other countries' numbers as they are. */
export function phone(number) {
  const local = number.match(/^\+86(\d{3})(\d{4})(\d{4})$/);
  return local ? local.slice(1).join(" ") : number;
}

export const dayAndTime = (value) => `${spaced(day.format(moment(value)))} ${clockTime.format(moment(value))}`;
export const shortTime = (value) => short.format(moment(value));
export const dateText = (value) => dateOnly.format(moment(value));
/** A day of the calendar, "2026-11-25", which is no moment and has no zone. */
export const dayText = (day) => spaced(calendarDay.format(Date.parse(`${String(day).slice(0, 10)}T00:00:00Z`)));
/** "05-20" → "5月20日": the day of any year; 2000 has a 29 February. */
export const birthdayText = (birthday) => dayOfYear.format(Date.parse(`2000-${birthday}T00:00:00Z`));
export const toMs = (value) => (value === null || value === undefined ? null : moment(value).getTime());
