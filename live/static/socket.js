// The wire client, version 1: one connection of one viewer (or one panel) to one show.
//
// Says hello with a token or by the page's cookie, with `since` when it was here before; checks that
// ranges join without holes; keeps states by version, latest wins; comes back with full jitter in the
// server's window, later and later while it fails; keeps keyed commands until they are answered. Knows no
// page: what it learns it hands to callbacks.

const SUBPROTOCOL = "companion.v1";
const HELLO_WAIT_MS = 8_000; // for `welcome`
const PONG_GRACE_MS = 10_000; // silence beyond the ping interval that means the link is dead
const FIRST_WINDOW_MS = [500, 2_000]; // until the server has said its own
const LONGEST_MS = 20_000; // the back-off ends here, unless the server's own window is longer
const STEADY_MS = 30_000; // a connection this old resets the back-off
const PENDING_MAX = 64; // keyed commands kept at a time
const KEPT_MS = 120_000; // a keyed command older than this is not sent again by itself
const PLAIN_WAIT_MS = 15_000; // a command without key is given up after this

/** 4000–4099: sent elsewhere, come back at once. 4500–4999 are final. All else is a failure: with back-off. */
const told = (code) => code >= 4000 && code <= 4099;

/** A command understood and declined. `code` is the word on the wire. */
export class Refusal extends Error {
  constructor(answer) {
    super(answer.message || answer.code);
    this.code = answer.code;
    this.retry_ms = answer.retry_ms ?? null;
    this.details = answer;
  }
}

/** The server's clock, learnt from its own stamps; steady when the device's clock is set. */
export class ServerClock {
  constructor() {
    this.best = Infinity; // shortest round trip seen, ms
    this.offset = Date.now() - performance.now(); // server ms = performance.now() + offset
    this.known = false;
  }

  /** `stamp` was made by the server between `sent` and now (performance.now() times). */
  learn(stamp, sent) {
    const now = performance.now();
    const trip = now - sent;
    this.best += 1; // an old sample ages, so that drift is corrected in the end
    if (trip > this.best && this.known) return;
    this.best = trip;
    this.offset = stamp + trip / 2 - now;
    this.known = true;
  }

  now() {
    return performance.now() + this.offset;
  }
}

export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // plain http on a phone has no randomUUID
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * handlers, all optional:
 *   welcome(message, fresh)    `fresh` false when nothing was missed or all of it follows
 *   event(event)               numbered, in order, each once
 *   states(changed)            Map key -> data (null: gone)
 *   personal(message)          you, order.changed, benefit.won, notice …
 *   status(name, detail)       connecting | open | lost {at, retry_at, offline} | stopped {code, reason}
 */
export class ShowSocket {
  constructor(show, handlers = {}, { token = null, store = null, clock = new ServerClock(), window_max_ms = Infinity, random = Math.random } = {}) {
    this.random = random;
    this.show = show;
    this.handlers = handlers;
    this.token = token;
    this.clock = clock;
    this.store = store; // sessionStorage-like; keeps unanswered keyed commands over a reload
    this.epoch = null;
    this.seq = 0;
    this.versions = new Map(); // state key -> version
    this.window_max_ms = window_max_ms; // for the few who should not wait as long as the many
    this._take(FIRST_WINDOW_MS);
    this.ping_ms = 25_000;
    this.attempts = 0;
    this.next_id = 1;
    this.waiting = new Map(); // id -> {resolve, reject, key, timer}
    this.pending = new Map(); // key -> {body, made, resolve, reject}
    this.resyncing = false;
    this.socket = null;
    this.opened_at = 0;
    this.lost_at = null;
    this.stopped = false;
    this.timers = {};
    this._kept();
    this._online = () => this._comeBack(true);
    this._offline = () => this._cut(this.socket);
    this._shown = (event) => event.persisted && this._comeBack(true);
    this._visible = () => document.visibilityState === "visible" && this._look();
  }

  get ready() {
    return this.welcomed === true && this.socket?.readyState === WebSocket.OPEN;
  }

  start() {
    addEventListener("online", this._online);
    addEventListener("offline", this._offline);
    addEventListener("pageshow", this._shown);
    document.addEventListener("visibilitychange", this._visible);
    this._connect();
  }

  stop() {
    this.stopped = true;
    removeEventListener("online", this._online);
    removeEventListener("offline", this._offline);
    removeEventListener("pageshow", this._shown);
    document.removeEventListener("visibilitychange", this._visible);
    this._clearTimers();
    this.socket?.close(1000);
  }

  /** Come back now, as somebody else or to a room that was closed before. */
  restart(token = this.token) {
    this.token = token;
    this.stopped = false;
    this.attempts = 0;
    const old = this.socket;
    this.socket = null;
    this._detach(old);
    this._connect();
  }

  /** Send a command; resolves with `ok`, rejects with a Refusal. With a key it survives a reconnect. */
  send(type, body = {}, { key = null } = {}) {
    const message = { type, ...body };
    return new Promise((resolve, reject) => {
      if (key) {
        if (this.pending.size >= PENDING_MAX) {
          reject(new Refusal({ code: "rate_limited", retry_ms: 2_000 }));
          return;
        }
        this.pending.set(key, { body: { ...message, key }, made: Date.now(), resolve, reject });
        this._keep();
        if (this.ready) this._push(key);
      } else if (this.ready) {
        this._write(message, { resolve, reject });
      } else {
        reject(new Refusal({ code: "disconnected" }));
      }
    });
  }

  // — the connection —

  _connect() {
    if (this.stopped) return;
    this._clearTimers();
    this.welcomed = false;
    this.handlers.status?.("connecting", { again: this.lost_at !== null });
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const address = `${scheme}//${location.host}/v1/shows/${encodeURIComponent(this.show)}/socket`;
    let socket;
    try {
      socket = new WebSocket(address, SUBPROTOCOL);
    } catch {
      this._lost(1006);
      return;
    }
    this.socket = socket;
    socket.onopen = () => {
      this.hello_sent = performance.now();
      this.hello_id = this.next_id++;
      const since = this.epoch === null ? null : { epoch: this.epoch, seq: this.seq };
      socket.send(JSON.stringify({ type: "hello", id: this.hello_id, token: this.token, since }));
    };
    socket.onmessage = (event) => this._frame(event.data);
    socket.onclose = (event) => {
      if (this.socket === socket) this._lost(event.code, event.reason);
    };
    this.timers.hello = setTimeout(() => this._cut(socket), HELLO_WAIT_MS);
  }

  /** This link is no good. Its close handshake would wait for what does not come, so it is not waited for. */
  _cut(socket) {
    if (!socket || this.socket !== socket) return;
    this.socket = null;
    this._detach(socket);
    this._lost(1006);
  }

  _detach(socket) {
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(1000);
    this._dropPlain();
  }

  _lost(code, reason = "") {
    this._clearTimers();
    this.socket = null;
    this.welcomed = false;
    this.resyncing = false;
    this._dropPlain();
    if (this.stopped) return;
    if (code === 4501 && this.token !== null) {
      this.token = null; // the cookie may still know us; else we are a guest again
      this.handlers.status?.("signed_out", {});
    } else if (code >= 4500 && code <= 4999) {
      this.stopped = true;
      this._rejectPending({ code: "closed" });
      this.handlers.status?.("stopped", { code, reason });
      return;
    }
    if (code === 4106) this.token = null;
    this.lost_at ??= this.clock.now();
    if (this.opened_at && performance.now() - this.opened_at > STEADY_MS) this.attempts = 0;
    this.opened_at = 0;
    const offline = navigator.onLine === false;
    const wait = offline ? this.window[1] : this._jitter(code); // `online` cuts it short
    if (!offline && !told(code)) this.attempts += 1; // being sent elsewhere is no failure
    this.handlers.status?.("lost", { at: this.lost_at, retry_at: this.clock.now() + wait, offline, code });
    this.timers.retry = setTimeout(() => this._connect(), wait);
  }

  /**
   * Full jitter over the server's window, which is as long as it needs to let everyone in again: a node that
   * dies closes all of them with the same 1006. Each failure in a row doubles the window's end.
   */
  _jitter(code) {
    const [least, most] = this.window;
    const doubled = most * 2 ** Math.min(this.attempts, 10);
    const top = told(code) ? most : Math.min(Math.max(most, LONGEST_MS), doubled);
    return least + this.random() * (top - least);
  }

  _comeBack(soon) {
    if (this.stopped || this.socket) return;
    if (soon) this.attempts = 0;
    clearTimeout(this.timers.retry);
    this.timers.retry = setTimeout(() => this._connect(), this.random() * this.window[0]);
  }

  /** Back from a pocket: a link that was silent too long is dead, whatever the browser believes. */
  _look() {
    if (!this.socket) this._comeBack(true);
    else if (this.welcomed && performance.now() - this.heard_at > this.ping_ms + PONG_GRACE_MS) this._cut(this.socket);
  }

  /** The window the server wishes: at the welcome, and again in its hint before it goes away. */
  _take(window) {
    const [least, most] = Array.isArray(window) ? window : [];
    if (!Number.isFinite(least) || !Number.isFinite(most) || least < 0 || most < least) return;
    this.window = [least, most].map((end) => Math.min(end, this.window_max_ms));
  }

  _clearTimers() {
    for (const name of Object.keys(this.timers)) clearTimeout(this.timers[name]);
    this.timers = {};
  }

  _heard() {
    this.heard_at = performance.now();
    clearTimeout(this.timers.silence);
    const socket = this.socket;
    this.timers.silence = setTimeout(() => this._cut(socket), this.ping_ms + PONG_GRACE_MS);
  }

  // — frames —

  _frame(text) {
    this._heard();
    let messages;
    try {
      messages = JSON.parse(text);
    } catch {
      messages = null;
    }
    if (!Array.isArray(messages)) {
      this._cut(this.socket);
      return;
    }
    const changed = new Map();
    let head = null; // the range this frame's numbered events belong to
    let skipping = false;
    for (const message of messages) {
      switch (message.type) {
        case "range":
          skipping = !this._joins(message);
          head = skipping ? null : message;
          break;
        case "state":
          this._state(message, changed);
          break;
        case "welcome":
          this._welcome(message, changed);
          break;
        case "gap":
          this._resync(message.within_ms);
          break;
        case "ok":
        case "refused":
          this._answer(message);
          break;
        case "ping":
          this._raw({ type: "pong" });
          if (message.time) this.clock.learn(message.time, performance.now());
          this._take(message.reconnect_ms);
          break;
        case "reconnect":
          this._take(message.reconnect_ms);
          break;
        default:
          if (message.seq !== undefined) {
            if (!skipping && head !== null && message.seq > this.seq) {
              this.seq = message.seq;
              this.handlers.event?.(message);
            }
          } else {
            this.handlers.personal?.(message);
          }
      }
    }
    if (head !== null && head.to > this.seq) this.seq = head.to;
    if (changed.size) this.handlers.states?.(changed);
  }

  /** Whether a range follows on what we have. A hole asks for a resync, once. */
  _joins(range) {
    if (range.epoch !== this.epoch || range.from > this.seq + 1) {
      this._resync();
      return false;
    }
    return true;
  }

  /** Ask for what is missing; where everyone is told to, at a random moment within the time the server names. */
  _resync(within_ms = 0) {
    if (this.resyncing || !this.welcomed) return;
    this.resyncing = true;
    const socket = this.socket;
    if (within_ms > 0) this.timers.resync = setTimeout(() => this._askAgain(socket), this.random() * within_ms);
    else this._askAgain(socket);
  }

  _askAgain(socket) {
    if (this.socket !== socket) return;
    this.hello_sent = performance.now();
    const since = this.epoch === null ? null : { epoch: this.epoch, seq: this.seq };
    this._write({ type: "resync", since }, {
      resolve: () => {
        this.resyncing = false;
      },
      reject: () => {
        this.resyncing = false;
        this._cut(socket);
      },
    });
  }

  _state(message, changed) {
    const seen = this.versions.get(message.key);
    // An equal version is taken too: the viewer's class may have changed under it.
    if (seen !== undefined && message.version < seen) return;
    this.versions.set(message.key, message.version);
    changed.set(message.key, message.data ?? null);
  }

  _welcome(message, changed) {
    clearTimeout(this.timers.hello);
    if (message.time) this.clock.learn(message.time, this.hello_sent);
    this._take(message.reconnect_ms);
    if (message.ping_s) this.ping_ms = message.ping_s * 1000;
    const fresh = !message.recovered;
    if (fresh) this.seq = message.seq;
    if (message.epoch !== this.epoch) {
      for (const key of this.versions.keys()) this.versions.set(key, -1); // another life counts anew
    }
    this.epoch = message.epoch;
    const waiting = this.waiting.get(message.id);
    if (waiting) this._settle(message.id, waiting).resolve(message);
    this.resyncing = false;
    const again = this.lost_at !== null;
    const away_ms = again ? this.clock.now() - this.lost_at : 0;
    this.lost_at = null;
    this.welcomed = true;
    this.opened_at ||= performance.now();
    this._heard();
    const present = new Set((message.states ?? []).map((state) => state.key));
    for (const key of [...this.versions.keys()]) {
      if (present.has(key)) continue;
      this.versions.delete(key);
      changed.set(key, null); // the snapshot is whole: what it lacks is gone
    }
    for (const state of message.states ?? []) this._state(state, changed);
    this.handlers.welcome?.(message, fresh);
    this.handlers.status?.("open", { again, away_ms, fresh });
    for (const key of [...this.pending.keys()]) this._push(key);
  }

  // — commands and their answers —

  _raw(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  _write(message, { resolve, reject, key = null }) {
    const id = this.next_id++;
    const timer = key ? null : setTimeout(() => this._settle(id)?.reject(new Refusal({ code: "disconnected" })), PLAIN_WAIT_MS);
    this.waiting.set(id, { resolve, reject, key, timer });
    this._raw({ ...message, id });
  }

  _push(key) {
    const kept = this.pending.get(key);
    if (!kept) return;
    if (Date.now() - kept.made > KEPT_MS) {
      this._forget(key);
      kept.reject(new Refusal({ code: "disconnected" }));
      return;
    }
    this._write(kept.body, { resolve: kept.resolve, reject: kept.reject, key });
  }

  _settle(id, waiting = this.waiting.get(id)) {
    if (!waiting) return null;
    clearTimeout(waiting.timer);
    this.waiting.delete(id);
    if (waiting.key) this._forget(waiting.key);
    return waiting;
  }

  _answer(message) {
    if (message.type === "refused" && message.id === this.hello_id && !this.welcomed) {
      this.handlers.refused_hello?.(new Refusal(message)); // the close code that follows says what to do
      return;
    }
    const waiting = this.waiting.get(message.id);
    if (!waiting) return;
    if (message.type === "refused" && message.code === "unavailable" && waiting.key) {
      // Nothing was decided: the same key is sent again, so that it cannot count twice.
      this.waiting.delete(message.id);
      setTimeout(() => this.ready && this._push(waiting.key), message.retry_ms ?? 1_000);
      return;
    }
    this._settle(message.id, waiting);
    if (message.type === "ok") waiting.resolve(message);
    else waiting.reject(new Refusal(message));
  }

  /** What has no key dies with its connection; what has one waits for the next. */
  _dropPlain() {
    for (const [id, waiting] of this.waiting) {
      if (!waiting.key) {
        clearTimeout(waiting.timer);
        waiting.reject(new Refusal({ code: "disconnected" }));
      }
      this.waiting.delete(id);
    }
  }

  _rejectPending(answer) {
    for (const kept of this.pending.values()) kept.reject(new Refusal(answer));
    this.pending.clear();
    this._keep();
  }

  _forget(key) {
    this.pending.delete(key);
    this._keep();
  }

  // — over a reload —

  _keep() {
    if (!this.store) return;
    const kept = [...this.pending.values()].map(({ body, made }) => ({ body, made }));
    try {
      if (kept.length) this.store.setItem(`pending:${this.show}`, JSON.stringify(kept));
      else this.store.removeItem(`pending:${this.show}`);
    } catch {
      this.store = null; // full or forbidden: then only this page's life
    }
  }

  _kept() {
    if (!this.store) return;
    try {
      for (const { body, made } of JSON.parse(this.store.getItem(`pending:${this.show}`) ?? "[]")) {
        if (Date.now() - made > KEPT_MS) continue;
        const settle = (answer) => this.handlers.settled?.(body, answer);
        this.pending.set(body.key, { body, made, resolve: settle, reject: settle });
      }
    } catch {
      this.store.removeItem(`pending:${this.show}`);
    }
  }
}
