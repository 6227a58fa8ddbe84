// The list of rooms and their shows, and the forms that make new ones.

import { useEffect, useState } from "preact/hooks";
import { Failure, get, items, patch, post } from "./api.js";
import { FormDialog, useForm } from "./forms.js";
import { asMs, day, points } from "./format.js";
import { Button, CopyButton, Icon, Problem, SelectField, TextField, html, t, useAct } from "./ui.js";

const AUDIENCES = ["everyone", "registered", "plan_members"];
const ADDRESS = /^(https?:\/\/|\/)\S+$/;

export function Home({ me, onSignedOut }) {
  const [rooms, setRooms] = useState(null);
  const [shows, setShows] = useState([]);
  const [next, setNext] = useState(null);
  const [failure, setFailure] = useState(null);
  const [making, make] = useState(null); // null | "room" | "show"
  const may = me.permissions?.includes("room.write");

  const read = async (cursor) => {
    try {
      const [found, page] = await Promise.all([
        rooms && cursor ? rooms : get("/v1/rooms").then(items),
        get(`/v1/shows${cursor ? `?cursor=${encodeURIComponent(cursor)}` : ""}`),
      ]);
      setRooms(found);
      setShows(cursor ? [...shows, ...items(page)] : items(page));
      setNext(page?.next ?? null);
      setFailure(null);
    } catch (error) {
      if (error.status === 401) onSignedOut(error);
      setFailure(error instanceof Failure ? error : new Failure("page", 0, String(error)));
    }
  };
  useEffect(() => void read(), []);

  const groups = (rooms ?? []).map((room) => ({ room, shows: shows.filter((one) => one.room.id === room.id) }));
  const loose = shows.filter((one) => !groups.some((group) => group.shows.includes(one)));
  if (loose.length) groups.push({ room: null, shows: loose });

  return html`
    <main class="home" id="main">
      <header class="home__head">
        <div class="grow">
          <h1 class="display home__title">${t("home_title")}</h1>
          <p class="muted">${t("home_lead")}</p>
        </div>
        ${may &&
        html`<div class="row row--wrap">
          <${Button} onClick=${() => make("room")}><${Icon} name="plus" />${t("new_room")}<//>
          <${Button} kind="primary" disabled=${!rooms?.length} onClick=${() => make("show")}><${Icon} name="plus" />${t("new_show")}<//>
        </div>`}
      </header>
      <${Problem} failure=${failure} onRetry=${() => read()} />
      ${rooms === null && !failure && html`<p class="empty">${t("loading")}</p>`}
      ${rooms?.length === 0 && html`<div class="card empty"><p>${t("no_rooms")}</p>
        ${may && html`<${Button} kind="primary" onClick=${() => make("room")}>${t("new_room")}<//>`}</div>`}
      ${groups.map(
        ({ room, shows: list }) => html`
          <section key=${room?.id ?? "loose"} class="card home__room" aria-label=${room?.title ?? t("shows")}>
            <header class="row row--wrap">
              <h2 class="grow home__room-title">${room?.title ?? t("shows")}</h2>
              ${room?.host_name && html`<span class="muted small">${room.host_name}</span>`}
              ${room && html`<span class=${`badge ${room.audience?.kind === "plan_members" ? "badge--plan" : ""}`}>${t(`audience_${room.audience?.kind ?? "everyone"}`)}</span>`}
            </header>
            ${list.length === 0 && html`<p class="muted small">${t("no_shows")}</p>`}
            <ul class="list">
              ${list.map((show) => html`<${ShowRow} key=${show.id} show=${show} />`)}
            </ul>
          </section>
        `,
      )}
      ${next && html`<${Button} block onClick=${() => read(next)}>${t("page_more")}<//>`}
      ${making === "room" && html`<${RoomForm} onClose=${() => make(null)} onMade=${() => (make(null), read())} />`}
      ${making === "show" && html`<${ShowForm} rooms=${rooms} onClose=${() => make(null)} onSaved=${(show) => (location.href = `/panel/${show.id}`)} />`}
    </main>
  `;
}

export const StatusBadge = ({ status }) => html`
  <span class=${`badge badge--state ${{ live: "badge--live", waiting: "badge--info", paused: "badge--warn", ending: "badge--warn", ended: "", scheduled: "badge--ok" }[status] ?? ""}`}>
    ${t(`status_${status}`)}
  </span>
`;

function ShowRow({ show }) {
  return html`
    <li class="list__row home__show">
      <${StatusBadge} status=${show.status} />
      <div class="grow">
        <p class="strong clip">${show.title}</p>
        <p class="muted small num">${show.starts_at ? day(asMs(show.starts_at)) : "–"}</p>
      </div>
      <div class="row home__acts">
        <${CopyButton} text=${`${location.origin}/s/${show.id}`} label=${t("copy_link")} />
        <a
          class=${`button button--small ${show.status === "ended" ? "" : "button--primary"}`}
          href=${`/panel/${show.id}`}
          aria-label=${t("named", { what: t(show.status === "ended" ? "open_report" : "open_panel"), name: show.title })}
        >
          ${t(show.status === "ended" ? "open_report" : "open_panel")}
        </a>
      </div>
    </li>
  `;
}

const tooLong = (text, max) => (points(text.trim()) > max ? t("field_long", { max, over: points(text.trim()) - max }) : null);
const wrongTitle = (text, max) => (text.trim() ? tooLong(text, max) : t("field_needed"));
const wrongAddress = (text) => (text.trim() && !ADDRESS.test(text.trim()) ? t("field_address") : null);

const roomErrors = (room) => ({
  title: wrongTitle(room.title, 40),
  slug: room.slug && !/^[a-z0-9](?:[a-z0-9-]{1,38}[a-z0-9])?$/.test(room.slug) ? t("field_slug") : null,
  host_name: tooLong(room.host_name, 24),
});

function RoomForm({ onClose, onMade }) {
  const { form: room, set, shown, sending } = useForm({ title: "", slug: "", host_name: "", audience: "everyone" }, roomErrors);
  const make = useAct(async (key, body) => {
    await post("/v1/rooms", body, { key });
    onMade();
  });
  const send = sending(() => {
    const body = { title: room.title.trim(), host_name: room.host_name.trim(), audience: { kind: room.audience } };
    make.run(room.slug ? { ...body, slug: room.slug } : body);
  });
  return html`
    <${FormDialog} title=${t("new_room")} does=${t("create")} act=${make} onSubmit=${send} onClose=${onClose}>
      <${TextField} label=${t("room_name")} value=${room.title} error=${shown.title} onInput=${(title) => set({ title })} />
      <${TextField} label=${t("room_host")} needed=${false} value=${room.host_name} error=${shown.host_name} onInput=${(host_name) => set({ host_name })} />
      <${TextField}
        label=${t("room_slug")}
        hint=${t("room_slug_help")}
        needed=${false}
        value=${room.slug}
        error=${shown.slug}
        autocapitalize="none"
        spellcheck="false"
        onInput=${(slug) => set({ slug: slug.trim().toLowerCase() })}
      />
      <${SelectField}
        label=${t("room_audience")}
        value=${room.audience}
        options=${AUDIENCES.map((one) => [one, t(`audience_${one}`)])}
        onInput=${(audience) => set({ audience })}
      />
    <//>
  `;
}

/** What the wall clock of the shop's zone says, as a moment. The zone may not be this computer's. */
export function momentIn(zone, local) {
  const match = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d)/.exec(local);
  if (!match) return null;
  const [, y, mo, d, h, mi] = match.map(Number);
  const asUtc = Date.UTC(y, mo - 1, d, h, mi);
  const shift = (ms) => {
    const parts = Object.fromEntries(
      new Intl.DateTimeFormat("en-GB", {
        timeZone: zone || undefined,
        year: "numeric",
        month: "2-digit",
        day: "2-digit",
        hour: "2-digit",
        minute: "2-digit",
        hourCycle: "h23",
      })
        .formatToParts(ms)
        .map((one) => [one.type, Number(one.value)]),
    );
    return Date.UTC(parts.year, parts.month - 1, parts.day, parts.hour, parts.minute) - ms;
  };
  const once = asUtc - shift(asUtc);
  return asUtc - shift(once); // a second time, for the hours around a change of the clocks
}

/** The same the other way: a moment as the shop's wall clock, for a datetime-local field. */
export function localIn(zone, ms) {
  const parts = Object.fromEntries(
    new Intl.DateTimeFormat("en-GB", {
      timeZone: zone || undefined,
      year: "numeric",
      month: "2-digit",
      day: "2-digit",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    })
      .formatToParts(ms)
      .map((one) => [one.type, one.value]),
  );
  return `${parts.year}-${parts.month}-${parts.day}T${parts.hour}:${parts.minute}`;
}

const kindOf = (address) => (/\.m3u8(\?|$)/i.test(address) ? "hls" : /\.flv(\?|$)/i.test(address) ? "flv" : /\.mp4(\?|$)/i.test(address) ? "mp4" : null);

/** A new show, or with `old` what of that one may still change. `onSaved(show)`. */
export function ShowForm({ rooms, old, onClose, onSaved }) {
  const zone = document.body.dataset.timezone || "";
  const blank = () => ({
    room: rooms?.[0]?.id ?? "",
    title: old?.title ?? "",
    summary: old?.summary ?? "",
    starts: localIn(zone, old?.starts_at ?? Math.ceil((Date.now() + 3_600_000) / 1_800_000) * 1_800_000),
    video_url: old?.video_url ?? "",
    video_kind: old?.video_kind ?? "hls",
    poster_url: old?.poster_url ?? "",
    guest_comments: old?.guest_comments ?? false,
  });
  const { form: show, set, shown, sending } = useForm(blank, (typed) => ({
    title: wrongTitle(typed.title, 60),
    summary: tooLong(typed.summary, 500),
    starts: momentIn(zone, typed.starts) === null ? t("field_needed") : null,
    video_url: wrongAddress(typed.video_url),
    poster_url: wrongAddress(typed.poster_url),
  }));
  const fixed = old && !["scheduled", "waiting"].includes(old.status); // its start is history
  const starts = momentIn(zone, show.starts);
  const make = useAct(async (key, body) => {
    onSaved(old ? await patch(`/v1/shows/${old.id}`, body, { key }) : await post("/v1/shows", body, { key }));
  });
  const send = sending(() => {
    const body = {
      title: show.title.trim(),
      summary: show.summary.trim(),
      video_url: show.video_url.trim(),
      video_kind: show.video_kind,
      poster_url: show.poster_url.trim(),
      guest_comments: show.guest_comments,
    };
    if (!old) body.room = show.room;
    if (!fixed && starts !== old?.starts_at) body.starts_at = new Date(starts).toISOString();
    make.run(body);
  });
  return html`
    <${FormDialog} title=${t(old ? "edit_show" : "new_show")} does=${t(old ? "save" : "create")} act=${make} onSubmit=${send} onClose=${onClose}>
      ${!old && html`<${SelectField} label=${t("show_room")} value=${show.room} options=${rooms.map((one) => [one.id, one.title])} onInput=${(room) => set({ room })} />`}
      <${TextField} label=${t("show_title")} value=${show.title} error=${shown.title} onInput=${(title) => set({ title })} />
      <${TextField} label=${t("show_summary")} value=${show.summary} error=${shown.summary} needed=${false} long onInput=${(summary) => set({ summary })} />
      <${TextField}
        label=${t("show_starts")}
        type="datetime-local"
        disabled=${Boolean(fixed)}
        value=${show.starts}
        error=${shown.starts}
        hint=${t("show_starts_help", { zone: zone || Intl.DateTimeFormat().resolvedOptions().timeZone })}
        onInput=${(value) => set({ starts: value })}
      />
      <${TextField}
        label=${t("show_video")}
        hint=${t("show_video_help")}
        needed=${false}
        value=${show.video_url}
        error=${shown.video_url}
        inputmode="url"
        onInput=${(video_url) => set({ video_url, video_kind: kindOf(video_url) ?? show.video_kind })}
      />
      ${show.video_url.trim() &&
      html`<${SelectField}
        label=${t("show_video_kind")}
        value=${show.video_kind}
        options=${[["hls", "HLS"], ["flv", "FLV"], ["mp4", "MP4"]]}
        onInput=${(video_kind) => set({ video_kind })}
      />`}
      <${TextField} label=${t("show_poster")} needed=${false} value=${show.poster_url} error=${shown.poster_url} inputmode="url" onInput=${(poster_url) => set({ poster_url })} />
      <label class="row">
        <input class="switch" type="checkbox" role="switch" checked=${show.guest_comments} onChange=${(event) => set({ guest_comments: event.currentTarget.checked })} />
        <span>${t("guest_comments")}</span>
      </label>
    <//>
  `;
}
