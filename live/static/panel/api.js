// The panel's way to the HTTP API: one function, one kind of failure, one key per act.

const TIMEOUT_MS = 10_000; // a script answers in milliseconds; ten seconds is a dead line

export class Failure extends Error {
  /** `code` is the refusal's word, or no_line / no_answer when nobody answered. */
  constructor(code, status, detail, extra = {}) {
    super(detail || code);
    this.code = code;
    this.status = status;
    this.detail = detail || "";
    this.retryMs = extra.retry_ms ?? null;
    this.extra = extra;
  }

  /** True when the act may have run although no answer came: repeat it only with the same key. */
  get unsure() {
    return this.code === "no_answer" || this.code === "no_line" || this.status >= 500;
  }
}

export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // plain http on a shop's network has no randomUUID, but has random numbers
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

function csrf() {
  const found = document.cookie.split("; ").find((one) => one.startsWith("companion_csrf="));
  return found ? decodeURIComponent(found.slice("companion_csrf=".length)) : "";
}

/**
 * Call the API. Resolves with the decoded answer, rejects with a Failure and nothing else.
 * A write always carries an Idempotency-Key, so that pressing again repeats and does not double.
 */
export async function call(method, path, body, { key, signal } = {}) {
  const headers = { Accept: "application/json, application/problem+json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET") {
    headers["X-CSRF-Token"] = csrf();
    headers["Idempotency-Key"] = key || newKey();
  }
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT_MS);
  if (signal) signal.addEventListener("abort", () => stop.abort(), { once: true });
  let answer;
  let text;
  try {
    answer = await fetch(path, {
      method,
      headers,
      credentials: "same-origin",
      cache: "no-store",
      signal: stop.signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    text = await answer.text();
  } catch {
    throw new Failure(stop.signal.aborted ? "no_answer" : "no_line", 0);
  } finally {
    clearTimeout(timer);
  }
  let data = null;
  if (text) {
    try {
      data = JSON.parse(text);
    } catch {
      if (answer.ok) throw new Failure("no_answer", answer.status);
    }
  }
  if (answer.ok) return data;
  const code = (data && data.code) || (answer.status === 401 ? "unauthenticated" : `http_${answer.status}`);
  throw new Failure(code, answer.status, data && data.detail, data || {});
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body = {}, options) => call("POST", path, body, options);
export const put = (path, body, options) => call("PUT", path, body, options);
export const patch = (path, body, options) => call("PATCH", path, body, options);
export const remove = (path, body, options) => call("DELETE", path, body, options);

/** Lists come as {items, cursor?} or as a plain array. */
export function items(answer) {
  if (Array.isArray(answer)) return answer;
  if (!answer) return [];
  if (Array.isArray(answer.items)) return answer.items;
  const list = Object.values(answer).find(Array.isArray);
  return list || [];
}
