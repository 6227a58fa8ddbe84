// What staff do about a comment. Kept apart from the rows: a row may leave the screen while the answer is on
// its way, and a failure must still be seen.

import { signal } from "@preact/signals";
import { Failure, newKey, post, remove } from "./api.js";
import { failureText, say, t } from "./ui.js";

export function makeModeration(store, onSignedOut) {
  const busy = signal(new Map()); // seq -> act
  const failures = signal(new Map()); // seq -> {failure, again, name}
  const keys = new Map();
  const base = `/v1/shows/${store.show.peek().id}`;

  function put(cell, seq, value) {
    const copy = new Map(cell.peek());
    if (value === null) copy.delete(seq);
    else copy.set(seq, value);
    cell.value = copy;
  }

  async function act(comment, name, send, done) {
    const { seq } = comment;
    if (busy.peek().has(seq)) return;
    const slot = `${name} ${seq}`;
    if (!keys.has(slot)) keys.set(slot, newKey());
    put(busy, seq, name);
    put(failures, seq, null);
    try {
      const answer = await send(keys.get(slot));
      keys.delete(slot);
      done?.(answer);
    } catch (error) {
      const failure = error instanceof Failure ? error : new Failure("page", 0, String(error));
      if (!failure.unsure) keys.delete(slot);
      put(failures, seq, { failure, name: comment.name, again: () => act(comment, name, send, done) });
      say(failureText(failure), true);
      if (failure.status === 401) onSignedOut(failure);
    } finally {
      put(busy, seq, null);
    }
  }

  return {
    busy,
    failures,
    forget: (seq) => put(failures, seq, null),
    hide: (comment) =>
      act(comment, "hide", (key) => post(`${base}/comments/${comment.seq}/hide`, {}, { key }), () => {
        store.hide(comment.seq);
        say(t("hidden"));
      }),
    pin: (comment) => act(comment, "pin", (key) => post(`${base}/comments/${comment.seq}/pin`, {}, { key }), () => say(t("pinned"))),
    unpin: (comment) => act(comment, "unpin", (key) => remove(`${base}/pinned-comment`, undefined, { key })),
    mute: (comment, seconds) =>
      act(
        comment,
        `mute ${seconds}`,
        (key) => post(`${base}/mutes`, { viewer: comment.viewer, seconds }, { key }),
        (answer) => {
          store.setMuted(comment.viewer, answer?.until ?? store.time() + seconds * 1000);
          say(t("muted"));
        },
      ),
    unmute: (comment) =>
      act(
        comment,
        "unmute",
        (key) => remove(`${base}/mutes`, { viewer: comment.viewer }, { key }),
        () => {
          store.setMuted(comment.viewer, null);
          say(t("unmuted"));
        },
      ),
  };
}
