// After the end: what the show brought, and what was learnt of its members, with the evidence.

import { useEffect, useState } from "preact/hooks";
import { get, items } from "./api.js";
import { count, day, span, yuan } from "./format.js";
import { Tally } from "./desk.js";
import { Button, Icon, Problem, html, known, t } from "./ui.js";

const AGAIN_MS = 2_000; // the end card is built by a job within seconds
const TAGS_AGAIN_MS = 5_000; // tags within a minute
const TRIES_MAX = 45;

/** Read an address until `ready` says so; shows its failure and stops asking after a while. */
function useReading(path, ready, everyMs) {
  const [state, setState] = useState({ answer: null, failure: null, tries: 0 });
  useEffect(() => {
    let stop = false;
    let timer = null;
    let tries = 0;
    const read = async () => {
      try {
        const answer = await get(path);
        if (stop) return;
        setState({ answer, failure: null, tries });
        if (!ready(answer) && (tries += 1) < TRIES_MAX) timer = setTimeout(read, everyMs);
      } catch (failure) {
        if (stop) return;
        const early = failure.status === 404 && tries < TRIES_MAX; // not built yet
        setState((old) => ({ ...old, failure: early ? null : failure, tries }));
        if (early || failure.unsure) {
          tries += 1;
          if (tries < TRIES_MAX) timer = setTimeout(read, everyMs);
        }
      }
    };
    read();
    return () => {
      stop = true;
      clearTimeout(timer);
    };
  }, [path, state.turn]);
  return { ...state, again: () => setState((old) => ({ ...old, failure: null, turn: (old.turn ?? 0) + 1 })) };
}

export function EndCard({ store }) {
  const show = store.show.value;
  const { answer: report, failure, again } = useReading(`/v1/shows/${show.id}/report`, Boolean, AGAIN_MS);
  return html`
    <section class="pane report" aria-labelledby="report-title">
      <header class="pane__head">
        <h2 class="pane__title" id="report-title">${t("end_card")}</h2>
        <span class="grow"></span>
        ${report && html`<${Button} small kind="quiet" onClick=${() => print()}>${t("report_print")}<//>`}
      </header>
      <div class="report__body">
        <${Problem} failure=${failure} onRetry=${again} />
        ${!report && !failure && html`<p class="empty" role="status">${t("end_building")}</p>`}
        ${report && html`<${Report} report=${report} />`}
      </div>
    </section>
  `;
}

function Report({ report }) {
  const { gifts, questions, polls, sales, joins } = report;
  const given = gifts.reduce((sum, one) => sum + one.claimed, 0);
  const length = report.started_at && report.ended_at ? `${t("report_length")} ${span(report.ended_at - report.started_at)}` : null;
  const figures = [
    ["report_viewers", count(report.viewers), `${t("report_peak")} ${count(report.viewers_peak)}`],
    ["report_joins", count(joins.paid), t("report_joins_sub", { n: count(joins.trials) })],
    ["report_sales", yuan(sales.sales_fen + joins.fees_fen), t("report_sales_sub", { goods: yuan(sales.sales_fen), fees: yuan(joins.fees_fen) })],
    ["report_paid", count(sales.paid), `${t("report_placed", { n: count(sales.placed) })} · ${t("report_refunded", { sum: yuan(sales.refunded_fen) })}`],
    ["report_gifts", count(given), t("report_cost_total", { cost: yuan(report.gifts_cost_fen) })],
    ["report_comments", count(report.comments), length],
  ];
  return html`
    <dl class="report__figures">
      ${figures.map(
        ([name, value, below]) => html`<div key=${name} class="stat">
          <dt class="stat__label">${t(name)}</dt>
          <dd class="stat__value">${value}</dd>
          ${below && html`<dd class="small muted num">${below}</dd>`}
        </div>`,
      )}
    </dl>
    <div class="report__parts">
      <section aria-labelledby="gifts-title">
        <h3 class="report__title" id="gifts-title">${t("report_gifts")}</h3>
        ${gifts.length === 0
          ? html`<p class="muted small">${t("report_none_gifts")}</p>`
          : html`<div class="scroll-x"><table class="table">
              <thead>
                <tr><th scope="col">${t("report_gift")}</th><th scope="col" class="right">${t("report_given")}</th>
                <th scope="col" class="right">${t("report_unit")}</th><th scope="col" class="right">${t("report_cost")}</th></tr>
              </thead>
              <tbody>
                ${gifts.map(
                  (one, index) => html`<tr key=${index}>
                    <td>${one.title}</td>
                    <td class="right">${count(one.claimed)} / ${count(one.quota)}</td>
                    <td class="right">${yuan(one.value_fen)}</td>
                    <td class="right">${yuan(one.cost_fen)}</td>
                  </tr>`,
                )}
              </tbody>
            </table></div>`}
      </section>
      ${report.first_sold?.length > 0 && html`<section aria-labelledby="first-title">
        <h3 class="report__title" id="first-title">${t("report_first")}</h3>
        <ul class="questions">
          ${report.first_sold.map(
            (one) => html`<li key=${one.product} class="row">
              <span class="grow">${one.name}</span>
              <span class="small muted num">${t("report_first_line", { buyers: count(one.buyers), members: count(one.members) })}</span>
            </li>`,
          )}
        </ul>
      </section>`}
      <section aria-labelledby="questions-title">
        <h3 class="report__title" id="questions-title">${t("report_questions")}</h3>
        ${questions.length === 0 && html`<p class="muted small">${t("report_none_questions")}</p>`}
        <ol class="questions">
          ${questions.map(
            (one, index) => html`<li key=${index} class="row">
              <span class="grow">${one.text}
                ${one.alike?.length ? html`<span class="small muted questions__alike">${one.alike.join(" · ")}</span>` : null}</span>
              <span class="badge badge--info num">${t("report_asked", { n: count(one.askers) })}</span>
            </li>`,
          )}
        </ol>
      </section>
      <section aria-labelledby="polls-title">
        <h3 class="report__title" id="polls-title">${t("report_polls")}</h3>
        ${polls.length === 0 && html`<p class="muted small">${t("report_none_polls")}</p>`}
        ${polls.map(
          (poll, index) => html`<article key=${index} class="poll">
            <p class="row"><span class="strong grow">${poll.question}</span><span class="small muted num">${t("voters_n", { n: count(poll.voters) })}</span></p>
            <${Tally} choices=${poll.choices} counts=${Object.fromEntries(poll.tally.map((n, at) => [String(at), n]))} />
          </article>`,
        )}
      </section>
    </div>
  `;
}

const RULES = { strong: "rule_strong", watched: "rule_watched", few: "rule_few" };

/** The rule's words in the page's language; the server's own for a rule not known here. */
function ruleWords(tag) {
  const match = /^interest\.(\w+)\./.exec(tag.rule ?? "");
  const key = match && RULES[match[1]];
  return key && known(key) ? t(key) : (tag.rule_text ?? tag.rule ?? "");
}

export function Tags({ store }) {
  const show = store.show.value.id;
  const [more, setMore] = useState({ items: [], next: null, failure: null, busy: false });
  const { answer, failure, again } = useReading(`/v1/shows/${show}/tags`, (one) => items(one).length > 0, TAGS_AGAIN_MS);
  const [unfolded, unfold] = useState(null);
  const tags = [...items(answer), ...more.items];
  const next = more.items.length ? more.next : answer?.next;
  const readMore = async () => {
    setMore({ ...more, busy: true, failure: null });
    try {
      const page = await get(`/v1/shows/${show}/tags?cursor=${encodeURIComponent(next)}`);
      setMore({ items: [...more.items, ...items(page)], next: page.next, failure: null, busy: false });
    } catch (error) {
      setMore({ ...more, failure: error, busy: false });
    }
  };
  return html`
    <section class="pane tags" aria-labelledby="tags-title">
      <header class="pane__head">
        <h2 class="pane__title" id="tags-title">${t("tags")}</h2>
        <span class="muted small grow clip">${t("tags_lead")}</span>
      </header>
      <div class="pane__body">
        <${Problem} failure=${failure} onRetry=${again} />
        ${!tags.length && !failure && html`<p class="empty" role="status">${answer ? t("tags_empty") : t("loading")}</p>`}
        <ul class="tags__list">
          ${people(tags).map(
            ([member, own]) => html`
              <li key=${member} class="person">
                <p class="row">
                  <span class="avatar" aria-hidden="true">${Array.from(memberName(own[0]))[0]}</span>
                  <span class="strong clip">${memberName(own[0])}</span>
                </p>
                <ul>
                  ${own.map(
                    (tag) => html`<${Tag} key=${tag.id} tag=${tag} open=${unfolded === tag.id} onToggle=${() => unfold(unfolded === tag.id ? null : tag.id)} />`,
                  )}
                </ul>
              </li>
            `,
          )}
        </ul>
        <${Problem} failure=${more.failure} onRetry=${readMore} />
        ${next && html`<${Button} small block busy=${more.busy} onClick=${readMore}>${t("page_more")}<//>`}
      </div>
    </section>
  `;
}

const memberName = (tag) => tag.member_name ?? `${t("a_member")} ${String(tag.member).slice(-4)}`;

/** Tags by member, in the order in which members first appear. */
function people(tags) {
  const found = new Map();
  for (const tag of tags) found.set(tag.member, [...(found.get(tag.member) ?? []), tag]);
  return [...found];
}

function Tag({ tag, open, onToggle }) {
  const strong = tag.strength === "strong";
  return html`
    <li class="tag">
      <button type="button" class="tag__head" aria-expanded=${String(open)} onClick=${onToggle}>
        <span class="grow tag__name clip">${tag.name}</span>
        <span class="num strong" title=${t("tags_score")}><span class="visually-hidden">${t("tags_score")} </span>${tag.score.toFixed(1)}</span>
        <span class=${`badge ${strong ? "badge--ok" : ""}`} title=${strong ? undefined : t("tags_weak_help")}>${t(strong ? "tags_strong" : "tags_weak")}</span>
        <${Icon} name=${open ? "up" : "down"} />
      </button>
      ${open &&
      html`<div class="tag__body">
        <p class="small"><span class="strong">${t("named", { what: t("tags_rule"), name: "" })}</span>${ruleWords(tag)}</p>
        ${!strong && html`<p class="small muted">${t("tags_weak_help")}</p>`}
        <p class="small"><span class="strong">${t("named", { what: t("tags_evidence"), name: "" })}</span>${t("tags_evidence_n", { n: count(tag.events) })}</p>
        <ul class="evidence small">
          ${acts(tag.evidence).map(
            (one) => html`<li key=${one.event} class="row">
              <time class="num muted">${day(one.at)}</time>
              <span class="grow">${one.words}</span>
              <span class="num muted">+${one.weight.toFixed(1)}</span>
            </li>`,
          )}
        </ul>
      </div>`}
    </li>
  `;
}

/** Records of one act (parts of one watching, an order and its payment) as one line: they weigh once. */
function acts(evidence) {
  const found = new Map();
  for (const record of evidence) found.set(record.event, [...(found.get(record.event) ?? []), record]);
  return [...found].map(([event, records]) => {
    const last = records.find((one) => one.kind === "paid") ?? records[0];
    const value = last.kind === "watch" ? span(records.reduce((sum, one) => sum + one.value, 0)) : last.value;
    const words = known(`ev_${last.kind}`) ? t(`ev_${last.kind}`, { value }) : last.kind;
    return { event, at: records[0].at, weight: last.weight, words: last.text ? t("named", { what: words, name: last.text }) : words };
  });
}
