// The viewer's page: joins the wire to the signals, and draws the place the show is in.

import { render } from "preact";
import { useEffect } from "preact/hooks";

import { ShowSocket } from "../socket.js";
import { carryOn, setConnection } from "./actions.js";
import { AddressSheet } from "./addresses.js";
import { get, useBearer } from "./api.js";
import { BuySheet } from "./buy.js";
import { CaseSheet, readCases } from "./cases.js";
import { Deck } from "./deck.js";
import { Grain, Icon, classes, desk, html } from "./dom.js";
import { count, dateText, shortTime, toMs } from "./format.js";
import { Hearts } from "./hearts.js";
import { GiftSheet } from "./gifts.js";
import { JoinSheet, afterTrial } from "./join.js";
import { MineSheet, openMine, readMine } from "./mine.js";
import { LeaveSheet } from "./leave.js";
import { FailedSheet, OrderSheet } from "./orders.js";
import { Door, Ended, Own, Shut, Waiting } from "./places.js";
import { Player, shape } from "./player.js";
import { CheckPage, ReceiptSheet } from "./receipt.js";
import { Toasts, openSheet } from "./sheet.js";
import { ShelfSheet } from "./shelf.js";
import { SignInSheet } from "./sign_in.js";
import {
  announcement,
  applyStates,
  applyMuted,
  applyWelcome,
  applySeats,
  applyYou,
  boot,
  card,
  clock,
  degraded,
  incident,
  isMember,
  isPlan,
  known,
  link,
  logDown,
  missed,
  offers,
  onAir,
  orderNews,
  refusedAt,
  seats,
  sheet,
  startTicking,
  status,
  tick,
  toast,
  viewers,
  won,
  you,
} from "./state.js";
import { Comments, Composer, addComments, hideComment, replaceComments } from "./talk.js";
import { Ticker, tell, tellRecent } from "./ticker.js";
import { t } from "./words.js";

const BACK_SHOWN_MS = 2_500; // how long “connected again” stands
const STOPPED = { 4501: "signed_out", 4502: "banned", 4503: "replaced", 4504: "protocol", 4507: "protocol", 4508: "members_only" };

// — the wire —

const socket = new ShowSocket(
  boot.show?.id ?? "",
  {
    welcome(message, fresh) {
      applyWelcome(message);
      startTicking();
      if (fresh) {
        replaceComments(message.comments ?? []);
        queueMicrotask(() => tellRecent(message.ticker ?? [])); // the states of the same frame name what was won
      }
      if (isMember.value) {
        carryOn();
        readMine();
      }
    },
    event(event) {
      if (event.type === "comment.posted") addComments([event]);
      else if (event.type === "comment.hidden") hideComment(event.comment);
      else {
        tell(event);
        if (event.type === "show.ended") status.value = "ended";
        if (event.type === "offer.sold_out" || event.type === "offer.closed") bump(event);
      }
    },
    states: applyStates,
    personal,
    status: onLink,
    settled() {}, // answered after a reload: what it did is in the snapshot
  },
  { token: boot.preview?.token ?? null, clock, store: storage() },
);
if (boot.show) setConnection(socket);

function storage() {
  try {
    return boot.preview ? null : sessionStorage;
  } catch {
    return null;
  }
}

/** What closed under an open sheet is said once. */
function bump(event) {
  if (sheet.value?.name === "buy" && sheet.value.offer === event.offer) toast(t(event.type === "offer.sold_out" ? "refused.sold_out" : "refused.closed"));
}

let turns = 0; // an order can be told of twice in the same state

function personal(message) {
  switch (message.type) {
    case "you": {
      const before = you.value;
      applyYou(message.data);
      applySeats(message.data.seats);
      if (message.data.kind === "plan" && before.kind !== "plan" && known.value) welcomeMember(before, message.data);
      if (isMember.value) {
        carryOn();
        readMine();
      }
      break;
    }
    case "muted":
      applyMuted(message.until);
      break;
    case "benefit.won":
      won.value = { ...won.value, [message.benefit]: { rank: message.rank, of: message.of } };
      seats.value = without(seats.value, message.benefit);
      toast(t("seats.won", { rank: message.rank }), "ok");
      break;
    case "seat.held":
      seats.value = { ...seats.value, [message.benefit]: { until: toMs(message.until) } };
      toast(t("seats.held"), "ok");
      break;
    case "seat.lapsed":
      seats.value = without(seats.value, message.benefit);
      toast(t("seats.lapsed"));
      break;
    case "benefit.missed":
      seats.value = without(seats.value, message.benefit);
      missed.value = message;
      toast(t(message.refund_until ? "seats.missed.late" : "seats.missed"));
      break;
    case "order.changed": {
      const old = orderNews.value[message.order]?.state;
      orderNews.value = { ...orderNews.value, [message.order]: { ...orderNews.value[message.order], ...message, turn: (turns += 1) } };
      if (message.state === "paid" && old !== "paid" && message.kind !== "plan") toast(t("order.toast.paid"), "ok");
      else if (message.state === "expired") toast(t("order.toast.expired"));
      else if (message.state === "fulfilled" && old !== "fulfilled") toast(t("order.toast.sent"), "ok");
      else if (message.state === "refunded" && old !== "refunded") toast(t("order.refund.done"), "ok");
      break;
    }
    case "case.changed":
      readCases();
      toast(t("case.toast"), message.state === "settled" ? "ok" : "");
      break;
    case "points.changed":
      if (message.amount > 0) toast(t("points.got", { n: message.amount }), "ok");
      break;
    case "notice":
      if (message.order && message.hold_until) {
        orderNews.value = { ...orderNews.value, [message.order]: { ...orderNews.value[message.order], order: message.order, hold_until: toMs(message.hold_until) } };
        message = { ...message, time: shortTime(message.hold_until) };
      }
      toast(t(`notice.${message.code}`) === `notice.${message.code}` ? message.text : t(`notice.${message.code}`, message));
      break;
    default: // a newer server may say more than this page knows
  }
}

function without(object, name) {
  const rest = { ...object };
  delete rest[name];
  return rest;
}

function welcomeMember(before, now) {
  if (now.plan?.grace) toast(t("me.grace", { date: dateText(now.plan.ends_at) }));
  else toast(t(now.plan?.trial ? "member.trial" : "member.now", { name: now.plan?.name ?? "" }), "ok");
  if (sheet.value?.name === "join") sheet.value = null;
}

function onLink(name, detail) {
  link.value = { name, ...detail };
  document.documentElement.dataset.link = name;
  if (name === "open" && detail.again) {
    link.value = { name: "back", fresh: detail.fresh };
    setTimeout(() => {
      if (link.value.name === "back") link.value = { name: "open" };
    }, BACK_SHOWN_MS);
  }
  if (name === "stopped") stopped(detail.code);
}

/** A final answer. The card is read anew: it says whether the show has ended, and nothing it may not. */
async function stopped(code) {
  if (code === 4506) status.value = "ended";
  else if (STOPPED[code]) refusedAt.value = STOPPED[code] === "protocol" ? "protocol" : STOPPED[code];
  known.value = true;
  startTicking();
  try {
    card.value = { ...card.value, ...(await get(`/v1/shows/${encodeURIComponent(boot.show.id)}`)) };
    const me = await get("/v1/me");
    applyYou({ ...you.value, ...me, id: you.value.id });
    readMine();
  } catch {
    // a guest, or no network: the page's own card stands
  }
}

// — the page —

function Top() {
  const { title, room } = card.value;
  const name = room?.host || room?.title || "";
  return html`<header class="top">
    <div class="top__who">
      <span class="avatar" aria-hidden="true">${[...(name || title || "·")][0]}</span>
      <div class="top__text">
        <h1 class="top__title clip">${title}</h1>
        <p class="top__host clip">${name}</p>
      </div>
    </div>
    <div class="top__facts">
      ${status.value === "live" && html`<span class="badge badge--live">${t("live")}</span>`}
      ${status.value === "ending" && html`<span class="badge badge--warn">${t("ending")}</span>`}
      <span class=${classes("top__viewers num", degraded.value === "presence" && "muted")} aria-label=${t(degraded.value === "presence" ? "viewers.slow" : "viewers", { n: viewers.value ?? 0 })}>
        <${Icon} name="eye" />${viewers.value === null ? "–" : count(viewers.value)}
      </span>
    </div>
  </header>`;
}

function LinkBanner() {
  const { name, offline, retry_at, fresh, again } = link.value;
  if (name === "back") return html`<p class="link-banner link-banner--back" role="status"><${Icon} name="check" />${t(fresh ? "link.back.fresh" : "link.back")}</p>`;
  if (name === "lost" || (name === "connecting" && again)) {
    const seconds = retry_at ? Math.max(0, Math.ceil((retry_at - tick.value) / 1000)) : 0;
    return html`<p class="link-banner" role="status">
      <span class="link-banner__grain" aria-hidden="true"></span>
      ${offline ? t("link.offline") : t("link.lost")}
      ${name === "lost" && !offline && seconds > 1 && html`<span class="num" aria-hidden="true">${t("link.retry", { n: seconds, seconds })}</span>`}
    </p>`;
  }
  return null;
}

/** The line stands, but the server cannot read the show's log: said calmly, nothing is locked. */
function LogBanner() {
  if (!logDown.value || !["open", "back"].includes(link.value.name)) return null;
  return html`<p class="link-banner link-banner--calm" role="status"><span class="link-banner__grain" aria-hidden="true"></span>${t("log.down")}</p>`;
}

/** Money stands still: why, and that nothing one has is lost. */
function IncidentBanner() {
  if (!incident.value) return null;
  return html`<div class="incident" role="alert">
    <${Icon} name="warn" />
    <p><strong>${t("incident.title", { reason: incident.value.reason })}</strong><br />${t("incident.safe")}</p>
  </div>`;
}

function Announcement() {
  if (!announcement.value) return null;
  return html`<p class="announcement" role="status"><${Icon} name="horn" /><span>${announcement.value}</span></p>`;
}

function Bar() {
  return html`<${Composer}>
    <button type="button" class="round round--shelf" onClick=${() => openSheet("shelf")} aria-label=${t("shelf.open", { n: offers.value.length })}>
      <${Icon} name="bag" />${offers.value.length > 0 && html`<span class="round__count num">${offers.value.length}</span>`}
    </button>
    <button type="button" class=${classes("round round--me", isPlan.value && "round--plan")} onClick=${() => openMine("orders")} aria-label=${t("mine.open")}>
      ${isPlan.value ? html`<${Grain} size="24" />` : html`<${Icon} name="person" />`}
    </button>
    <${Hearts} />
  <//>`;
}

function Stage() {
  useEffect(() => followKeyboard(), []);
  return html`<div class="show" data-shape=${shape.value}>
    <div class="stage">
      <${Player} />
      <${Top} />
      <div class="stage__notes">
        <${LinkBanner} />
        <${LogBanner} />
        <${IncidentBanner} />
        <${Announcement} />
        <${Ticker} />
      </div>
    </div>
    <div class="side">
      <${Comments} />
      <${Deck} />
      <${Bar} />
    </div>
  </div>`;
}

/** The keyboard of a phone covers the page: what is below is lifted by its height. */
function followKeyboard() {
  const view = window.visualViewport;
  if (!view) return undefined;
  const lift = () => {
    const hidden = desk.matches ? 0 : Math.max(0, window.innerHeight - view.height - view.offsetTop);
    document.documentElement.style.setProperty("--keyboard", `${Math.round(hidden)}px`);
  };
  view.addEventListener("resize", lift);
  view.addEventListener("scroll", lift);
  return () => {
    view.removeEventListener("resize", lift);
    view.removeEventListener("scroll", lift);
  };
}

const SHEETS = { "sign-in": SignInSheet, join: JoinSheet, buy: BuySheet, shelf: ShelfSheet, mine: MineSheet, gift: GiftSheet, order: OrderSheet, failed: FailedSheet, address: AddressSheet, case: CaseSheet, receipt: ReceiptSheet, leave: LeaveSheet };

function Place() {
  if (location.pathname === "/receipt") return html`<${CheckPage} />`;
  if (!boot.show) return html`<${Own} />`;
  if (status.value === "ended") return html`<${Ended} />`;
  if (refusedAt.value === "members_only") return html`<${Door} />`;
  if (refusedAt.value) return html`<${Shut} />`;
  if (onAir.value) return html`<${Stage} />`;
  return html`<${Waiting} />`;
}

function Page() {
  const Open = sheet.value && SHEETS[sheet.value.name];
  const place = onAir.value && !refusedAt.value ? "stage" : "place";
  useEffect(() => {
    document.body.dataset.place = place;
  }, [place]);
  // A trial or a plan opens the members' door: go in.
  useEffect(() => {
    if (refusedAt.value === "members_only" && (isPlan.value || afterTrial.value)) {
      refusedAt.value = null;
      socket.restart(null);
    }
  }, [isPlan.value, afterTrial.value]);
  return html`<main id="main" class="page" data-behind-sheet>
      ${boot.preview && html`<p class="preview-mark">${t(`preview.${boot.preview.as}`)}</p>`}
      ${place === "place" && refusedAt.value === null && status.value !== "ended" && html`<div class="place__notes"><${LinkBanner} /><${LogBanner} /><${IncidentBanner} /><${Announcement} /></div>`}
      <${Place} />
    </main>
    ${Open && html`<${Open} key=${sheet.value.name} />`}
    <${Toasts} />`;
}

/** The page of one's own: no show, no socket. */
async function own() {
  if (location.pathname === "/receipt") return; // anybody's page: it asks nobody who they are
  try {
    const me = await get("/v1/me");
    applyYou({ ...you.value, ...me, id: you.value.id });
  } catch {
    known.value = true; // a guest: the page asks to sign in
  }
  if (isMember.value && sheet.value === null) openMine(location.pathname.endsWith("benefits") ? "benefits" : "orders");
}

/** Back from the payment page: say how the order stands, by what the store knows. That a payment failed is taken
 *  from the address, as nothing follows from it; that one succeeded is not. */
async function returned() {
  const query = new URLSearchParams(location.search);
  const order = query.get("order");
  if (!order) return;
  const failed = query.get("payment") === "failed";
  query.delete("order");
  query.delete("payment");
  history.replaceState(null, "", `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`);
  for (let turn = 0; turn < 5; turn += 1) {
    try {
      const found = await get(`/v1/me/orders/${encodeURIComponent(order)}`);
      orderNews.value = { ...orderNews.value, [order]: { ...found, order } };
      if (found.state === "paid") {
        toast(t(found.kind === "plan" ? "order.toast.plan" : "order.toast.paid"), "ok");
        return;
      }
      if (failed || found.state !== "placed") {
        if (failed && found.hold_until > tick.value && sheet.value === null) openSheet("failed", { order: found });
        else if (failed) toast(t(found.hold_until > tick.value ? "order.toast.failed" : "order.failed"), "bad");
        return;
      }
      if (turn === 0) toast(t("order.toast.checking"));
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * 2 ** turn)); // the provider's word may come after the person
  }
  toast(t("order.toast.unpaid"));
}

if (boot.preview?.token) useBearer(boot.preview.token);
render(html`<${Page} />`, document.getElementById("app"));
startTicking();
if (!boot.show) own().then(returned);
else if (status.value === "ended") stopped(4506);
else socket.start();
if (boot.show && !boot.preview) returned();
