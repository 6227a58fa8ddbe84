// The page's language and its texts. A missing key shows itself rather than nothing.

import { TEXTS } from "../texts.js";

export const lang = document.documentElement.lang.startsWith("en") ? "en" : "zh";
const table = TEXTS[lang];
const spare = TEXTS.zh;

/** The text of a key with its places filled in. A text that depends on a number has the forms `one` and `other`. */
export function t(key, values = {}) {
  let text = table[key] ?? spare[key] ?? key;
  if (typeof text === "object") text = values.n === 1 ? text.one : text.other;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Words for a refusal: ours by its code, else the server's own sentence. */
export function refusalText(error) {
  const seconds = error?.retry_ms ? Math.ceil(error.retry_ms / 1000) : 0;
  const key = `refused.${error?.code ?? "unknown"}`;
  const unmet = `${key}.${error?.details?.condition}`;
  if (spare[unmet]) return t(unmet, { n: Math.max(1, Math.ceil(seconds / 60)) });
  if (seconds && (table[`${key}.wait`] ?? spare[`${key}.wait`])) return t(`${key}.wait`, { seconds, n: seconds });
  if (error?.details?.reason && (table[`${key}.why`] ?? spare[`${key}.why`])) return t(`${key}.why`, { reason: error.details.reason });
  if (table[key] ?? spare[key]) return t(key, { rank: error?.details?.rank });
  return error?.message || t("refused.unknown");
}
