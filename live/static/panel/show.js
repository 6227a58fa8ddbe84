// The one screen from which a show is run. Wide: everything at once. Narrow: tabs at the thumb.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, items, post } from "./api.js";
import { Announcement, Comments, Composer } from "./comments.js";
import { Costs } from "./costs.js";
import { CueForm } from "./cue_form.js";
import { Desk } from "./desk.js";
import { asMs, clock as timeOfDay, span } from "./format.js";
import { ShowForm, StatusBadge } from "./home.js";
import { IncidentBar, IncidentButton, useIncident } from "./incident.js";
import { listen } from "./keys.js";
import { makeModeration } from "./moderation.js";
import { Numbers, numbersOf } from "./numbers.js";
import { Preview } from "./preview.js";
import { EndCard, Tags } from "./report.js";
import { Rundown, makeRunner } from "./rundown.js";
import { makeStore } from "./store.js";
import { Button, CopyButton, Dialog, Icon, IconButton, Menu, Problem, html, say, t, useAct, useWide } from "./ui.js";
import { clock, connect } from "./wire.js";

const NUMBERS_MS = 2_000;
const READ_AGAIN_MS = 250; // events of one act come close together: the rundown is read once
const SAFETY_READ_MS = 15_000; // and now and then anyway, should an event have said nothing
const LAST_CALLS = [0, 60, 180, 300]; // seconds that what is open stays so
const STATE_GUARD_MS = 1_500; // where "start" was, "pause" appears: a double press must not hit it

export function Show({ me, show, onSignedOut, tools }) {
  const store = useMemo(() => makeStore(show, clock), []);
  const runner = useMemo(() => makeRunner(store, onSignedOut), []);
  const moderation = useMemo(() => makeModeration(store, onSignedOut), []);
  const [products, setProducts] = useState(null);
  const [productsFailure, setProductsFailure] = useState(null);
  const [editing, edit] = useState(false);
  const [helping, help] = useState(false);
  const [reply, setReply] = useState(null);
  const [filter, setFilter] = useState("all");
  const [side, setSide] = useState("desk"); // the right column when wide
  const [tab, setTab] = useState("rundown"); // the one column when narrow
  const [ended, setEnded] = useState("report");
  const field = useRef(null);
  const status = store.status.value;
  const may = {
    run: me.permissions?.includes("show.run") ?? true,
    moderate: me.permissions?.includes("chat.moderate") ?? true,
    offers: me.permissions?.includes("offer.run") ?? true,
    report: me.permissions?.includes("report.read") ?? true,
    rooms: me.permissions?.includes("room.write") ?? true,
    incident: me.permissions?.includes("incident.run") ?? false,
  };
  const incident = useIncident(store.data("incident"));

  const readProducts = () =>
    get("/v1/products?limit=100")
      .then((answer) => (setProducts(items(answer)), setProductsFailure(null)))
      .catch((failure) => (setProducts([]), setProductsFailure(failure)));

  useEffect(() => {
    const disconnect = connect(store, onSignedOut);
    readProducts();
    runner.read();
    let soon = null;
    store.onMoved = () => {
      clearTimeout(soon);
      soon = setTimeout(runner.read, READ_AGAIN_MS);
    };
    const safety = setInterval(() => document.visibilityState === "visible" && runner.read(), SAFETY_READ_MS);
    const tick = setInterval(store.tick, 1000);
    return () => {
      disconnect();
      clearTimeout(soon);
      clearInterval(safety);
      clearInterval(tick);
    };
  }, []);

  const over = status === "ended";
  useEffect(() => {
    if (!may.report) return undefined;
    let stop = false;
    let timer = null;
    const read = async () => {
      try {
        const answer = await get(`/v1/shows/${show.id}/live`);
        if (!stop) store.putNumbers(numbersOf(answer));
      } catch (failure) {
        if (failure.status === 401) onSignedOut(failure);
        store.numbersFailure.value = failure;
      }
      if (!stop && !over) timer = setTimeout(read, NUMBERS_MS);
    };
    read();
    return () => {
      stop = true;
      clearTimeout(timer);
    };
  }, [over]);

  useEffect(
    () =>
      listen((key, event) => {
        if (key === "?") {
          event.preventDefault();
          help(true);
        } else if (key === "/") {
          event.preventDefault();
          setTab("comments");
          requestAnimationFrame(() => field.current?.focus());
        } else if (key === "[" || key === "]") {
          setSide((now) => sides[(sides.indexOf(now) + (key === "[" ? sides.length - 1 : 1)) % sides.length]);
        } else if (key === "=") {
          setFilter((now) => (now === "all" ? "questions" : "all"));
        } else if (may.offers && !over) {
          runner.press(key, event);
        }
      }),
    [over],
  );

  const wide = useWide();
  const sides = may.report ? ["desk", "costs", "phone"] : ["desk", "phone"];

  const parts = {
    rundown: () => html`<${Rundown} store=${store} runner=${runner} products=${products} onEdit=${may.run || may.rooms ? () => edit(true) : null} />`,
    comments: () => html`
      <div class="talk">
        <${Announcement} store=${store} can=${may.run} />
        <${Comments}
          store=${store}
          moderation=${moderation}
          setReply=${setReply}
          filter=${filter}
          setFilter=${setFilter}
          canModerate=${may.moderate}
          canSpeak=${may.run || may.moderate}
        />
        ${!over && html`<${Composer} store=${store} reply=${reply} setReply=${setReply} field=${field} wide=${wide} />`}
      </div>
    `,
    desk: () => html`<${Desk} store=${store} may=${may} />`,
    numbers: () => html`<${Numbers} store=${store} />`,
    costs: () => html`<${Costs} store=${store} me=${me} />`,
    phone: () => html`<${Preview} store=${store} />`,
    report: () => html`<${EndCard} store=${store} />`,
    tags: () => html`<${Tags} store=${store} />`,
  };

  return html`
    <div class=${`screen ${over ? "screen--ended" : ""}`}>
      <${Header} store=${store} runner=${runner} may=${may} tools=${tools} wide=${wide} incident=${incident} onHelp=${() => help(true)} />
      <${IncidentBar} incident=${incident} can=${may.incident} now=${store.now.value} />
      <${Line} store=${store} />
      <${Trouble} store=${store} wide=${wide} />
      ${over
        ? html`<${Ended} parts=${parts} chosen=${ended} choose=${setEnded} wide=${wide} may=${may} />`
        : wide
          ? html`
              ${may.report && parts.numbers()}
              <main class="floor" id="main">
                <div class="floor__left">${parts.rundown()}</div>
                <div class="floor__middle">${parts.comments()}</div>
                <div class="floor__right">
                  <div class="segments segments--fill" role="group" aria-label=${sides.map((one) => t(one)).join(" / ")}>
                    ${sides.map(
                      (one) => html`<button key=${one} type="button" class="segment" aria-pressed=${String(side === one)} onClick=${() => setSide(one)}>
                        ${t(one)}
                      </button>`,
                    )}
                  </div>
                  ${parts[side]()}
                </div>
              </main>
            `
          : html`
              <main class="floor floor--narrow" id="main" key=${tab}>
                ${tab === "numbers" ? html`<div class="stack narrow-scroll">${parts.numbers()}${parts.desk()}${may.report && parts.costs()}</div>` : parts[tab]()}
              </main>
              <${Tabs} tabs=${["rundown", "comments", "numbers", "phone"]} chosen=${tab} choose=${setTab} />
            `}
      ${editing &&
      html`<${CueForm}
        store=${store}
        runner=${runner}
        products=${products}
        productsFailure=${productsFailure}
        readProducts=${readProducts}
        onClose=${() => edit(false)}
      />`}
      ${helping && html`<${Help} store=${store} onClose=${() => help(false)} />`}
    </div>
  `;
}

const TAB_ICONS = { rundown: "list", comments: "chat", numbers: "chart", phone: "phone", report: "chart", tags: "pin" };

function Tabs({ tabs, chosen, choose }) {
  return html`
    <nav class="thumb" aria-label=${t("panel")}>
      ${tabs.map(
        (one) => html`<button key=${one} type="button" class="thumb__tab" aria-current=${one === chosen ? "page" : undefined} onClick=${() => choose(one)}>
          <${Icon} name=${TAB_ICONS[one]} />${t(`tab_${one}`)}
        </button>`,
      )}
    </nav>
  `;
}

function Ended({ parts, chosen, choose, wide, may }) {
  const tabs = may.report ? ["report", "tags", "comments"] : ["comments"];
  const now = tabs.includes(chosen) ? chosen : tabs[0];
  if (wide) {
    return html`
      <main class="floor floor--ended" id="main">
        <div class="floor__main">${may.report ? parts.report() : parts.comments()}</div>
        ${may.report &&
        html`<div class="floor__right">
          <div class="segments segments--fill" role="group" aria-label=${`${t("tags")} / ${t("comments")}`}>
            ${["tags", "comments"].map(
              (one) => html`<button key=${one} type="button" class="segment" aria-pressed=${String(one === "tags" ? now !== "comments" : now === "comments")} onClick=${() => choose(one)}>
                ${t(one)}
              </button>`,
            )}
          </div>
          ${now === "comments" ? parts.comments() : parts.tags()}
        </div>`}
      </main>
    `;
  }
  return html`
    <main class="floor floor--narrow" id="main" key=${now}>${parts[now]()}</main>
    ${tabs.length > 1 && html`<${Tabs} tabs=${tabs} chosen=${now} choose=${choose} />`}
  `;
}

function Header({ store, runner, may, tools, wide, incident, onHelp }) {
  const [editing, edit] = useState(false);
  const show = store.show.value;
  const card = store.data("show") ?? {};
  const status = store.status.value;
  const now = store.now.value;
  const starts = asMs(card.starts_at ?? show.starts_at);
  const started = asMs(card.started_at ?? show.started_at);
  const [ending, end] = useState(false);
  const [checks, setChecks] = useState(null);
  const guarded = useRef(0);
  const [, wake] = useState(0);

  const act = useAct(async (key, name, body = {}) => {
    const answer = await post(`/v1/shows/${show.id}/${name}`, body, { key });
    if (answer?.id) store.show.value = { ...store.show.peek(), ...answer };
    guarded.current = Date.now() + STATE_GUARD_MS;
    setTimeout(() => wake((n) => n + 1), STATE_GUARD_MS + 20);
    end(false);
    setChecks(null);
    say(t(`status_${store.status.peek()}`));
  });
  // A refused act usually means that another hand was faster: read the state again.
  useEffect(() => {
    if (act.failure?.code === "wrong_status") {
      get(`/v1/shows/${show.id}`)
        .then((fresh) => (store.show.value = fresh.staff ?? fresh))
        .catch(() => {}); // the refusal stands on the screen already
    }
  }, [act.failure]);

  const guardedNow = Date.now() < guarded.current;
  const go = (name) => Date.now() >= guarded.current && act.run(name);
  const start = () => {
    const missing = [];
    if (!(card.video?.url || show.video_url)) missing.push(t("check_video"));
    if (store.cues.peek()?.length === 0) missing.push(t("check_cues"));
    if (missing.length) setChecks(missing);
    else go("start");
  };

  let time = null;
  if (status === "scheduled" || status === "waiting") {
    if (starts) time = starts > now ? t("starts_in", { time: span(starts - now) }) : t("late_by", { time: span(now - starts) });
  } else if (status === "ending" && show.ending_until) time = t("ends_in", { time: span(show.ending_until - now) });
  else if (status !== "ended" && started) time = t("on_air_for", { time: span(now - started) });
  else if (status === "ended" && started && (card.ended_at ?? show.ended_at)) time = `${t("report_length")} ${span(asMs(card.ended_at ?? show.ended_at) - started)}`;

  const button = (name, kind, icon, press = () => go(name)) => html`
    <${Button} key=${name} kind=${kind} class="state__act" busy=${act.busy} disabled=${guardedNow} onClick=${press} title=${{ open: t("act_open_help"), start: t("act_start_help") }[name]}>
      <${Icon} name=${icon} solid=${name === "start" || name === "resume"} />${t(`act_${name}`)}
    <//>
  `;
  const acts = {
    scheduled: () => button("open", "primary", "open"),
    waiting: () => button("start", "primary", "play", start),
    live: () => [button("pause", undefined, "pause"), button("end", "danger", "stop", () => Date.now() >= guarded.current && end(true))],
    ending: () => button("end_now", "danger", "stop", () => go("end")),
    paused: () => [button("resume", "done", "play"), button("end", "danger", "stop", () => end(true))],
  };

  return html`
    <header class="top">
      <a class="icon-button" href="/panel" aria-label=${t("back_to_list")} title=${t("back_to_list")}><${Icon} name="back" /></a>
      <div class="top__title">
        <div class="row top__name">
          <h1 class="clip">${card.title ?? show.title}</h1>
          ${may.rooms && status !== "ended" && html`<${IconButton} name="edit" label=${t("edit_show")} class="icon-button--small" onClick=${() => edit(true)} />`}
        </div>
        <p class="row small">
          <${StatusBadge} status=${status} />
          ${time && html`<span class="num muted clip" role="timer">${time}</span>`}
          <${Health} store=${store} />
        </p>
      </div>
      <div class="state" role="group" aria-label=${t(`status_${status}`)}>${may.run && acts[status]?.()}</div>
      ${wide && may.incident && status !== "ended" && html`<${IncidentButton} incident=${incident} />`}
      <${Menu} wide=${wide}>
        ${!wide && may.incident && status !== "ended" && html`<${IncidentButton} incident=${incident} />`}
        <a class="tool-words tool-link" href="/panel/money">${t("money_desk")}</a>
        <${CopyButton} text=${`${location.origin}/s/${show.id}`} label=${t("copy_link")} />
        <${IconButton} name="help" label=${t("help_key")} onClick=${onHelp} />
        ${tools}
      <//>
    </header>
    ${act.failure && !ending && html`<div class="bar-notice"><${Problem} failure=${act.failure} onRetry=${act.failure.unsure || act.failure.retryMs ? act.again : null} onClose=${act.clear} /></div>`}
    ${editing &&
    html`<${ShowForm}
      old=${show}
      onClose=${() => edit(false)}
      onSaved=${(saved) => {
        store.show.value = saved;
        edit(false);
        say(t("saved"));
      }}
    />`}
    ${ending && html`<${End} store=${store} runner=${runner} act=${act} onClose=${() => (end(false), act.clear())} />`}
    ${checks &&
    html`<${Dialog}
      title=${t("check_title")}
      onClose=${() => setChecks(null)}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${null} />
        <div class="row"><${Button} class="grow" onClick=${() => setChecks(null)}>${t("check_back")}<//>
        <${Button} kind="primary" busy=${act.busy} onClick=${() => go("start")}>${t("act_start")}<//></div>`}
    >
      <ul class="stack">${checks.map((words) => html`<li key=${words} class="notice notice--warn"><${Icon} name="warn" /><span>${words}</span></li>`)}</ul>
    <//>`}
  `;
}

function End({ store, runner, act, onClose }) {
  const [wait, setWait] = useState(0);
  const running = runner.running.value;
  const held = [...store.of("benefit"), ...store.of("offer")].reduce((sum, one) => sum + (one.counts?.held ?? 0), 0);
  return html`
    <${Dialog}
      title=${t("end_title")}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${act.failure?.unsure ? act.again : null} />
        <div class="row">
          <${Button} class="grow" onClick=${onClose}>${t("end_back")}<//>
          <${Button} kind="primary" busy=${act.busy} onClick=${() => act.run("end", { last_call_s: wait })}>${t("end_confirm")}<//>
        </div>`}
    >
      <div class="stack">
        <p>${t("end_lead")}</p>
        <div class="segments segments--fill" role="group" aria-label=${t("end_when")}>
          ${LAST_CALLS.map(
            (seconds) => html`<button key=${seconds} type="button" class="segment" aria-pressed=${String(wait === seconds)} onClick=${() => setWait(seconds)}>
              ${seconds ? t("end_after", { n: seconds / 60 }) : t("end_at_once")}
            </button>`,
          )}
        </div>
        <p class="small muted">${t(wait ? "end_after_help" : "end_at_once_help")}</p>
        ${running.length
          ? html`<ul class="list">${running.map((cue) => html`<li key=${cue.id} class="list__row"><kbd class="kbd">${cue.shortcut}</kbd><span class="grow">${cue.title}</span></li>`)}</ul>`
          : html`<p class="muted">${t("end_nothing")}</p>`}
        ${held > 0 && html`<p class="notice notice--warn">${t("end_holds", { n: held })}</p>`}
      </div>
    <//>
  `;
}

const STEPS = ["reactions", "comments", "presence"]; // given up in this order, each with the ones before it

/** What the server says of itself: `log` when it cannot read the show's log, `step` of the ladder. */
function healthOf(store) {
  const log = store.data("log");
  const degraded = store.data("degraded");
  const step = STEPS.indexOf(degraded?.step);
  return { log: log?.up === false ? log : null, degraded: step < 0 ? null : degraded, step };
}

/** One word beside the title: the line is live, reduced, or the log is down. */
function Health({ store }) {
  const { log, degraded, step } = healthOf(store);
  if (store.line.value.state !== "open") return null;
  const words = log ? t("health_log") : degraded ? t("health_less", { step: step + 1, steps: STEPS.length }) : t("line_open");
  return html`
    <span class=${`health ${log ? "health--down" : degraded ? "health--less" : ""}`} title=${log || degraded ? undefined : t("health_full")}>
      <span class="health__dot" aria-hidden="true"></span>${words}
    </span>
  `;
}

/** What is wrong at the server, since when, what viewers notice, and what to do or not to fear. */
function Trouble({ store, wide }) {
  const { log, degraded } = healthOf(store);
  if (store.line.value.state !== "open") return null;
  const gap = t("gap"); // between sentences
  // It counts on each second: a screen reader is told once, without it.
  const timeSince = (ms) =>
    ms && html`<span class="num" aria-hidden="true">${t("health_since", { time: timeOfDay(ms), span: span(store.now.value - ms) })}${gap}</span>`;
  return html`
    ${log &&
    html`<div class="bar-notice">
      <p class="notice notice--bad notice--slim" role="alert">
        <${Icon} name="warn" />
        <span><span class="strong">${t("log_down")}</span>${gap}${timeSince(log.since)}${t("log_down_help")}</span>
      </p>
    </div>`}
    ${degraded &&
    (wide || !log) && // on a phone the worse one alone: the rundown needs the place
    html`<div class="bar-notice">
      <p class="notice notice--warn notice--slim" role="status">
        <${Icon} name="info" />
        <span>${t(`health_${degraded.step}`)}${gap}${timeSince(degraded.since)}${t("health_always")}</span>
      </p>
    </div>`}
  `;
}

/** When the line is lost or stopped: said across the screen until it is back. */
function Line({ store }) {
  const line = store.line.value;
  const was = useRef(line.state);
  useEffect(() => {
    if (was.current !== line.state) {
      if (line.state === "open" && was.current === "lost") say(t("line_open"));
      was.current = line.state;
    }
  }, [line.state]);
  if (line.state === "open") return null;
  if (line.state === "connecting") return html`<div class="bar-notice"><p class="notice" role="status">${t("line_connecting")}…</p></div>`;
  const stopped = line.state === "stopped";
  return html`
    <div class="bar-notice">
      <div class="notice notice--bad" role="alert">
        <${Icon} name="warn" />
        <p class="grow">
          <span class="strong">${t(stopped ? "line_gone" : "line_lost")}</span>${t("gap")}
          ${!stopped && line.at && html`<span class="num" aria-hidden="true">${t("line_lost_for", { span: span(store.now.value - line.at) })}${t("gap")}</span>`}
          ${!stopped ? t("line_lost_help") : line.reason ? t("sentences", { first: line.reason, second: t("line_gone_help") }) : t("line_gone_help")}
        </p>
        ${stopped && html`<${Button} small onClick=${() => location.reload()}>${t("line_reload")}<//>`}
      </div>
    </div>
  `;
}

function Help({ store, onClose }) {
  const cues = store.cues.value ?? [];
  const rows = [
    ["/", t("help_composer")],
    ["=", t("help_questions")],
    ["[ ]", t("help_tabs")],
    ["?", t("help_help")],
    ["Esc", t("help_esc")],
  ];
  return html`
    <${Dialog} title=${t("help")} onClose=${onClose}>
      <p class="muted small">${t("help_lead")}</p>
      <h3 class="help__title">${t("help_cues")}</h3>
      <ul class="help">
        ${cues.map(
          (cue) => html`<li key=${cue.id}><kbd class="kbd">${cue.shortcut}</kbd><span class="grow clip">${cue.title}</span><span class="muted small">${t(`kind_${cue.kind}`)}</span></li>`,
        )}
        <li><span class="row"><kbd class="kbd">Shift</kbd>+<kbd class="kbd">A</kbd></span><span class="grow">${t("help_stop")}</span></li>
      </ul>
      <h3 class="help__title">${t("help_general")}</h3>
      <ul class="help">
        ${rows.map(([key, words]) => html`<li key=${key}><span class="row">${key.split(" ").map((one) => html`<kbd key=${one} class="kbd">${one}</kbd>`)}</span><span class="grow">${words}</span></li>`)}
      </ul>
    <//>
  `;
}
