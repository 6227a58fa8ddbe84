// A list of the API on the screen: read part by part, read again after an act, its failure where it stands.

import { useEffect, useRef, useState } from "preact/hooks";
import { Failure, get, items } from "./api.js";
import { Button, Problem, html, t } from "./ui.js";

export function usePage(path, { everyMs = 0 } = {}) {
  const [state, setState] = useState({ list: null, next: null, failure: null });
  const turn = useRef(0);
  const read = async (cursor = null) => {
    const mine = (turn.current += 1);
    try {
      const joint = path.includes("?") ? "&" : "?";
      const answer = await get(cursor ? `${path}${joint}cursor=${encodeURIComponent(cursor)}` : path);
      if (mine !== turn.current) return;
      setState((old) => ({ list: cursor ? [...(old.list ?? []), ...items(answer)] : items(answer), next: answer?.next ?? null, failure: null }));
    } catch (error) {
      if (mine !== turn.current) return;
      setState((old) => ({ ...old, failure: error instanceof Failure ? error : new Failure("page", 0, String(error)) }));
    }
  };
  useEffect(() => {
    setState({ list: null, next: null, failure: null });
    read();
    if (!everyMs) return () => (turn.current += 1);
    const timer = setInterval(() => document.visibilityState === "visible" && read(), everyMs);
    return () => {
      turn.current += 1;
      clearInterval(timer);
    };
  }, [path]);
  return { ...state, read: () => read(), more: state.next && (() => read(state.next)) };
}

/** Around a list: still reading, failed, nothing there, or the rows and the way to more. */
export function Listed({ page, empty, children }) {
  return html`
    <${Problem} failure=${page.failure} onRetry=${page.read} />
    ${page.list === null && !page.failure && html`<p class="empty" role="status">${t("loading")}</p>`}
    ${page.list?.length === 0 && html`<p class="empty">${empty}</p>`}
    ${page.list?.length > 0 && children}
    ${page.more && html`<${Button} block onClick=${page.more}>${t("page_more")}<//>`}
  `;
}
