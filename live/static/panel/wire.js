// The staff's socket to one show: the wire client of all pages, with a staff token that is renewed in time.

import { ServerClock, ShowSocket } from "../socket.js";
import { Failure, get } from "./api.js";

const RENEW_BEFORE_MS = 5 * 60_000;
const TOKEN_EXPIRED = 4106;
const WINDOW_MAX_MS = 2_000; // staff are few: the desk does not stand in the viewers' line

export const clock = new ServerClock();

/**
 * Connect `store` to its show. Viewers' cookies live beside ours in one browser, so the socket is told by
 * a token that we are staff. `onSignedOut(failure)` when there is no token to be had.
 */
export function connect(store, onSignedOut) {
  const show = store.show.peek().id;
  let stopped = false;
  let renewal = null;
  let socket = null;

  async function token() {
    const answer = await get(`/panel/token?show=${encodeURIComponent(show)}`);
    clearTimeout(renewal);
    const left = Math.max(10_000, answer.expires_at - Date.now() - RENEW_BEFORE_MS);
    renewal = setTimeout(renew, Math.min(left, 2 ** 31 - 1));
    return answer.token;
  }

  async function renew() {
    try {
      const fresh = await token();
      if (stopped || !socket) return;
      socket.token = fresh;
      if (socket.ready) socket.send("refresh", { token: fresh }).catch(() => socket.restart(fresh));
    } catch (error) {
      failed(error, renew);
    }
  }

  function failed(error, again) {
    if (stopped) return;
    if (error instanceof Failure && (error.status === 401 || error.status === 403)) {
      onSignedOut(error);
      return;
    }
    store.line.value = { state: "lost", at: store.line.peek().at ?? clock.now(), retry_at: clock.now() + 3000 };
    setTimeout(again, 3000);
  }

  async function start() {
    if (stopped) return;
    try {
      const first = await token();
      if (stopped) return;
      if (socket) {
        socket.restart(first);
        return;
      }
      socket = new ShowSocket(
        show,
        {
          welcome: store.onWelcome,
          event: store.onEvent,
          states: store.onStates,
          status(name, detail = {}) {
            if (name === "signed_out" || (name === "lost" && detail.code === TOKEN_EXPIRED)) {
              start(); // ask for a new token; the page's cookie still knows us, or says so
              return;
            }
            if (name === "connecting" && detail.again) return; // still lost, as far as people are concerned
            store.line.value = { state: name, ...detail };
          },
        },
        { token: first, clock, window_max_ms: WINDOW_MAX_MS },
      );
      socket.start();
    } catch (error) {
      failed(error, start);
    }
  }

  start();
  return () => {
    stopped = true;
    clearTimeout(renewal);
    socket?.stop();
  };
}
