// The stream of comments as staff see it: reading, and what is done about one. It stands still while
// somebody reads: pointer over it, focus in it, or scrolled up.

import { Component } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { post, put, remove } from "./api.js";
import { clock as timeOfDay, count, points } from "./format.js";
import { Badge, Button, Icon, IconButton, Problem, html, remember, remembered, say, t, useAct } from "./ui.js";

const ROWS_MAX = 160;
const TEXT_MAX = 200;
const SPEAK_EVERY_MS = 5000;
const MUTES = [60, 600, 86_400];
const HOVERS = matchMedia("(hover: hover)"); // on a touch screen :hover stays with what was tapped last

export function Comments({ store, moderation, setReply, filter, setFilter, canModerate, canSpeak }) {
  const busy = moderation.busy.value;
  const failures = moderation.failures.value;
  const all = store.comments.value;
  const hidden = store.hidden.value;
  const muted = store.muted.value;
  const pinned = store.data("pinned")?.comment ?? null;
  const [active, setActive] = useState(null); // the row that shows its acts
  const [over, setOver] = useState(false);
  const [up, setUp] = useState(false); // scrolled away from the newest
  const [menu, setMenu] = useState(null); // the row whose mute times are open
  const [speaking, setSpeaking] = useState(() => remembered("panel.speak") === "1");
  const list = useRef(null);
  const held = useRef(null); // the rows drawn while it stands still

  const still = over || up || menu !== null;
  if (!still) held.current = null;
  else if (held.current === null) held.current = all;
  const source = held.current ?? all;
  const rows = (filter === "questions" ? source.filter((one) => one.question) : source).slice(-ROWS_MAX);
  const newest = source.length ? source[source.length - 1].seq : 0;
  const waiting = still ? all.filter((one) => one.seq > newest && (filter !== "questions" || one.question)).length : 0;

  useLayoutEffect(() => {
    if (!still && list.current) list.current.scrollTop = list.current.scrollHeight;
  });

  useEffect(() => {
    if (!speaking) return undefined;
    let told = store.comments.peek().at(-1)?.seq ?? 0;
    const timer = setInterval(() => {
      const fresh = store.comments.peek().filter((one) => one.seq > told && !store.hidden.peek().has(one.seq));
      if (!fresh.length) return;
      told = fresh.at(-1).seq;
      const chosen = fresh.filter((one) => one.question).at(-1) ?? fresh.at(-1);
      say(t("speak_n", { n: fresh.length, name: chosen.name, text: chosen.text }));
    }, SPEAK_EVERY_MS);
    return () => clearInterval(timer);
  }, [speaking]);

  const toNewest = () => {
    setUp(false);
    setOver(false);
    setMenu(null);
    held.current = null;
    requestAnimationFrame(() => list.current && (list.current.scrollTop = list.current.scrollHeight));
  };

  const move = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step && event.key !== "Home" && event.key !== "End") return;
    if (event.target instanceof HTMLButtonElement) return;
    event.preventDefault();
    const at = rows.findIndex((one) => one.seq === active);
    const next = event.key === "Home" ? 0 : event.key === "End" ? rows.length - 1 : Math.min(rows.length - 1, Math.max(0, at + step));
    if (!rows[next]) return;
    setActive(rows[next].seq);
    setOver(true);
    requestAnimationFrame(() => list.current?.querySelector(`[data-seq="${rows[next].seq}"]`)?.focus());
  };

  const tabStop = rows.some((one) => one.seq === active) ? active : rows.at(-1)?.seq;
  const mutedNow = [...muted].filter(([, until]) => until > store.now.value);
  const nameOf = (viewer) => all.findLast((one) => one.viewer === viewer)?.name ?? t("somebody");

  return html`
    <section class="pane comments" aria-labelledby="comments-title" id="comments">
      <header class="pane__head">
        <h2 class="pane__title" id="comments-title">${t("comments")}</h2>
        <div class="segments" role="group" aria-label=${t("comments")}>
          ${["all", "questions"].map(
            (one) => html`<button
              key=${one}
              type="button"
              class="segment"
              aria-pressed=${String(filter === one)}
              onClick=${() => {
                setFilter(one);
                toNewest();
              }}
            >
              ${t(`comments_${one}`)}
            </button>`,
          )}
        </div>
        <span class="grow"></span>
        <${IconButton}
          name="speak"
          label=${t("speak")}
          pressed=${speaking}
          class="icon-button--small"
          onClick=${() => {
            remember("panel.speak", speaking ? "0" : "1");
            setSpeaking(!speaking);
          }}
        />
      </header>

      <${Sampling} store=${store} />
      ${pinned && html`<${Pinned} pinned=${pinned} moderation=${moderation} can=${canModerate} />`}
      ${canModerate && mutedNow.length > 0 && html`<${Muted} muted=${mutedNow} nameOf=${nameOf} moderation=${moderation} />`}

      <div class="comments__place">
        <ul
          class="comments__list"
          ref=${list}
          aria-label=${t("comments")}
          onKeyDown=${move}
          onPointerEnter=${(event) => event.pointerType === "mouse" && setOver(true)}
          onPointerLeave=${(event) => {
            if (event.pointerType !== "mouse") return;
            setOver(false);
            if (menu === null && !list.current.contains(document.activeElement)) setActive(null);
          }}
          onFocusOut=${(event) => {
            if (list.current.contains(event.relatedTarget)) return;
            if (menu === null) {
              setActive(null);
              setOver(HOVERS.matches && list.current.matches(":hover"));
            }
          }}
          onScroll=${(event) => {
            const box = event.currentTarget;
            const away = box.scrollHeight - box.scrollTop - box.clientHeight > 48;
            if (away !== up) setUp(away);
          }}
        >
          ${rows.length === 0 && html`<li class="empty">${t(filter === "questions" ? "questions_empty" : "comments_empty")}</li>`}
          ${rows.map(
            (comment) => html`<${Row}
              key=${comment.seq}
              comment=${comment}
              hidden=${hidden.has(comment.seq)}
              muted=${(muted.get(comment.viewer) ?? 0) > store.time()}
              pinned=${pinned?.seq === comment.seq}
              active=${active === comment.seq}
              stop=${tabStop === comment.seq}
              menu=${menu === comment.seq}
              can=${canModerate}
              canSpeak=${canSpeak}
              busy=${busy.get(comment.seq)}
              failed=${failures.get(comment.seq)}
              moderation=${moderation}
              store=${store}
              onActive=${setActive}
              onMenu=${setMenu}
              onReply=${setReply}
            />`,
          )}
        </ul>
        ${(still || waiting > 0) &&
        html`<div class="comments__still">
          ${waiting > 0 || up
            ? html`<${Button} small kind=${waiting ? "primary" : undefined} onClick=${toNewest}>
                <${Icon} name="down" />${waiting ? t("comments_new", { n: count(waiting) }) : t("comments_resume")}
              <//>`
            : html`<span class="chip">${t("comments_paused")}</span>`}
        </div>`}
      </div>
    </section>
  `;
}

class Row extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    return ["comment", "hidden", "muted", "pinned", "active", "stop", "menu", "can", "canSpeak", "busy", "failed"].some((one) => next[one] !== now[one]);
  }

  render({ comment, hidden, muted, pinned, active, stop, menu, can, canSpeak, busy, failed, moderation, store, onActive, onMenu, onReply }) {
    const classes = ["line"];
    if (comment.badge) classes.push(`line--${comment.badge}`);
    if (comment.question && !hidden) classes.push("line--question");
    if (hidden) classes.push("line--hidden");
    if (active) classes.push("line--active");
    return html`
      <li
        class=${classes.join(" ")}
        data-seq=${comment.seq}
        tabindex=${stop ? 0 : -1}
        onFocus=${() => onActive(comment.seq)}
        onPointerMove=${(event) => event.pointerType === "mouse" && !active && onActive(comment.seq)}
        onClick=${(event) => event.target.closest("button") || onActive(comment.seq)}
      >
        <p class="line__words">
          <time class="line__time num" datetime=${comment.at ? new Date(comment.at).toISOString() : undefined}>${timeOfDay(comment.at, false)}</time>
          <${Badge} badge=${comment.badge} />
          ${comment.question && !hidden && html`<span class="badge badge--info">${t("question_mark")}</span>`}
          <span class="line__name">${comment.name}</span>
          ${comment.replyTo !== null &&
          html`<span class="line__reply"><${Icon} name="reply" />${comment.replyName ?? nameOfSeq(store, comment.replyTo)}</span>`}
          <span class="line__text">${comment.text}</span>
          ${hidden && html`<span class="badge">${t("hidden")}</span>`}
          ${muted && html`<span class="badge badge--warn">${t("muted")}</span>`}
          ${pinned && html`<span class="badge badge--plan">${t("pinned")}</span>`}
        </p>
        ${active &&
        (can || canSpeak) &&
        html`<${Acts}
          comment=${comment}
          hidden=${hidden}
          muted=${muted}
          pinned=${pinned}
          menu=${menu}
          can=${can}
          canSpeak=${canSpeak}
          busy=${busy}
          moderation=${moderation}
          onMenu=${onMenu}
          onReply=${onReply}
        />`}
        ${failed &&
        html`<${Problem} compact failure=${failed.failure} onRetry=${failed.again} onClose=${() => moderation.forget(comment.seq)} />`}
      </li>
    `;
  }
}

const nameOfSeq = (store, seq) => store.comments.peek().find((one) => one.seq === seq)?.name ?? t("reply_to_gone");

function Acts({ comment, hidden, muted, pinned, menu, can, canSpeak, busy, moderation, onMenu, onReply }) {
  const staff = comment.badge === "host";
  const mute = (seconds) => {
    onMenu(null);
    moderation.mute(comment, seconds);
  };
  return html`
    <div class="line__acts" role="group" aria-label=${t("comment_actions", { name: comment.name })}>
      ${canSpeak && !hidden && html`<${Act} name="reply" onClick=${() => onReply(comment)} />`}
      ${can &&
      !hidden &&
      html`<${Act}
        name="pin"
        words=${pinned ? "unpin" : "pin"}
        busy=${busy === "pin" || busy === "unpin"}
        onClick=${() => (pinned ? moderation.unpin(comment) : moderation.pin(comment))}
      />`}
      ${can &&
      !staff &&
      comment.viewer &&
      (muted
        ? html`<${Act} name="mute" words="unmute" busy=${busy === "unmute"} onClick=${() => moderation.unmute(comment)} />`
        : html`<${Act}
            name="mute"
            busy=${busy?.startsWith("mute")}
            expanded=${menu}
            onClick=${() => onMenu(menu ? null : comment.seq)}
          />`)}
      ${can && !hidden && html`<${Act} name="hide" busy=${busy === "hide"} onClick=${() => moderation.hide(comment)} />`}
    </div>
    ${menu &&
    html`<div class="line__menu row row--wrap" role="group" aria-label=${t("mute_for", { name: comment.name })}>
      <span class="small strong">${t("mute_for", { name: comment.name })}</span>
      ${MUTES.map((seconds) => html`<${Button} key=${seconds} small onClick=${() => mute(seconds)}>${t(`mute_${seconds}`)}<//>`)}
      <${Button} small kind="quiet" onClick=${() => onMenu(null)}>${t("cancel")}<//>
    </div>`}
  `;
}

const Act = ({ name, words, busy, expanded, onClick }) => html`
  <button
    type="button"
    class="act"
    aria-busy=${busy ? "true" : undefined}
    aria-expanded=${expanded === undefined ? undefined : String(Boolean(expanded))}
    disabled=${busy}
    onClick=${onClick}
  >
    <${Icon} name=${name} />${t(words ?? name)}
  </button>
`;

/** When more comes than anyone can read: how much of it is on the viewers' screens. */
function Sampling({ store }) {
  const sampling = store.data("sampling");
  if (!sampling) return null;
  const values = { posted: count(Math.round(sampling.posted_per_s)), shown: count(Math.round(sampling.shown_per_s)) };
  return html`<p class="sampling small" role="status"><${Icon} name="info" /><span class="num">${t("sampling", values)}</span></p>`;
}

function Pinned({ pinned, moderation, can }) {
  const failed = moderation.failures.value.get("pinned");
  return html`
    <div class="pinned">
      <${Icon} name="pin" />
      <p class="grow">
        <span class="visually-hidden">${t("named", { what: t("pinned"), name: "" })}</span>
        <${Badge} badge=${pinned.badge} /> <span class="strong">${pinned.name}</span> ${pinned.text}
      </p>
      ${can &&
      html`<${Button}
        small
        kind="quiet"
        busy=${moderation.busy.value.has("pinned")}
        onClick=${() => moderation.unpin({ ...pinned, seq: "pinned" })}
      >
        ${t("unpin")}
      <//>`}
    </div>
    ${failed && html`<${Problem} compact failure=${failed.failure} onRetry=${failed.again} onClose=${() => moderation.forget("pinned")} />`}
  `;
}

function Muted({ muted, nameOf, moderation }) {
  return html`
    <details class="muted-list">
      <summary><${Icon} name="mute" />${t("muted_n", { n: muted.length })}</summary>
      <ul>
        ${muted.map(([viewer, until]) => {
          const slot = `viewer ${viewer}`;
          const failed = moderation.failures.value.get(slot);
          return html`<li key=${viewer}>
            <div class="row">
              <span class="grow clip">${nameOf(viewer)}</span>
              <span class="muted small num">${t("muted_until", { time: timeOfDay(until, false) })}</span>
              <${Button}
                small
                kind="quiet"
                busy=${moderation.busy.value.has(slot)}
                onClick=${() => moderation.unmute({ seq: slot, viewer, name: nameOf(viewer) })}
              >
                ${t("unmute")}
              <//>
            </div>
            ${failed && html`<${Problem} compact failure=${failed.failure} onRetry=${failed.again} onClose=${() => moderation.forget(slot)} />`}
          </li>`;
        })}
      </ul>
    </details>
  `;
}

/** Where staff say something as the host. What was typed stays until the server has it. */
export function Composer({ store, reply, setReply, field, wide }) {
  const [text, setText] = useState("");
  const status = store.status.value;
  const closed = status === "scheduled" ? t("composer_closed") : status === "ended" ? t("composer_ended") : null;
  const length = points(text.trim());
  const over = length - TEXT_MAX;
  const send = useAct(async (key, words, to) => {
    await post(`/v1/shows/${store.show.peek().id}/comments`, to ? { text: words, reply_to: to } : { text: words }, { key });
    setText("");
    setReply(null);
    // The answer may come when the hand is elsewhere already: the focus is not taken from there.
    const now = document.activeElement;
    if (now === document.body || field.current?.form.contains(now)) field.current?.focus();
  });
  useEffect(() => {
    if (reply) field.current?.focus();
  }, [reply]);
  const go = () => {
    const words = text.trim();
    if (!words || over > 0 || send.busy || closed) return;
    send.run(words, reply?.seq ?? null);
  };
  return html`
    <form
      class="composer"
      onSubmit=${(event) => {
        event.preventDefault();
        go();
      }}
    >
      ${reply &&
      html`<p class="composer__reply small row">
        <${Icon} name="reply" /><span class="clip grow">${t("named", { what: t("composer_reply", { name: reply.name }), name: reply.text })}</span>
        <${IconButton} name="close" label=${t("cancel")} class="icon-button--small" onClick=${() => setReply(null)} />
      </p>`}
      <div class="composer__row">
        <span class="badge badge--host" aria-hidden="true">${t("badge_host")}</span>
        <label class="visually-hidden" for="composer">${t("composer")}</label>
        <textarea
          id="composer"
          ref=${field}
          class="input composer__field"
          rows="1"
          value=${text}
          placeholder=${closed ?? t(wide ? "composer_place" : "composer_short")}
          disabled=${Boolean(closed)}
          readonly=${send.busy}
          enterkeyhint="send"
          aria-invalid=${over > 0 ? "true" : undefined}
          aria-describedby="composer-left"
          onInput=${(event) => setText(event.currentTarget.value.replace(/\n/g, " "))}
          onKeyDown=${(event) => {
            if (event.key === "Enter" && !event.isComposing && event.keyCode !== 229) {
              event.preventDefault();
              go();
            } else if (event.key === "Escape") {
              if (reply) setReply(null);
              else event.currentTarget.blur();
            }
          }}
        ></textarea>
        <span id="composer-left" class=${`composer__left small num ${over > 0 ? "composer__left--over" : "muted"}`}>
          ${over > 0 ? t("composer_long", { n: over }) : length > TEXT_MAX - 40 ? `${length}/${TEXT_MAX}` : ""}
        </span>
        <button type="submit" class="button button--primary button--small" aria-busy=${send.busy ? "true" : undefined} disabled=${!length || over > 0 || send.busy || Boolean(closed)}>
          ${t("composer_send")}
        </button>
      </div>
      ${send.failure && html`<${Problem} compact failure=${send.failure} onRetry=${send.failure.unsure ? send.again : null} onClose=${send.clear} />`}
    </form>
  `;
}

/** The bar that every viewer sees: what stands there now, and the field to change it. */
export function Announcement({ store, can }) {
  const now = store.data("announcement")?.text ?? store.data("show")?.announcement ?? "";
  const [editing, setEditing] = useState(false);
  const [text, setText] = useState("");
  const over = points(text.trim()) - TEXT_MAX;
  const set = useAct(async (key, words) => {
    await put(`/v1/shows/${store.show.peek().id}/announcement`, { text: words }, { key });
    setEditing(false);
  });
  const words = typeof now === "string" ? now : (now?.text ?? "");
  if (!editing) {
    return html`
      <div class="announce">
        <${Icon} name="announcement" />
        <p class=${`grow clip ${words ? "" : "muted"}`}>
          <span class="visually-hidden">${t("named", { what: t("announcement"), name: "" })}</span>${words || t("announcement_none")}
        </p>
        ${can &&
        html`<${Button}
            small
            kind="quiet"
            disabled=${store.status.value === "ended"}
            onClick=${() => {
              setText(words);
              setEditing(true);
            }}
          >
            ${t("edit")}
          <//>
          ${words && html`<${Button} small kind="quiet" busy=${set.busy} onClick=${() => set.run(null)}>${t("announcement_clear")}<//>`}`}
      </div>
      ${set.failure && html`<${Problem} compact failure=${set.failure} onRetry=${set.again} onClose=${set.clear} />`}
    `;
  }
  return html`
    <form
      class="announce announce--edit"
      onSubmit=${(event) => {
        event.preventDefault();
        if (text.trim() && over <= 0) set.run(text.trim());
      }}
    >
      <${Icon} name="announcement" />
      <label class="visually-hidden" for="announce">${t("announcement")}</label>
      <input
        id="announce"
        class="input grow"
        value=${text}
        placeholder=${t("announcement_place")}
        aria-invalid=${over > 0 ? "true" : undefined}
        ref=${(field) => field && !field.dataset.met && ((field.dataset.met = "1"), field.focus())}
        onInput=${(event) => setText(event.currentTarget.value)}
        onKeyDown=${(event) => event.key === "Escape" && setEditing(false)}
      />
      ${over > 0 && html`<span class="composer__left--over small">${t("composer_long", { n: over })}</span>`}
      <button type="submit" class="button button--primary button--small" aria-busy=${set.busy ? "true" : undefined} disabled=${!text.trim() || over > 0 || set.busy}>
        ${t("announcement_put")}
      </button>
      <${Button} small kind="quiet" onClick=${() => setEditing(false)}>${t("cancel")}<//>
    </form>
    ${set.failure && html`<${Problem} compact failure=${set.failure} onRetry=${set.again} onClose=${set.clear} />`}
  `;
}
