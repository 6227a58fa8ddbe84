// The viewer's phone beside the panel: the real viewer page in a small frame, as a guest or a plan member.

import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Icon, IconButton, html, remember, remembered, t } from "./ui.js";

const WIDTH = 390;
const HEIGHT = 844;
const AS = ["guest", "plan"];

export function Preview({ store }) {
  const [as, setAs] = useState(() => (remembered("panel.preview") === "plan" ? "plan" : "guest"));
  const [turn, setTurn] = useState(0);
  const room = useRef(null);
  const [scale, setScale] = useState(0.7);
  const show = store.show.value.id;
  const address = `/s/${show}/phone?as=${as}&lang=${document.documentElement.lang.startsWith("en") ? "en" : "zh"}`;

  useLayoutEffect(() => {
    const fit = () => {
      const box = room.current;
      if (!box) return;
      setScale(Math.max(0.35, Math.min(1, (box.clientWidth - 22) / WIDTH, (box.clientHeight - 22) / HEIGHT)));
    };
    fit();
    const sizes = new ResizeObserver(fit);
    sizes.observe(room.current);
    return () => sizes.disconnect();
  }, []);

  return html`
    <section class="pane preview" aria-labelledby="preview-title">
      <header class="pane__head">
        <h2 class="visually-hidden" id="preview-title">${t("preview")}</h2>
        <div class="segments" role="group" aria-label=${t("preview")}>
          ${AS.map(
            (one) => html`<button
              key=${one}
              type="button"
              class="segment"
              aria-pressed=${String(as === one)}
              onClick=${() => {
                remember("panel.preview", one);
                setAs(one);
              }}
            >
              ${t(`preview_${one}`)}
            </button>`,
          )}
        </div>
        <span class="grow"></span>
        <${IconButton} name="reload" label=${t("preview_reload")} class="icon-button--small" onClick=${() => setTurn(turn + 1)} />
        <a class="icon-button icon-button--small" href=${address} target="_blank" rel="noopener" aria-label=${t("preview_open")} title=${t("preview_open")}>
          <${Icon} name="open" />
        </a>
      </header>
      <div class="preview__room" ref=${room}>
        <div class="phone" style=${{ width: `${WIDTH * scale + 14}px`, height: `${HEIGHT * scale + 14}px` }}>
          <iframe
            key=${`${as} ${turn}`}
            class="phone__glass"
            src=${address}
            title=${t("named", { what: t("preview"), name: t(`preview_${as}`) })}
            width=${WIDTH}
            height=${HEIGHT}
            allow="autoplay"
            style=${{ transform: `scale(${scale})` }}
          ></iframe>
        </div>
      </div>
      <p class="preview__note small muted">${t("preview_note")}</p>
    </section>
  `;
}
