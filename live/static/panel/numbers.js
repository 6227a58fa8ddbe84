// The live numbers: four figures, and the chosen one over time.

import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { count, ratio, span, yuan } from "./format.js";
import { html, t } from "./ui.js";

const WHOLE_STEPS = [1, 2, 5].flatMap((n) => Array.from({ length: 10 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);
const STALE_MS = 8_000; // four polls missed

const FIGURES = [
  { name: "viewers", column: 1, words: "viewers", show: count },
  { name: "rate", column: 2, words: "comment_rate", show: ratio },
  { name: "claims", column: 3, words: "claims", show: count },
  { name: "sales_fen", column: 4, words: "sales", show: yuan },
];

export function Numbers({ store }) {
  const [chosen, choose] = useState(0);
  const numbers = store.numbers.value;
  const now = store.now.value;
  const age = store.numbersAt.value ? Date.now() - store.numbersAt.value : 0;
  const stale = now && age > STALE_MS;
  const viewers = store.data("presence")?.counts?.viewers ?? numbers?.viewers;
  const values = { ...numbers, viewers };
  const peak = Math.max(values.peak ?? 0, ...store.series.value.map((one) => one[1] ?? 0), viewers ?? 0);
  const held = store.of("benefit").reduce((sum, one) => sum + (one.counts?.held ?? 0), 0);
  const below = {
    viewers: t("peak", { n: count(peak) }),
    rate: t("per_minute", { n: count(numbers?.per_minute ?? 0) }),
    claims: t("claims_sub", { n: count(held) }),
    sales_fen: t("orders_joins_n", { n: count(numbers?.orders ?? 0), joins: count(numbers?.joins ?? 0) }),
  };
  return html`
    <section class="numbers" aria-label=${t("numbers")}>
      <div class="numbers__figures" role="radiogroup" aria-label=${t("numbers")}>
        ${FIGURES.map(
          (figure, index) => html`
            <button
              key=${figure.name}
              type="button"
              role="radio"
              class="figure"
              aria-checked=${String(index === chosen)}
              tabindex=${index === chosen ? 0 : -1}
              onClick=${() => choose(index)}
              onKeyDown=${(event) => {
                const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
                if (!step) return;
                event.preventDefault();
                const next = (index + step + FIGURES.length) % FIGURES.length;
                choose(next);
                event.currentTarget.parentElement.children[next].focus();
              }}
            >
              <span class="figure__label">${t(figure.words)}</span>
              <span class="figure__value num">${numbers || figure.name === "viewers" ? figure.show(values[figure.name]) : "–"}</span>
              <span class="figure__below num">${below[figure.name]}</span>
            </button>
          `,
        )}
      </div>
      <${Plot} store=${store} figure=${FIGURES[chosen]} />
      ${stale &&
      html`<p class="numbers__stale" role="status">
        <span class="badge badge--warn">${t("stale_numbers", { time: span(age) })}</span>
      </p>`}
    </section>
  `;
}

function Plot({ store, figure }) {
  const place = useRef(null);
  const plot = useRef(null);
  const series = store.series.value;
  const points = series.filter((one) => one[figure.column] !== null);
  const [theme, setTheme] = useState(0);

  useEffect(() => {
    const again = () => setTheme((n) => n + 1);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", again);
    const watch = new MutationObserver(again);
    watch.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => {
      dark.removeEventListener("change", again);
      watch.disconnect();
    };
  }, []);

  const data = () => [points.map((one) => one[0] / 1000), points.map((one) => one[figure.column] / (figure.name === "sales_fen" ? 100 : 1))];

  useEffect(() => {
    if (points.length < 2) return undefined;
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(name).trim();
    const box = place.current;
    const font = `11px ${colour("--font")}`;
    const axis = { stroke: colour("--ink-3"), font, ticks: { show: false }, gap: 4 };
    plot.current = new uPlot(
      {
        width: Math.max(120, box.clientWidth),
        height: Math.max(60, box.clientHeight),
        cursor: { show: false },
        legend: { show: false },
        padding: [6, 4, 0, 0],
        scales: { y: { range: (_, least, most) => [0, Math.max(1, most * 1.12)] } },
        axes: [
          { ...axis, size: 20, space: 70, grid: { show: false }, values: (_, ticks) => ticks.map(hourMinute).map((one, at, all) => (one === all[at - 1] ? "" : one)) },
          {
            ...axis,
            size: 44,
            space: 17,
            incrs: figure.name === "rate" ? undefined : WHOLE_STEPS,
            grid: { stroke: colour("--line"), width: 1 },
            values: (_, ticks) => ticks.map((n) => short(n)),
          },
        ],
        series: [
          {},
          { stroke: colour("--jujube-ink"), width: 2, fill: colour("--jujube-soft"), points: { show: false }, spanGaps: true },
        ],
      },
      data(),
      box,
    );
    const sizes = new ResizeObserver(() => {
      if (box.clientWidth && box.clientHeight) plot.current?.setSize({ width: box.clientWidth, height: box.clientHeight });
    });
    sizes.observe(box);
    return () => {
      sizes.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [figure.name, points.length >= 2, theme]);

  useEffect(() => {
    plot.current?.setData(data());
  }, [series]);

  const name = t(figure.words);
  const values = points.map((one) => one[figure.column]);
  const words = values.length
    ? t("plot_summary", { name, now: figure.show(values.at(-1)), max: figure.show(values.reduce((a, b) => Math.max(a, b), 0)) })
    : t("plot_empty");
  return html`
    <figure class="numbers__plot">
      <div class="numbers__canvas" role="img" aria-label=${t("sentences", { first: t("plot_of", { name }), second: words })} ref=${place}></div>
      ${points.length < 2 && html`<figcaption class="numbers__none">${t("plot_empty")}</figcaption>`}
    </figure>
  `;
}

const hourMinute = (s) =>
  new Intl.DateTimeFormat("zh-CN", {
    hour: "2-digit",
    minute: "2-digit",
    hour12: false,
    timeZone: document.body.dataset.timezone || undefined,
  }).format(s * 1000);

const short = (n) => (n >= 10_000 ? `${+(n / 10_000).toFixed(1)}w` : n >= 1000 ? `${+(n / 1000).toFixed(1)}k` : String(+n.toFixed(1)));

/** The answer of GET …/live in the panel's words. Sales are what was paid for goods and for plans. */
export function numbersOf(answer) {
  return {
    viewers: answer.viewers,
    peak: answer.viewers_peak,
    per_minute: answer.comments.minute,
    rate: answer.comments.minute / 60,
    claims: answer.claims,
    sales_fen: answer.sales.sales_fen + answer.joins.fees_fen,
    orders: answer.sales.paid,
    joins: answer.joins.paid,
  };
}
