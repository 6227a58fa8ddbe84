// The rundown: prepared cues, one key each. Prices and quotas were typed before the show; on air a cue is
// only run and stopped.

import { computed, signal } from "@preact/signals";
import { Failure, get, items, newKey, post } from "./api.js";
import { asMs, clock as timeOfDay, count, money, span } from "./format.js";
import { Button, Icon, Problem, failureText, html, kindIcon, say, t } from "./ui.js";

const PRESS_GUARD_MS = 1200; // a second press on the same cue within this is the same press
const SURE_MS = 4000; // how long "press again to stop" waits
const HINT_MS = 5000;
const SOFT = new Set(["pin", "announcement"]); // stopping these loses nothing
const ONCE = new Set(["flash", "benefit"]); // what has a quota is given once
const BEFORE_TOO = new Set(["waiting", "live", "paused"]);

/** Null when the cue may run now, else the words that say why not. */
export function barred(cue, status) {
  if (cue.state === "done" && ONCE.has(cue.kind)) return t("fail_cue_done");
  if (status === "live" || (!ONCE.has(cue.kind) && BEFORE_TOO.has(status))) return null;
  if (status === "paused") return t("cue_paused_show");
  return t(status === "ending" || status === "ended" ? "fail_not_live" : ONCE.has(cue.kind) ? "cue_not_live" : "cue_not_open");
}

/** What may be done with cues, by key or by hand. One for the panel; the screen only reads it. */
export function makeRunner(store, onSignedOut) {
  const runner = {
    busy: signal(new Set()), // cue ids with an answer on its way
    failures: signal(new Map()), // cue id -> {failure, act}
    sure: signal(null), // the cue whose stop waits for the second press
    hint: signal(null), // {cue | null, words}: why a key did nothing
    last: signal(null), // {at, words}: the last thing done
  };
  const keys = new Map(); // act and cue -> idempotency key, kept while the answer is unknown
  const pressed = new Map(); // cue id -> when
  let hintTimer = null;
  let sureTimer = null;
  let reading = null;
  let again = false;

  runner.read = () => {
    if (reading) {
      again = true;
      return reading;
    }
    reading = get(`/v1/shows/${store.show.peek().id}/cues`)
      .then((answer) => {
        store.cues.value = items(answer)
          .slice()
          .sort((a, b) => a.position - b.position);
        store.cuesFailure.value = null;
      })
      .catch((failure) => {
        store.cuesFailure.value = failure;
        if (failure.status === 401) onSignedOut(failure);
      })
      .finally(() => {
        reading = null;
        if (again) {
          again = false;
          runner.read();
        }
      });
    return reading;
  };

  function hint(cue, words) {
    clearTimeout(hintTimer);
    runner.hint.value = { cue: cue?.id ?? null, words };
    say(words);
    hintTimer = setTimeout(() => (runner.hint.value = null), HINT_MS);
  }
  runner.say = hint;

  function setIn(cell, id, value) {
    const copy = new Map(cell.peek());
    if (value === null) copy.delete(id);
    else copy.set(id, value);
    cell.value = copy;
  }

  async function act(name, cue) {
    if (runner.busy.peek().has(cue.id)) return hint(cue, t("cue_busy"));
    const slot = `${name} ${cue.id}`;
    if (!keys.has(slot)) keys.set(slot, newKey());
    runner.busy.value = new Set(runner.busy.peek()).add(cue.id);
    setIn(runner.failures, cue.id, null);
    runner.sure.value = null;
    try {
      const answer = await post(`/v1/shows/${store.show.peek().id}/cues/${cue.id}/${name}`, {}, { key: keys.get(slot) });
      keys.delete(slot);
      if (answer && answer.id === cue.id && answer.state) {
        store.cues.value = store.cues.peek().map((one) => (one.id === cue.id ? { ...one, ...answer } : one));
      }
      const words = t(name === "run" ? "cue_ran" : "cue_stopped", { title: cue.title });
      runner.last.value = { at: store.time(), words };
      say(words);
    } catch (error) {
      const failure = error instanceof Failure ? error : new Failure("page", 0, String(error));
      if (!failure.unsure) keys.delete(slot);
      setIn(runner.failures, cue.id, { failure, name });
      say(failureText(failure), true);
      if (failure.status === 401) onSignedOut(failure);
    } finally {
      const busy = new Set(runner.busy.peek());
      busy.delete(cue.id);
      runner.busy.value = busy;
      runner.read(); // whatever came back, what the store says now is what is shown
    }
    return undefined;
  }

  runner.run = (cue) => {
    const now = Date.now();
    if (now - (pressed.get(cue.id) ?? 0) < PRESS_GUARD_MS) return;
    if (cue.state === "running") return void hint(cue, t("cue_is_running", { title: cue.title }));
    const why = barred(cue, store.status.peek());
    if (why) return void hint(cue, why);
    pressed.set(cue.id, now);
    act("run", cue);
  };

  runner.stop = (cue) => {
    if (cue.state !== "running") return;
    if (!SOFT.has(cue.kind) && runner.sure.peek() !== cue.id) {
      clearTimeout(sureTimer);
      runner.sure.value = cue.id;
      say(t("named", { what: cue.title, name: t("cue_stop_sure") }));
      sureTimer = setTimeout(() => (runner.sure.value = null), SURE_MS);
      return;
    }
    act("stop", cue);
  };

  runner.retry = (cue) => {
    const failed = runner.failures.peek().get(cue.id);
    if (failed) act(failed.name, cue);
  };
  runner.forget = (cue) => setIn(runner.failures, cue.id, null);

  /** A letter or digit was pressed at the desk. Returns whether it was a cue's. */
  runner.press = (key, event) => {
    const cue = (store.cues.peek() ?? []).find((one) => (one.shortcut ?? "").toUpperCase() === key.toUpperCase());
    if (!cue) {
      if (!/^[a-z0-9]$/i.test(key)) return false;
      hint(null, t("cue_unknown_key", { key: key.toUpperCase() }));
      return true;
    }
    event.preventDefault();
    if (event.shiftKey) runner.stop(cue);
    else if (cue.state === "done" && !SOFT.has(cue.kind)) hint(cue, t(ONCE.has(cue.kind) ? "fail_cue_done" : "cue_is_done", { title: cue.title }));
    else runner.run(cue);
    return true;
  };

  runner.running = computed(() => (store.cues.value ?? []).filter((one) => one.state === "running"));
  return runner;
}

export function Rundown({ store, runner, products, onEdit }) {
  const cues = store.cues.value;
  const status = store.status.value;
  const failure = store.cuesFailure.value;
  const hint = runner.hint.value;
  const last = runner.last.value;
  const before = status === "scheduled" || status === "waiting";
  const done = (cues ?? []).filter((one) => one.state === "done").length;
  const next = (cues ?? []).find((one) => one.state === "ready")?.id;
  return html`
    <section class="pane rundown" aria-labelledby="rundown-title">
      <header class="pane__head">
        <h2 class="pane__title" id="rundown-title">${t("rundown")}</h2>
        ${cues?.length ? html`<span class="muted small num">${t("rundown_n", { done, all: cues.length })}</span>` : null}
        <span class="grow"></span>
        ${before && onEdit && html`<${Button} kind="quiet" small onClick=${onEdit}><${Icon} name="edit" />${t("rundown_edit")}<//>`}
      </header>
      <div class="rundown__body">
        ${failure && html`<${Problem} failure=${failure} onRetry=${runner.read} />`}
        ${cues === null && !failure && html`<p class="empty">${t("loading")}</p>`}
        ${cues?.length === 0 &&
        html`<div class="empty">
          <p>${t("rundown_empty")}</p>
          ${before && onEdit && html`<${Button} kind="primary" small onClick=${onEdit}>${t("rundown_prepare")}<//>`}
        </div>`}
        ${cues?.length
          ? html`<ol class="cues">
              ${cues.map(
                (cue) => html`<${Cue} key=${cue.id} cue=${cue} store=${store} runner=${runner} products=${products} hint=${hint} next=${cue.id === next} />`,
              )}
            </ol>`
          : null}
      </div>
      <footer class="rundown__foot small">
        ${hint && hint.cue === null
          ? html`<span class="badge badge--warn">${hint.words}</span>`
          : last
            ? html`<span class="muted num">${timeOfDay(last.at)}</span><span class="clip">${last.words}</span>`
            : html`<span class="muted">${before ? t("rundown_lead") : t("rundown_locked")}</span>`}
      </footer>
    </section>
  `;
}

function Cue({ cue, store, runner, products, hint, next }) {
  const busy = runner.busy.value.has(cue.id);
  const failed = runner.failures.value.get(cue.id);
  const sure = runner.sure.value === cue.id;
  const running = cue.state === "running";
  const done = cue.state === "done";
  const why = running ? null : barred(cue, store.status.value);
  const can = !running && why === null;
  const mine = hint && hint.cue === cue.id;
  const key = (cue.shortcut ?? "").toUpperCase();
  return html`
    <li class=${`cue cue--${cue.state} ${mine ? "cue--hint" : ""} ${next ? "cue--next" : ""}`}>
      <div class="cue__row">
        <span class="cue__key" aria-hidden="true">${key ? html`<kbd class="kbd">${key}</kbd>` : null}</span>
        <div class="grow">
          <p class="cue__title">
            <span class="cue__kind"><${Icon} name=${kindIcon(cue.kind)} /><span class="visually-hidden">${t("named", { what: t(`kind_${cue.kind}`), name: "" })}</span></span>
            <span class="clip">${cue.title || t(`kind_${cue.kind}`)}</span>
          </p>
          <p class="cue__text muted small">${summary(cue, products)}</p>
        </div>
        ${running
          ? html`<${Button}
              kind=${sure ? "primary" : "danger"}
              small
              class="cue__act"
              busy=${busy}
              onClick=${() => runner.stop(cue)}
              aria-label=${t("named", { what: t(sure ? "cue_stop_sure" : "cue_stop"), name: cue.title })}
              aria-keyshortcuts=${key ? `Shift+${key}` : undefined}
            >
              ${sure ? t("cue_stop_sure") : t("cue_stop")}
            <//>`
          : html`<${Button}
              kind=${can && next ? "primary" : undefined}
              small
              class="cue__act"
              busy=${busy}
              disabled=${!can}
              onClick=${() => runner.run(cue)}
              aria-label=${t("named", { what: t(done ? "cue_again" : "cue_run"), name: cue.title })}
              aria-keyshortcuts=${key || undefined}
              title=${why ?? undefined}
            >
              ${done ? (ONCE.has(cue.kind) ? t("cue_done") : t("cue_again")) : t("cue_run")}
            <//>`}
      </div>
      ${running && html`<${Running} cue=${cue} store=${store} />`}
      ${done && html`<span class="visually-hidden">${t("cue_done")}</span>`}
      ${mine && html`<p class="cue__hint small">${hint.words}</p>`}
      ${failed &&
      html`<${Problem}
        compact
        failure=${failed.failure}
        onRetry=${failed.failure.unsure || failed.failure.retryMs ? () => runner.retry(cue) : null}
        onClose=${() => runner.forget(cue)}
      />`}
    </li>
  `;
}

/** The state that a running cue opened. */
export function subjectOf(cue, store) {
  const prefix = { pin: "offer", flash: "offer", benefit: "benefit", poll: "poll" }[cue.kind];
  return prefix && cue.subject ? store.data(`${prefix}:${cue.subject}`) : null;
}

function Running({ cue, store }) {
  const subject = subjectOf(cue, store);
  const now = store.now.value;
  const to = asMs(subject?.closes_at);
  const seconds = cue.payload?.seconds;
  const from = to && seconds ? to - seconds * 1000 : asMs(subject?.opens_at);
  const counts = subject?.counts ?? {};
  const facts = [];
  if (to) facts.push(t("ends_in", { time: span(to - now) }));
  if (cue.kind === "poll" && subject) facts.push(t("voters_n", { n: count(counts.voters ?? 0) }));
  if (cue.kind === "benefit" && subject) {
    facts.push(`${t("confirmed")} ${count(counts.confirmed ?? 0)}`, `${t("held")} ${count(counts.held ?? 0)}`, `${t("left")} ${count(leftOf(subject))}`);
  }
  if ((cue.kind === "flash" || cue.kind === "pin") && subject) {
    if (subject.status === "sold_out") facts.push(t("sold_out"));
    if (subject.quota) facts.push(t("left_of", { left: count(Math.max(0, subject.quota - (counts.held ?? 0) - (counts.sold ?? 0))), quota: count(subject.quota) }));
    facts.push(t("sold_n", { n: count(counts.sold ?? 0) }));
    if (counts.held) facts.push(t("held_n", { n: count(counts.held) }));
  }
  const part = from && to && to > from ? Math.min(1, Math.max(0, (to - now) / (to - from))) : null;
  return html`
    <div class="cue__running">
      <p class="row row--wrap small num">
        ${subject?.status === "paused"
          ? html`<span class="badge badge--warn">${t("benefit_paused")}</span>`
          : html`<span class="badge badge--live">${t("cue_running")}</span>`}
        ${facts.map((fact) => html`<span key=${fact.replace(/[\d,.:]+/g, "#")}>${fact}</span>`)}
      </p>
      ${part !== null && html`<div class="bar" aria-hidden="true"><span class="bar__fill cue__bar" style=${{ "--part": part }}></span></div>`}
    </div>
  `;
}

export const leftOf = (benefit) =>
  Math.max(0, (benefit.quota ?? 0) - (benefit.counts?.confirmed ?? 0) - (benefit.counts?.held ?? 0));

/** One line of what the cue will do, so that the host need not open it. */
export function summary(cue, products) {
  const payload = cue.payload ?? {};
  const product = (products ?? []).find((one) => one.id === payload.product);
  const parts = [];
  switch (cue.kind) {
    case "pin":
      if (product) {
        if (product.name !== cue.title) parts.push(product.short || product.name);
        parts.push(`${t("price_list")} ${money(product.list_fen)}`);
        if (product.member_fen) parts.push(`${t("price_member")} ${money(product.member_fen)}`);
      }
      break;
    case "flash":
      if (product && !cue.title.includes(product.name)) parts.push(product.short || product.name);
      if (payload.flash_fen) parts.push(money(payload.flash_fen));
      if (payload.quota) parts.push(t("pieces_n", { n: count(payload.quota) }));
      if (payload.per_person) parts.push(t("per_person_n", { n: payload.per_person }));
      if (payload.seconds) parts.push(span(payload.seconds * 1000));
      break;
    case "benefit":
      if (payload.title && payload.title !== cue.title) parts.push(payload.title);
      if (payload.quota) parts.push(t("seats_n", { n: count(payload.quota) }));
      if (payload.value_fen) parts.push(money(payload.value_fen));
      if (payload.needs) parts.push(t(`needs_${payload.needs}`));
      if (payload.seconds) parts.push(span(payload.seconds * 1000));
      break;
    case "poll":
      if (payload.question && payload.question !== cue.title) parts.push(payload.question);
      parts.push((payload.choices ?? []).join(" / "));
      break;
    case "announcement":
      parts.push(payload.text ?? "");
      break;
  }
  const audience = payload.audience?.kind;
  if (audience && audience !== "everyone") parts.push(t(`audience_${audience}`));
  return parts.filter(Boolean).join(" · ");
}
