// After the sale: a case is opened from its order, seen in the list with what the shop answered, withdrawn.

import { signal } from "@preact/signals";
import { useEffect, useId, useRef, useState } from "preact/hooks";

import { get, once, post, upload } from "./api.js";
import { Icon, classes, html } from "./dom.js";
import { money, shortTime } from "./format.js";
import { Photos } from "./photos.js";
import { Busy, Field, Notice, Sheet, openSheet } from "./sheet.js";
import { sheet, toast } from "./state.js";
import { refusalText, t } from "./words.js";

const KINDS = ["refund", "return", "exchange", "missing", "damaged"];
const REASON_MAX = 500;
const keys = new Map();
const cases = signal(null); // null: not read yet
const failed = signal("");

export async function readCases() {
  try {
    cases.value = (await get("/v1/me/cases")).items;
    failed.value = "";
  } catch (error) {
    failed.value = refusalText(error);
  }
}

const BADGES = { open: "warn", settled: "ok", declined: "bad", withdrawn: "" };

export function Case({ one, withOrder = false }) {
  const [busy, setBusy] = useState(false);
  const withdraw = async () => {
    setBusy(true);
    try {
      await once(keys, ["withdraw", one.id], (key) => post(`/v1/me/cases/${encodeURIComponent(one.id)}/withdraw`, {}, { key }));
      await readCases();
      toast(t("case.withdrawn"), "ok");
    } catch (error) {
      toast(refusalText(error), "bad");
    } finally {
      setBusy(false);
    }
  };
  const lines = one.lines ?? [];
  return html`<li class="case card card--flat">
    <div class="row row--apart">
      <strong>${t(`case.kind.${one.kind}`)}</strong>
      <span class=${classes("badge", BADGES[one.state] && `badge--${BADGES[one.state]}`)}>${t(`case.state.${one.state}`)}</span>
    </div>
    <p class="small">${one.reason}</p>
    ${lines.length > 0 && html`<p class="tiny muted">${lines.map((line) => `${line.name ?? t("case.line", { n: line.position })} × ${line.quantity}`).join(" · ")}</p>`}
    ${one.photos?.length > 0 &&
    html`<ul class="photos__row">
      ${one.photos.map((photo, i) => html`<li key=${photo.id ?? i} class="photo"><img src=${`/v1/me/cases/${encodeURIComponent(one.id)}/photos/${encodeURIComponent(photo.id)}`} alt=${t("photo.nth", { n: i + 1 })} loading="lazy" /></li>`)}
    </ul>`}
    ${one.act &&
    html`<div class="case__answer small">
      <strong>${t(`case.act.${one.act}`)}${one.amount_fen > 0 ? html` <span class="num">${money(one.amount_fen)}</span>` : ""}${one.points > 0 ? html` · <span class="num">${t("what.points.n", { n: one.points })}</span>` : ""}</strong>
      ${one.note && html`<p>${one.note}</p>`}
      ${one.parcel && html`<p class="num">${one.parcel.carrier} ${one.parcel.tracking}</p>`}
    </div>`}
    <div class="row row--apart">
      <span class="tiny muted num">${one.opened_at ? shortTime(one.opened_at) : ""}</span>
      <span class="row">
        ${withOrder && html`<button type="button" class="link-button small" onClick=${() => openSheet("order", { order: one.order })}>${t("case.order")}</button>`}
        ${one.state === "open" && html`<${Busy} kind="quiet" block=${false} busy=${busy} onClick=${withdraw}>${t("case.withdraw")}<//>`}
      </span>
    </div>
  </li>`;
}

/** What was asked about one order, on its page. */
export function CasesOf({ order }) {
  useEffect(() => {
    readCases();
  }, [order]);
  const own = (cases.value ?? []).filter((one) => one.order === order);
  if (!own.length) return null;
  return html`<section class="stack" style=${{ "--gap": "8px" }}>
    <h3>${t("case.title")}</h3>
    <ul class="stack">${own.map((one) => html`<${Case} key=${one.id} one=${one} />`)}</ul>
  </section>`;
}

/** Every case of one's own, on the tab of orders. */
export function Cases() {
  useEffect(() => {
    readCases();
  }, []);
  const list = cases.value ?? [];
  if (failed.value && !list.length) return null; // the orders above stand on their own
  if (!list.length) return null;
  return html`<section class="stack mine__cases">
    <h3>${t("case.list")}</h3>
    <ul class="stack">${list.map((one) => html`<${Case} key=${one.id} one=${one} withOrder />`)}</ul>
  </section>`;
}

// — opening one —

export function CaseSheet() {
  const { order: id } = sheet.value;
  const field = useId();
  const [order, setOrder] = useState(null);
  const [kind, setKind] = useState("");
  const [reason, setReason] = useState("");
  const [which, setWhich] = useState({}); // position -> quantity
  const [photos, setPhotos] = useState([]);
  const [errors, setErrors] = useState({});
  const [sent, setSent] = useState(null); // 0…1 while it travels
  const made = useRef(null); // {id, photos}: opened already, and how many photos have arrived
  const [error, setError] = useState("");
  useEffect(() => {
    get(`/v1/me/orders/${encodeURIComponent(id)}`).then(setOrder, (refusal) => setError(refusalText(refusal)));
  }, [id]);
  const back = () => openSheet("order", { order: id });
  const lines = (order?.lines ?? [])
    .map((line, i) => ({ ...line, position: line.position ?? i + 1, left: line.quantity - (line.refunded ?? 0) }))
    .filter((line) => line.kind !== "gift" && line.left > 0 && !line.case);
  const single = lines.length === 1 && lines[0].left === 1;
  const chosen = single ? { [lines[0].position]: 1 } : which;

  const mend = (name) => errors[name] && setErrors({ ...errors, [name]: undefined });
  const submit = async (event) => {
    event.preventDefault();
    if (sent !== null) return;
    const found = {};
    if (!kind) found.kind = t("case.kind.needed");
    if (!reason.trim()) found.reason = t("case.reason.needed");
    if (!Object.values(chosen).some((n) => n > 0)) found.lines = t("case.lines.needed");
    setErrors(found);
    if (Object.keys(found).length) {
      requestAnimationFrame(() => document.querySelector('.sheet [aria-invalid="true"]')?.focus());
      return;
    }
    const body = {
      kind,
      reason: reason.trim(),
      lines: Object.entries(chosen).filter(([, n]) => n > 0).map(([position, quantity]) => ({ position: Number(position), quantity })),
    };
    setSent(0);
    setError("");
    try {
      if (!made.current) {
        const opened = await once(keys, ["case", id, body], (key) => post(`/v1/me/orders/${encodeURIComponent(id)}/cases`, body, { key }));
        made.current = { id: opened.id, photos: 0 };
      }
      while (made.current.photos < photos.length) {
        const at = made.current.photos;
        await once(keys, ["photo", made.current.id, at], (key) =>
          upload(`/v1/me/cases/${encodeURIComponent(made.current.id)}/photos`, photos[at].blob, { key, progress: (part) => setSent((at + part) / photos.length) }),
        );
        made.current.photos = at + 1;
      }
      await readCases();
      toast(t("case.opened"), "ok");
      back();
    } catch (refusal) {
      setSent(null);
      setError(made.current ? t("case.photo_failed", { why: refusalText(refusal) }) : refusalText(refusal));
    }
  };

  const foot = html`<div class="stack" style=${{ "--gap": "8px" }}>
    ${error && html`<p class="field__error" role="alert">${error}</p>`}
    ${sent !== null &&
    html`<div class="stack" style=${{ "--gap": "4px" }}>
      <span class="bar" role="progressbar" aria-label=${t("case.sending")} aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(100 * sent)}><i class="bar__fill" style=${{ "--part": sent }}></i></span>
      <p class="tiny muted num" aria-hidden="true">${t("case.sending")} ${Math.round(100 * sent)}%</p>
    </div>`}
    <${Busy} busy=${sent !== null} large type="submit" form=${`${field}-form`}>${t(made.current ? "case.send.again" : "case.send")}<//>
  </div>`;
  if (!order) {
    return html`<${Sheet} title=${t("case.open")} onBack=${back}>
      ${error ? html`<${Notice} kind="bad" icon="warn">${error}<//>` : html`<div class="skeleton" style=${{ height: "240px" }}></div>`}
    <//>`;
  }
  return html`<${Sheet} title=${t("case.open")} onBack=${back} foot=${foot}>
    <form class="stack" id=${`${field}-form`} onSubmit=${submit} novalidate style=${{ "--gap": "18px" }}>
      <fieldset class="stack" style=${{ "--gap": "8px" }}>
        <legend class="field__label">${t("case.kind")}</legend>
        <div class="kinds" role="radiogroup" aria-label=${t("case.kind")}>
          ${KINDS.map(
            (name, i) => html`<label class="option kinds__one" key=${name}>
              <input type="radio" name="kind" checked=${kind === name} onChange=${() => (setKind(name), mend("kind"))} aria-invalid=${errors.kind && i === 0 ? "true" : null} data-focus=${i === 0 ? "" : null} />
              <span class="grow">${t(`case.kind.${name}`)}</span>
            </label>`,
          )}
        </div>
        ${errors.kind && html`<p class="field__error" role="alert">${errors.kind}</p>`}
      </fieldset>
      ${!single &&
      html`<fieldset class="stack" style=${{ "--gap": "8px" }}>
        <legend class="field__label">${t("case.lines")}</legend>
        ${lines.map((line) => {
          const n = which[line.position] ?? 0;
          const set = (quantity) => {
            setWhich({ ...which, [line.position]: Math.max(0, Math.min(line.left, quantity)) });
            mend("lines");
          };
          return html`<div class="row row--apart case-line" key=${line.position}>
            <span class="grow" id=${`${field}-line-${line.position}`}>${line.name}<br /><span class="tiny muted num">${t("case.of", { n: line.left })}</span></span>
            <div class="stepper" role="group" aria-labelledby=${`${field}-line-${line.position}`}>
              <button type="button" class="icon-button" disabled=${n <= 0} onClick=${() => set(n - 1)} aria-label=${t("buy.less")} aria-invalid=${errors.lines ? "true" : null}><${Icon} name="minus" /></button>
              <output class="stepper__value" aria-live="polite">${n}</output>
              <button type="button" class="icon-button" disabled=${n >= line.left} onClick=${() => set(n + 1)} aria-label=${t("buy.more")}><${Icon} name="plus" /></button>
            </div>
          </div>`;
        })}
        <button type="button" class="link-button small" onClick=${() => (setWhich(Object.fromEntries(lines.map((line) => [line.position, line.left]))), mend("lines"))}>${t("case.all")}</button>
        ${errors.lines && html`<p class="field__error" role="alert">${errors.lines}</p>`}
      </fieldset>`}
      <${Field} id=${`${field}-reason`} label=${t("case.reason")} error=${errors.reason} hint=${t("case.reason.hint")}>
        <textarea
          id=${`${field}-reason`}
          class="input"
          rows="3"
          maxlength=${REASON_MAX}
          value=${reason}
          onInput=${(event) => (setReason(event.target.value), mend("reason"))}
          aria-invalid=${errors.reason ? "true" : null}
          aria-describedby=${`${field}-reason-${errors.reason ? "error" : "hint"}`}
        ></textarea>
      <//>
      <${Photos} photos=${photos} setPhotos=${setPhotos} />
      <p class="tiny muted">${t("case.terms")}</p>
    </form>
  <//>`;
}
