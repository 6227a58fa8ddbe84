// The money desk: what waits for a person — odd payments, cases, parcels, approvals — and what is sold, and how.

import { useEffect, useRef, useState } from "preact/hooks";
import { get } from "./api.js";
import { Budgets } from "./budgets.js";
import { Campaigns } from "./campaigns.js";
import { Cases } from "./cases.js";
import { CouponRules } from "./coupons.js";
import { IncidentBar, IncidentButton, useIncident } from "./incident.js";
import { Payments, actsOf } from "./payments.js";
import { Plans } from "./plans.js";
import { Products } from "./products.js";
import { Sending } from "./sending.js";
import { Icon, Menu, html, t, useWide } from "./ui.js";

const PARTS = [
  { name: "payments", part: Payments, needs: "member.read" },
  { name: "cases", part: Cases, needs: "member.read" },
  { name: "sending", part: Sending, needs: "member.read" },
  { name: "products", part: Products, needs: null },
  { name: "plans", part: Plans, needs: null },
  { name: "coupons", part: CouponRules, needs: null },
  { name: "campaigns", part: Campaigns, needs: null },
  { name: "budgets", part: Budgets, needs: null },
];

export function Money({ me, tools }) {
  const wide = useWide();
  const may = (permission) => permission === null || me.permissions.includes(permission);
  const open = PARTS.filter((one) => may(one.needs));
  const fromHash = () => open.find((one) => `#${one.name}` === location.hash)?.name ?? open[0].name;
  const [chosen, setChosen] = useState(fromHash);
  const incident = useIncident();
  const waiting = useWaiting(may);
  useEffect(() => {
    const follow = () => setChosen(fromHash());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const nav = useRef(null);
  useEffect(() => nav.current.querySelector('[aria-current="page"]')?.scrollIntoView({ block: "nearest", inline: "center" }), [chosen]);
  const { part: Part } = open.find((one) => one.name === chosen);
  return html`
    <div class="screen screen--home">
      <header class="top">
        <a class="icon-button" href="/panel" aria-label=${t("back_to_list")} title=${t("back_to_list")}><${Icon} name="back" /></a>
        <div class="top__title"><h1>${t("money_desk")}</h1></div>
        ${may("incident.run") && html`<${IncidentButton} incident=${incident} />`}
        <${Menu} wide=${wide}>${tools}<//>
      </header>
      <${IncidentBar} incident=${incident} can=${may("incident.run")} />
      <nav class="money__nav" ref=${nav} aria-label=${t("money_desk")}>
        ${open.map(
          ({ name }) => html`<a key=${name} class="money__tab" href=${`#${name}`} aria-current=${name === chosen ? "page" : undefined}>
            ${t(`money_${name}`)}${waiting[name] > 0 && html`<span class="money__count num" aria-label=${t("money_waiting", { n: waiting[name] })}>${waiting[name] > 99 ? "99+" : waiting[name]}</span>`}
          </a>`,
        )}
      </nav>
      <main class="money" id="main" key=${chosen}><${Part} me=${me} may=${may} /></main>
    </div>
  `;
}

const WAITING_MS = 20_000;
const QUEUES = {
  payments: "/v1/odd-payments",
  cases: "/v1/cases?state=open&limit=100",
  budgets: "/v1/approvals?state=asked&limit=100",
};

/** How many wait in each queue, so that none is forgotten behind another tab. */
function useWaiting(may) {
  const [counts, setCounts] = useState({});
  useEffect(() => {
    let gone = false;
    const read = async () => {
      for (const [name, path] of Object.entries(QUEUES)) {
        if (name !== "budgets" && !may("member.read")) continue;
        try {
          const answer = await get(path);
          const open = name === "payments" ? answer.items.filter((one) => actsOf(one).length > 0) : answer.items;
          if (!gone) setCounts((old) => ({ ...old, [name]: open.length }));
        } catch {
          // the queue's own page says what is wrong
        }
      }
    };
    read();
    const timer = setInterval(() => document.visibilityState === "visible" && read(), WAITING_MS);
    return () => {
      gone = true;
      clearInterval(timer);
    };
  }, []);
  return counts;
}
