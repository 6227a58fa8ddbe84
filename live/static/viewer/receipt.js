// The signed receipt: "37 / 100", what it says in words, and the ways to check it — here, or by anybody.

import { useEffect, useId, useState } from "preact/hooks";

import { GiftTo } from "./addresses.js";
import { get, post } from "./api.js";
import { Grain, Icon, html } from "./dom.js";
import { dateText, money, shortTime } from "./format.js";
import { OtherLanguage } from "./language.js";
import { Busy, Field, Notice, Sheet, openSheet } from "./sheet.js";
import { boot, sheet, toast } from "./state.js";
import { refusalText, t } from "./words.js";

/** What the server answers about a receipt: valid and what it says, or what is wrong with it. */
function useCheck() {
  const [state, setState] = useState({ busy: false, answer: null, error: "" });
  const run = async (text) => {
    setState({ busy: true, answer: null, error: "" });
    try {
      setState({ busy: false, answer: await post("/v1/receipts/check", { receipt: text }), error: "" });
    } catch (error) {
      setState({ busy: false, answer: null, error: refusalText(error) });
    }
  };
  return { ...state, run };
}

function Verdict({ answer, error }) {
  if (error) return html`<${Notice} kind="bad" icon="warn" role="alert">${error}<//>`;
  if (!answer) return null;
  if (!answer.valid) return html`<${Notice} kind="bad" icon="warn" role="alert"><strong>${t("receipt.bad")}</strong><br />${t("receipt.bad.how")}<//>`;
  return html`<${Notice} kind="ok" icon="check" role="status"><strong>${t("receipt.good")}</strong><br />${t("receipt.says", {
    title: answer.says.title,
    rank: answer.says.rank,
    of: answer.says.of,
    time: shortTime(answer.says.at),
  })}<//>`;
}

/** The rank as it is kept: large, as one shows it to others. */
function Rank({ rank, of }) {
  return html`<p class="receipt__rank"><${Grain} size="26" /><b class="num display">${rank}</b><span class="num receipt__of">/ ${of}</span></p>`;
}

/** Whether what was won comes in a parcel that is not known to be sent. */
export const toBeSent = (benefit) => benefit.what === "gift" && benefit.state === "confirmed" && !benefit.parcel;

export const linkTo = (text) => `${location.origin}/receipt#${text}`;

export function ReceiptSheet() {
  const { benefit } = sheet.value; // a row of /v1/me/benefits
  const [copied, setCopied] = useState("");
  const check = useCheck();
  const text = benefit.receipt;
  const copy = async (what, value) => {
    try {
      await navigator.clipboard.writeText(value);
      setCopied(what);
    } catch {
      toast(t("receipt.select")); // plain http has no clipboard: the text can be selected
    }
  };
  return html`<${Sheet}
    title=${t("receipt")}
    onBack=${() => openSheet("mine", { tab: "benefits" })}
    foot=${html`<${Busy} busy=${check.busy} large onClick=${() => check.run(text)} data-focus>${t("receipt.check")}<//>`}
  >
    <div class="stack" style=${{ "--gap": "14px" }}>
      <div class="receipt">
        <${Rank} rank=${benefit.rank} of=${benefit.of} />
        <p class="receipt__title display">${benefit.title}</p>
        <p class="small">${[benefit.value_fen ? t("benefit.worth", { sum: money(benefit.value_fen) }) : "", benefit.claimed_at ? shortTime(benefit.claimed_at) : ""].filter(Boolean).join(" · ")}</p>
      </div>
      ${toBeSent(benefit) && html`<${GiftTo} />`}
      <${Verdict} ...${check} />
      <p class="small muted">${t("receipt.how")}</p>
      <div class="row row--wrap">
        <button type="button" class="button button--small" onClick=${() => copy("link", linkTo(text))}><${Icon} name=${copied === "link" ? "check" : "link"} /><span aria-live="polite">${t(copied === "link" ? "receipt.copied" : "receipt.copy.link")}</span></button>
        <button type="button" class="button button--small" onClick=${() => copy("text", text)}><${Icon} name=${copied === "text" ? "check" : "copy"} /><span aria-live="polite">${t(copied === "text" ? "receipt.copied" : "receipt.copy")}</span></button>
      </div>
      <details class="small receipt__text">
        <summary>${t("receipt.text")}</summary>
        <p class="num">${text}</p>
      </details>
    </div>
  <//>`;
}

/** The page where anybody checks one: it comes behind `#`, so no server's log has it, or is pasted. */
export function CheckPage() {
  const id = useId();
  const [text, setText] = useState(() => decodeURIComponent(location.hash.slice(1)));
  const [key, setKey] = useState(null);
  const check = useCheck();
  useEffect(() => {
    if (text) check.run(text.trim());
    get("/v1/receipts/key").then(setKey, () => {}); // without it the check still answers
  }, []);
  const submit = (event) => {
    event.preventDefault();
    if (text.trim()) check.run(text.trim());
  };
  const says = check.answer?.valid ? check.answer.says : null;
  return html`<section class="place place--check">
    <div class="place__backdrop" aria-hidden="true"></div>
    <div class="place__body">
      <header class="place__head"><p class="place__eyebrow">${boot.shop}</p><h1 class="place__title">${t("receipt.page")}</h1></header>
      <form class="tonight" onSubmit=${submit}>
        ${says &&
        html`<div class="receipt">
          <${Rank} rank=${says.rank} of=${says.of} />
          <p class="receipt__title display">${says.title}</p>
          <p class="small num">${dateText(says.at)}</p>
        </div>`}
        <${Verdict} ...${check} />
        <${Field} id=${`${id}-text`} label=${t("receipt.paste")}>
          <textarea id=${`${id}-text`} class="input receipt__field" rows="4" spellcheck="false" autocapitalize="none" maxlength="2048" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
        <//>
        <${Busy} busy=${check.busy} large type="submit" disabled=${!text.trim()}>${t("receipt.check")}<//>
        <p class="tiny muted">${t("receipt.how")}</p>
        ${key &&
        html`<details class="small receipt__text">
          <summary>${t("receipt.key", { algorithm: key.algorithm })}</summary>
          <p class="num receipt__key">${key.key}<br />${t("receipt.key.at", { address: `${location.origin}/v1/receipts/key` })}</p>
        </details>`}
      </form>
      <div class="row row--apart"><a class="link-button" href="/">${t("ended.more")}</a><${OtherLanguage} /></div>
    </div>
  </section>`;
}
