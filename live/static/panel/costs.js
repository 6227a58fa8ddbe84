// The cost meter: what this show's benefits may cost, what is promised and what is spent, and how it came to that.

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { get } from "./api.js";
import { Approvals } from "./budgets.js";
import { money, yuan } from "./format.js";
import { Problem, html, t } from "./ui.js";

const READ_MS = 5_000;
const SERIES_MAX = 1_080; // 90 minutes at one sample in 5 s
const KINDS = ["benefit", "coupon", "price", "points", "freight"];

/** Read now and then, and taken from the show's line where it tells; the past is kept for the plot. */
export function useCosts(store) {
  const show = store.show.value.id;
  const [read, setRead] = useState({ costs: null, failure: null });
  const [series, setSeries] = useState([]);
  const told = store.data("costs");
  const ask = async () => {
    try {
      setRead({ costs: await get(`/v1/shows/${show}/costs`), failure: null });
    } catch (failure) {
      setRead((old) => ({ ...old, failure }));
    }
  };
  useEffect(() => {
    ask();
    const timer = setInterval(() => document.visibilityState === "visible" && ask(), READ_MS);
    return () => clearInterval(timer);
  }, [show]);
  const costs = told?.by ? told : read.costs;
  const latest = useRef(null);
  latest.current = costs;
  const sample = () => {
    const now = latest.current;
    if (now) setSeries((old) => [...old, [Date.now() / 1000, now.committed_fen / 100, now.spent_fen / 100]].slice(-SERIES_MAX));
  };
  useEffect(sample, [costs]); // what has changed shows at once
  useEffect(() => {
    const timer = setInterval(sample, READ_MS);
    return () => clearInterval(timer);
  }, []);
  return { costs, failure: costs ? null : read.failure, read: ask, series };
}

export function Costs({ store, me }) {
  const { costs, failure, read, series } = useCosts(store);
  const show = store.show.value.id;
  return html`
    <div class="costs">
      <section class="pane" aria-labelledby="costs-title">
        <header class="pane__head"><h2 class="pane__title" id="costs-title">${t("costs")}</h2><span class="grow"></span>
          ${costs?.rebate_permille != null && html`<span class="small muted num">${t("costs_rebate", { percent: (costs.rebate_permille / 10).toFixed(1) })}</span>`}</header>
        <div class="pane__body costs__body">
          <${Problem} failure=${failure} onRetry=${read} />
          ${!costs && !failure && html`<p class="muted small" role="status">${t("loading")}</p>`}
          ${costs && html`<${Meter} costs=${costs} /><${Plot} series=${series} /><${Kinds} costs=${costs} />`}
        </div>
      </section>
      <${Approvals} me=${me} show=${show} onDone=${read} />
    </div>
  `;
}

/** One bar: spent in full, promised in stripes, and what is left of the budget. */
export function Meter({ costs }) {
  const whole = Math.max(costs.budget_fen ?? 0, costs.committed_fen, costs.spent_fen, 1);
  const over = costs.budget_fen !== null && costs.committed_fen > costs.budget_fen;
  const said =
    costs.budget_fen === null
      ? t("costs_said_free", { committed: money(costs.committed_fen), spent: money(costs.spent_fen) })
      : t("costs_said", { committed: money(costs.committed_fen), spent: money(costs.spent_fen), left: money(costs.left_fen), budget: money(costs.budget_fen) });
  return html`
    <div class=${`cost-meter ${over ? "cost-meter--over" : ""}`} role="img" aria-label=${said}>
      <div class="cost-meter__track" style=${{ "--spent": costs.spent_fen / whole, "--committed": Math.max(costs.committed_fen, costs.spent_fen) / whole }}></div>
    </div>
    <dl class="cost-key num">
      <div class="cost-key__spent"><dt>${t("costs_spent")}</dt><dd>${yuan(costs.spent_fen)}</dd></div>
      <div class="cost-key__committed"><dt>${t("costs_committed")}</dt><dd>${yuan(costs.committed_fen)}</dd></div>
      <div class="cost-key__left"><dt>${t("costs_left")}</dt><dd>${costs.left_fen === null ? t("costs_no_limit") : yuan(costs.left_fen)}</dd></div>
    </dl>
    ${over && html`<p class="notice notice--bad notice--slim" role="status">${t("costs_over", { sum: money(costs.committed_fen - costs.budget_fen) })}</p>`}
    <p class="small muted num">
      ${costs.budget_fen !== null && html`${t("costs_budget", { sum: money(costs.budget_fen) })} · `}
      ${t("costs_came", { goods: money(costs.goods_fen), fees: money(costs.fees_fen) })} ·
      ${costs.margin_fen === null || costs.margin_fen === undefined ? t("costs_margin_unknown") : t("costs_margin", { sum: money(costs.margin_fen) })}
    </p>
  `;
}

function Kinds({ costs }) {
  const rows = [...(costs.by ?? [])].sort((a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind) || b.committed_fen - a.committed_fen);
  if (!rows.length) return html`<p class="muted small">${t("costs_none")}</p>`;
  return html`
    <div class="scroll-x"><table class="table costs__table">
      <thead><tr><th scope="col">${t("costs_by")}</th><th scope="col" class="right">${t("costs_committed")}</th><th scope="col" class="right">${t("costs_spent")}</th></tr></thead>
      <tbody>
        ${rows.map(
          (one) => html`<tr key=${`${one.kind} ${one.id}`} class=${one.counted === false ? "costs__aside" : ""}>
            <td><span class=${`costs__kind costs__kind--${one.kind}`}>${t(`cost_${one.kind}`)}</span>${one.title && html` <span class="small">${one.title}</span>`}</td>
            <td class="right">${yuan(one.committed_fen)}</td>
            <td class="right">${yuan(one.spent_fen)}</td>
          </tr>`,
        )}
      </tbody>
    </table></div>
    ${rows.some((one) => one.counted === false) && html`<p class="tiny muted">${t("costs_aside")}</p>`}
  `;
}

function Plot({ series }) {
  const place = useRef(null);
  const plot = useRef(null);
  const enough = series.length >= 2;
  const data = () => [0, 1, 2].map((column) => series.map((one) => one[column]));
  useEffect(() => {
    if (!enough) return undefined;
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(name).trim();
    const box = place.current;
    const axis = { stroke: colour("--ink-3"), font: `11px ${colour("--font")}`, ticks: { show: false }, gap: 4 };
    plot.current = new uPlot(
      {
        width: Math.max(120, box.clientWidth),
        height: Math.max(60, box.clientHeight),
        cursor: { show: false },
        legend: { show: false },
        padding: [6, 4, 0, 0],
        scales: { y: { range: (_, least, most) => [0, Math.max(1, most * 1.12)] } },
        axes: [
          { ...axis, size: 4, grid: { show: false }, values: (_, ticks) => ticks.map(() => "") },
          { ...axis, size: 44, space: 22, grid: { stroke: colour("--line"), width: 1 } },
        ],
        series: [
          {},
          { stroke: colour("--husk"), width: 2, fill: colour("--husk-soft"), points: { show: false } },
          { stroke: colour("--jujube-ink"), width: 2, fill: colour("--jujube-soft"), points: { show: false } },
        ],
      },
      data(),
      box,
    );
    const sizes = new ResizeObserver(() => box.clientWidth && plot.current?.setSize({ width: box.clientWidth, height: box.clientHeight }));
    sizes.observe(box);
    return () => {
      sizes.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [enough]);
  useEffect(() => {
    plot.current?.setData(data());
  }, [series.length]);
  if (!enough) return null;
  return html`<div class="costs__plot" role="img" aria-label=${t("costs_plot")} ref=${place}></div>`;
}
