// Preparing the rundown before the show: every price, quota and word is typed here, checked here, and later
// only run by a key.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, items, put } from "./api.js";
import { focusFirstWrong } from "./forms.js";
import { fenOf, money, points, yuan } from "./format.js";
import { localIn, momentIn } from "./home.js";
import { Button, Dialog, Icon, IconButton, Problem, SelectField, TextField, html, kindIcon, t, useAct } from "./ui.js";

const CUES_MAX = 30;
const KINDS = ["pin", "flash", "benefit", "poll", "announcement"];
const AUDIENCES = ["everyone", "registered", "plan_members"];
const WHAT = ["gift", "coupon", "points", "early_access", "free_order"];
const COUNTDOWN_S = [10, 300]; // shorter is no countdown, longer is an announcement
const zone = () => document.body.dataset.timezone || "";
const JOINERS = ["everyone", "registered"]; // joining changes who is a plan member
let serial = 0;

const text = (value) => (value === null || value === undefined ? "" : String(value));
const fenText = (fen) => (fen === null || fen === undefined ? "" : yuan(fen).replace(/[,\s]/g, ""));

function draftOf(cue) {
  const payload = cue.payload ?? {};
  return {
    slot: `draft-${(serial += 1)}`,
    id: cue.id ?? null,
    kept: cue.payload ?? {}, // what this form does not show is kept as it is
    locked: Boolean(cue.state && cue.state !== "ready"), // has run: its terms stand
    kind: cue.kind,
    title: text(cue.title),
    shortcut: text(cue.shortcut).toUpperCase(),
    audience: { kind: "everyone", ...payload.audience },
    product: text(payload.product),
    flash: fenText(payload.flash_fen),
    quota: text(payload.quota),
    per_person: text(payload.per_person),
    seconds: text(payload.seconds),
    benefit: text(payload.title),
    about: text(payload.text),
    what: payload.what ?? "gift",
    value: fenText(payload.value_fen),
    needs: payload.needs ?? "join",
    coupon_rule: text(payload.coupon_rule),
    given: text(payload.points || ""),
    early: payload.products ?? [],
    until: payload.until ? localIn(zone(), payload.until) : "",
    cap: fenText(payload.cap_fen || null),
    min: fenText(payload.min_fen || null),
    watched: text(payload.watched_s || ""),
    newly: text(payload.newly_joined_s ? Math.round(payload.newly_joined_s / 60) : ""),
    first_order: payload.first_order ?? false,
    countdown: text(payload.starts_in_s || ""),
    question: text(payload.question),
    choices: payload.choices?.length ? payload.choices.map(text) : ["", ""],
    max_choices: text(payload.max_choices ?? 1),
    results: payload.results ?? "after_vote",
    words: text(payload.text),
  };
}

const blank = (kind, shortcut) =>
  draftOf({
    kind,
    shortcut,
    payload:
      kind === "flash"
        ? { quota: 50, per_person: 2, seconds: 300 }
        : kind === "benefit"
          ? { quota: 100, needs: "join" }
          : kind === "poll"
            ? { seconds: 60 }
            : {},
  });

/** {errors: field -> words, cue}: what is wrong, or the cue to be saved. */
function check(draft, all, products) {
  const errors = {};
  const payload = { ...draft.kept };
  const whole = (name, least, most, needed) => {
    const value = draft[name].trim();
    if (!value && !needed) return undefined;
    if (!/^\d{1,9}$/.test(value) || Number(value) < least || Number(value) > most) {
      errors[name] = t("field_number", { min: least, max: most });
      return undefined;
    }
    return Number(value);
  };
  const line = (name, most, needed = true) => {
    const value = draft[name].trim();
    if (!value && needed) errors[name] = t("field_needed");
    else if (points(value) > most) errors[name] = t("field_long", { max: most, over: points(value) - most });
    return value;
  };
  const title = line("title", 40);
  if (!/^[A-Z0-9]$/.test(draft.shortcut)) errors.shortcut = t("field_key");
  else {
    const other = all.find((one) => one !== draft && one.shortcut === draft.shortcut);
    if (other) errors.shortcut = t("field_key_taken", { key: draft.shortcut, title: other.title || t(`kind_${other.kind}`) });
  }
  if (draft.locked) return { errors, cue: { id: draft.id, kind: draft.kind, title, shortcut: draft.shortcut, payload: draft.kept } };
  if (draft.kind !== "announcement") payload.audience = draft.audience;
  if (draft.kind === "pin" || draft.kind === "flash") {
    const product = products.find((one) => one.id === draft.product);
    if (!product) errors.product = t("field_needed");
    payload.product = draft.product;
    if (draft.kind === "flash") {
      const fen = fenOf(draft.flash);
      if (!fen) errors.flash = t("field_amount");
      else if (product && fen >= product.list_fen) errors.flash = t("field_price", { price: yuan(product.list_fen) });
      if (product?.no_promo) errors.product = t("fail_no_promo");
      payload.flash_fen = fen;
      payload.quota = whole("quota", 1, 100_000, true);
      payload.per_person = whole("per_person", 1, 99, false);
      payload.seconds = whole("seconds", 5, 21_600, true);
    }
  }
  if (draft.kind === "benefit") {
    payload.title = line("benefit", 60);
    payload.text = line("about", 400, false);
    payload.what = draft.what;
    const { what, needs } = draft;
    const sum = (name, needed) => {
      const fen = draft[name].trim() === "" && !needed ? 0 : fenOf(draft[name]);
      if (fen === null || (needed && !fen)) errors[name] = t("field_amount");
      return fen ?? 0;
    };
    const follows = what === "points" || what === "free_order"; // its value is what it brings
    payload.value_fen = follows ? 0 : sum("value", false);
    payload.quota = whole("quota", 1, 100_000, true);
    payload.needs = needs;
    payload.coupon_rule = what === "coupon" ? draft.coupon_rule : null;
    if (what === "coupon" && !draft.coupon_rule) errors.coupon_rule = t("field_needed");
    payload.points = what === "points" ? whole("given", 1, 1_000_000, true) : 0;
    payload.products = what === "early_access" ? draft.early : [];
    if (what === "early_access" && !draft.early.length) errors.early = t("field_needed");
    payload.until = what === "early_access" && draft.until ? momentIn(zone(), draft.until) : null;
    payload.cap_fen = what === "free_order" ? sum("cap", true) : 0;
    if (what === "free_order" && needs !== "order") errors.needs = t("field_free_order");
    payload.min_fen = needs === "order" ? sum("min", false) : 0;
    const narrowed = needs !== "join"; // joining counts from the show's start, wherever it is paid
    payload.watched_s = narrowed ? (whole("watched", 1, 86_400, false) ?? 0) : 0;
    payload.newly_joined_s = narrowed ? (whole("newly", 1, 527_040, false) ?? 0) * 60 : 0;
    payload.first_order = draft.first_order;
    payload.starts_in_s = narrowed ? (whole("countdown", ...COUNTDOWN_S, false) ?? 0) : 0;
    if (needs === "join" && !JOINERS.includes(draft.audience.kind)) errors.audience = t("field_joiners");
    payload.seconds = whole("seconds", 5, 86_400, false);
  }
  if (draft.kind === "poll") {
    payload.question = line("question", 200);
    const choices = draft.choices.map((one) => one.trim()).filter(Boolean);
    if (new Set(choices).size < 2 || new Set(choices).size !== choices.length) errors.choices = t("field_choices");
    else if (choices.some((one) => points(one) > 60)) errors.choices = t("field_long", { max: 60, over: Math.max(...choices.map(points)) - 60 });
    payload.choices = choices;
    payload.max_choices = whole("max_choices", 1, Math.max(1, choices.length), true);
    payload.results = draft.results;
    payload.seconds = whole("seconds", 15, 1800, false);
  }
  if (draft.kind === "announcement") payload.text = line("words", 200);
  for (const name of Object.keys(payload)) if (payload[name] === undefined) delete payload[name];
  const cue = { kind: draft.kind, title, shortcut: draft.shortcut, payload };
  if (draft.id) cue.id = draft.id;
  return { errors, cue };
}

export function CueForm({ store, runner, products, productsFailure, readProducts, onClose }) {
  const [drafts, setDrafts] = useState(() => (store.cues.peek() ?? []).map(draftOf));
  const [open, setOpen] = useState(() => null);
  const [tried, setTried] = useState(false);
  const [leaving, setLeaving] = useState(false);
  const [rules, setRules] = useState([]); // of coupons that are still given
  useEffect(() => {
    get("/v1/coupon-rules?limit=100").then((answer) => setRules(items(answer).filter((one) => one.status === "on")), () => {}); // said where one is to be chosen
  }, []);
  const first = useRef(JSON.stringify(drafts));
  const changed = JSON.stringify(drafts) !== first.current;
  const checked = useMemo(() => drafts.map((draft) => check(draft, drafts, products ?? [])), [drafts, products]);
  const wrong = checked.reduce((sum, one) => sum + Object.keys(one.errors).length, 0);

  const save = useAct(async (key, cues) => {
    await put(`/v1/shows/${store.show.peek().id}/cues`, { cues }, { key });
    await runner.read();
    onClose();
  });

  const go = () => {
    setTried(true);
    if (wrong) {
      const at = checked.findIndex((one) => Object.keys(one.errors).length);
      setOpen(drafts[at].slot);
      focusFirstWrong(".cue-form");
      return;
    }
    save.run(checked.map((one) => one.cue));
  };
  const close = () => (changed && !leaving ? setLeaving(true) : onClose());
  const set = (slot, change) => {
    setLeaving(false);
    setDrafts(drafts.map((one) => (one.slot === slot ? { ...one, ...change } : one)));
  };
  const move = (index, by) => {
    const copy = drafts.slice();
    copy.splice(index + by, 0, ...copy.splice(index, 1));
    setDrafts(copy);
  };
  const addOne = (kind) => {
    const taken = new Set(drafts.map((one) => one.shortcut));
    const free = Array.from("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789").find((one) => !taken.has(one)) ?? "";
    const draft = blank(kind, free);
    setDrafts([...drafts, draft]);
    setOpen(draft.slot);
    requestAnimationFrame(() => document.querySelector(`[data-slot="${draft.slot}"] input`)?.focus());
  };

  return html`
    <${Dialog}
      title=${t("rundown_edit")}
      wide
      onClose=${close}
      foot=${html`
        <${Problem} failure=${save.failure} onRetry=${save.failure?.unsure ? save.again : null} />
        <div class="row row--wrap cue-form__foot">
          ${leaving
            ? html`<span class="grow strong" role="alert">${t("cues_leave")}</span>
                <${Button} kind="danger" onClick=${onClose}>${t("close")}<//>
                <${Button} onClick=${() => setLeaving(false)}>${t("edit")}<//>`
            : html`<span class="grow small muted" role="status">
                  ${tried && wrong ? t("form_has_errors", { n: wrong }) : changed ? t("cues_unsaved") : ""}
                </span>
                <${Button} onClick=${close}>${t("cancel")}<//>
                <${Button} kind="primary" busy=${save.busy} disabled=${!changed} onClick=${go}>${t("cues_save")}<//>`}
        </div>
      `}
    >
      <div class="cue-form">
        <${Problem} failure=${productsFailure} onRetry=${readProducts} />
        ${products?.length === 0 && html`<p class="notice notice--warn">${t("no_products")}</p>`}
        <ol class="cue-form__list">
          ${drafts.map((draft, index) => {
            const errors = tried ? checked[index].errors : {};
            const unfolded = open === draft.slot;
            const count = Object.keys(errors).length;
            return html`
              <li key=${draft.slot} class=${`cue-draft ${unfolded ? "cue-draft--open" : ""} ${count ? "cue-draft--wrong" : ""}`} data-slot=${draft.slot}>
                <div class="cue-draft__head">
                  <button type="button" class="cue-draft__open" aria-expanded=${String(unfolded)} onClick=${() => setOpen(unfolded ? null : draft.slot)}>
                    <kbd class="kbd">${draft.shortcut || "·"}</kbd>
                    <${Icon} name=${kindIcon(draft.kind)} />
                    <span class="clip grow">${draft.title || t(`kind_${draft.kind}`)}</span>
                    <span class="muted small cue-draft__kind">${t(`kind_${draft.kind}`)}</span>
                    ${count > 0 && html`<span class="badge badge--bad">${t("form_has_errors", { n: count })}</span>`}
                  </button>
                  <${IconButton} name="up" label=${t("cue_up")} class="icon-button--small" disabled=${index === 0} onClick=${() => move(index, -1)} />
                  <${IconButton} name="down" label=${t("cue_down")} class="icon-button--small" disabled=${index === drafts.length - 1} onClick=${() => move(index, 1)} />
                  <${IconButton} name="trash" label=${t("cue_delete")} class="icon-button--small" disabled=${draft.locked} onClick=${() => setDrafts(drafts.filter((one) => one !== draft))} />
                </div>
                ${unfolded && html`<${Draft} draft=${draft} errors=${errors} products=${products ?? []} rules=${rules} set=${(change) => set(draft.slot, change)} />`}
              </li>
            `;
          })}
        </ol>
        ${drafts.length < CUES_MAX
          ? html`<div class="cue-form__add" role="group" aria-label=${t("cue_new")}>
              ${KINDS.map(
                (kind) => html`<${Button} key=${kind} small onClick=${() => addOne(kind)}><${Icon} name=${kindIcon(kind)} />${t(`kind_${kind}`)}<//>`,
              )}
            </div>`
          : html`<p class="muted small">${t("cues_max")}</p>`}
      </div>
    <//>
  `;
}

function Draft({ draft, errors, products, rules, set }) {
  const product = products.find((one) => one.id === draft.product);
  const field = (name, label, more = {}) => html`
    <${TextField} label=${label} value=${draft[name]} error=${errors[name]} onInput=${(value) => set({ [name]: value })} ...${more} />
  `;
  const number = (name, label, more = {}) => field(name, label, { inputmode: "numeric", class: "field--short", ...more });
  const audiences = AUDIENCES.includes(draft.audience.kind) ? AUDIENCES : [...AUDIENCES, draft.audience.kind];
  const audience = html`
    <${SelectField}
      label=${t("cue_audience")}
      value=${draft.audience.kind}
      error=${errors.audience}
      options=${audiences.map((one) => [one, t(`audience_${one}`)])}
      onInput=${(kind) => set({ audience: kind === draft.audience.kind ? draft.audience : { kind } })}
    />
  `;
  const pick = html`
    <${SelectField}
      label=${t("cue_product")}
      class="field--wide"
      value=${draft.product}
      error=${errors.product}
      options=${[["", t("cue_product_pick")], ...products.map((one) => [one.id, `${one.name} · ${money(one.list_fen)}${one.member_fen ? ` / ${money(one.member_fen)}` : ""}`])]}
      onInput=${(id) => {
        const found = products.find((one) => one.id === id);
        const named = products.find((one) => one.id === draft.product);
        const own = draft.title && draft.title !== named?.name; // keep a name that was typed
        set({ product: id, title: own ? draft.title : (found?.name ?? "") });
      }}
    />
  `;
  if (draft.locked) {
    return html`
      <div class="cue-draft__body">
        <p class="notice field--wide">${t("cue_locked")}</p>
        ${field("title", t("cue_title"), { hint: t("cue_title_help"), class: "field--wide" })}
      </div>
    `;
  }
  return html`
    <div class="cue-draft__body">
      ${(draft.kind === "pin" || draft.kind === "flash") && pick}
      ${field("title", t("cue_title"), { hint: t("cue_title_help"), class: "field--wide" })}
      <${TextField}
        label=${t("cue_key")}
        class="field--short"
        value=${draft.shortcut}
        error=${errors.shortcut}
        maxlength="1"
        autocapitalize="characters"
        onInput=${(value) => set({ shortcut: value.trim().toUpperCase() })}
      />
      ${draft.kind === "flash" &&
      html`${field("flash", t("cue_flash_price"), {
          inputmode: "decimal",
          class: "field--short",
          hint: product && (product.member_fen ? t("cue_flash_member", { list: yuan(product.list_fen), member: yuan(product.member_fen) }) : t("cue_flash_below", { price: yuan(product.list_fen) })),
        })}
        ${number("quota", t("cue_quota"))} ${number("per_person", t("cue_per_person"))} ${number("seconds", t("cue_seconds"))}`}
      ${draft.kind === "benefit" &&
      html`${field("benefit", t("cue_benefit_title"), { class: "field--wide" })}
        ${field("about", t("cue_benefit_text"), { class: "field--wide", needed: false })}
        <${SelectField}
          label=${t("cue_benefit_what")}
          value=${draft.what}
          options=${WHAT.map((one) => [one, t(`what_${one}`)])}
          onInput=${(what) => set(what === "free_order" ? { what, needs: "order" } : { what })}
        />
        ${draft.what === "coupon" &&
        html`<${SelectField}
          label=${t("cue_coupon")}
          class="field--wide"
          value=${draft.coupon_rule}
          error=${errors.coupon_rule}
          hint=${rules.length ? null : t("cue_coupon_none")}
          options=${[["", t("cue_coupon_pick")], ...rules.map((one) => [one.id, one.title])]}
          onInput=${(coupon_rule) => set({ coupon_rule })}
        />`}
        ${draft.what === "points" && number("given", t("cue_points"))}
        ${draft.what === "free_order" && field("cap", t("cue_cap"), { inputmode: "decimal", class: "field--short" })}
        ${draft.what === "early_access" &&
        html`<${Early} draft=${draft} products=${products} error=${errors.early} set=${set} />
          ${field("until", t("cue_until"), { type: "datetime-local", needed: false })}`}
        ${["gift", "coupon", "early_access"].includes(draft.what) && field("value", t("cue_value"), { inputmode: "decimal", class: "field--short" })}
        ${number("quota", t("cue_seats"))}
        <${SelectField}
          label=${t("cue_needs")}
          value=${draft.needs}
          error=${errors.needs}
          options=${["join", "nothing", "order"].map((one) => [one, t(`needs_${one}`)])}
          onInput=${(needs) => set({ needs })}
        />
        ${draft.needs === "order" && field("min", t("cue_min"), { inputmode: "decimal", class: "field--short", needed: false })}
        ${number("seconds", t("cue_seconds"), { hint: t("cue_no_limit") })}
        ${draft.needs !== "join" &&
        html`${number("countdown", t("cue_countdown"), { needed: false })} ${number("watched", t("cue_watched"), { needed: false })} ${number("newly", t("cue_newly"), { needed: false })}
          <label class="row field--wide"><input class="switch" type="checkbox" role="switch" checked=${draft.first_order} onChange=${(event) => set({ first_order: event.currentTarget.checked })} /><span>${t("cue_first_order")}</span></label>`}`}
      ${draft.kind === "poll" &&
      html`${field("question", t("cue_question"), { class: "field--wide" })}
        <${Choices} draft=${draft} error=${errors.choices} set=${set} />
        ${number("max_choices", t("cue_max_choices"))}
        <${SelectField}
          label=${t("cue_results")}
          value=${draft.results}
          options=${["after_vote", "after_close", "always"].map((one) => [one, t(`results_${one}`)])}
          onInput=${(results) => set({ results })}
        />
        ${number("seconds", t("cue_seconds"), { hint: t("cue_no_limit") })}`}
      ${draft.kind === "announcement" ? field("words", t("cue_text"), { class: "field--wide", long: true }) : audience}
    </div>
  `;
}

/** Which products may be ordered early. */
function Early({ draft, products, error, set }) {
  const toggle = (id) => set({ early: draft.early.includes(id) ? draft.early.filter((one) => one !== id) : [...draft.early, id] });
  return html`
    <fieldset class="field field--wide">
      <legend class="field__label">${t("cue_early")}</legend>
      ${products
        .filter((one) => !one.no_promo)
        .map((one) => html`<label key=${one.id} class="row early"><input type="checkbox" checked=${draft.early.includes(one.id)} aria-invalid=${error ? "true" : undefined} onChange=${() => toggle(one.id)} /><span>${one.name}</span></label>`)}
      ${error && html`<p class="field__error">${error}</p>`}
    </fieldset>
  `;
}

function Choices({ draft, error, set }) {
  const change = (index, value) => set({ choices: draft.choices.map((one, at) => (at === index ? value : one)) });
  return html`
    <fieldset class="field field--wide choices">
      <legend class="field__label">${t("cue_choices")}</legend>
      ${draft.choices.map(
        (choice, index) => html`<div class="row" key=${index}>
          <input
            class="input grow"
            value=${choice}
            aria-label=${t("cue_choice_n", { n: index + 1 })}
            aria-invalid=${error ? "true" : undefined}
            onInput=${(event) => change(index, event.currentTarget.value)}
          />
          ${draft.choices.length > 2 &&
          html`<${IconButton}
            name="close"
            label=${t("named", { what: t("remove"), name: t("cue_choice_n", { n: index + 1 }) })}
            onClick=${() => set({ choices: draft.choices.filter((_, at) => at !== index) })}
          />`}
        </div>`,
      )}
      ${draft.choices.length < 10 &&
      html`<${Button} small kind="quiet" onClick=${() => set({ choices: [...draft.choices, ""] })}><${Icon} name="plus" />${t("cue_choice_add")}<//>`}
      ${error && html`<p class="field__error">${error}</p>`}
    </fieldset>
  `;
}

