// The way to the page in the other language, for members and guests alike.

import { html } from "./dom.js";
import { lang } from "./words.js";

const [other, tag, name] = lang === "zh" ? ["en", "en", "English"] : ["zh", "zh-CN", "中文"];

export function OtherLanguage() {
  // What stands behind `#` stays: a receipt that is being checked.
  return html`<a class="link-button" href=${`?lang=${other}${location.hash}`} lang=${tag} hreflang=${tag}>${name}</a>`;
}
