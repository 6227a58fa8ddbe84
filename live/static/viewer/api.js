// The HTTP side: JSON with the page's cookie, the CSRF header, an idempotency key for what must not happen twice.

import { Refusal, newKey } from "../socket.js";

const WAIT_MS = 15_000;
let bearer = null;

/** A preview speaks with its own token instead of the cookie. */
export function useBearer(token) {
  bearer = token;
}

function csrf() {
  return document.cookie.match(/(?:^|; )companion_csrf=([^;]*)/)?.[1];
}

/** Raises Refusal with the problem's code; `disconnected` when there was no answer. */
export async function call(method, path, body, { key = null } = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  else if (method !== "GET" && csrf()) headers["X-CSRF-Token"] = decodeURIComponent(csrf());
  if (key) headers["Idempotency-Key"] = key;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      credentials: bearer ? "omit" : "same-origin",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout?.(WAIT_MS),
    });
  } catch {
    throw new Refusal({ code: "disconnected" });
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    answer = null;
  }
  if (response.ok) return answer;
  throw new Refusal({
    ...(answer ?? {}),
    code: answer?.code ?? (response.status === 429 ? "rate_limited" : response.status >= 500 ? "unavailable" : "unknown"),
    message: answer?.detail ?? answer?.title,
    retry_ms: answer?.retry_ms ?? (Number(response.headers.get("Retry-After")) * 1000 || null),
    status: response.status,
  });
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}, options) => call("POST", path, body, options);

const UNDECIDED = new Set(["disconnected", "unavailable", "busy"]);

const UPLOAD_MS = 60_000; // a photo over a village's line

/** A file as it is: `progress` hears 0…1 while it travels. Raises Refusal like `call`. */
export function upload(path, file, { key, progress }) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.timeout = UPLOAD_MS;
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("Content-Type", file.type);
    request.setRequestHeader("Idempotency-Key", key);
    if (bearer) request.setRequestHeader("Authorization", `Bearer ${bearer}`);
    else if (csrf()) request.setRequestHeader("X-CSRF-Token", decodeURIComponent(csrf()));
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = request.ontimeout = () => fail(new Refusal({ code: "disconnected" }));
    request.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(request.responseText || "null");
      } catch {
        answer = null;
      }
      if (request.status >= 200 && request.status < 300) done(answer);
      else {
        fail(
          new Refusal({
            ...(answer ?? {}),
            code: answer?.code ?? (request.status >= 500 ? "unavailable" : "unknown"),
            message: answer?.detail ?? answer?.title,
            status: request.status,
          }),
        );
      }
    };
    request.send(file);
  });
}

/** One key per intent, kept until it is answered: pressed again after a tunnel, it is still one act. */
export async function once(keys, intent, work) {
  const name = JSON.stringify(intent);
  if (!keys.has(name)) keys.set(name, newKey());
  try {
    const answer = await work(keys.get(name));
    keys.delete(name);
    return answer;
  } catch (error) {
    if (!UNDECIDED.has(error.code)) keys.delete(name);
    throw error;
  }
}
