// What every part of the page draws with: templates without a compiler, icons, small pieces.

import { h } from "preact";
import htm from "htm";

export const html = htm.bind(h);

const PATHS = {
  close: "M6 6l12 12M18 6L6 18",
  back: "M15 5l-7 7 7 7",
  heart: "M12 20s-7.5-4.7-9.3-9.2C1.3 7 3.7 4 7 4c2.1 0 3.9 1.2 5 3 1.1-1.8 2.9-3 5-3 3.3 0 5.7 3 4.3 6.8C19.5 15.3 12 20 12 20z",
  bag: "M5 8h14l-1 12H6L5 8zM8.5 8V7a3.5 3.5 0 017 0v1",
  person: "M12 12a4 4 0 100-8 4 4 0 000 8zM4.5 20c.8-3.8 3.7-6 7.5-6s6.7 2.2 7.5 6",
  send: "M4 12l16-7-6 16-3.2-6.3L4 12zM10.8 14.7L20 5",
  sound: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5H4zM15.5 9a4 4 0 010 6M18 6.5a8 8 0 010 11",
  silent: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5H4zM16 9.5l5 5M21 9.5l-5 5",
  play: "M8 5l11 7-11 7V5z",
  eye: "M2.5 12S6 5.5 12 5.5 21.5 12 21.5 12 18 18.5 12 18.5 2.5 12 2.5 12zM12 15a3 3 0 100-6 3 3 0 000 6z",
  horn: "M4 10v4l11 4.5v-13L4 10zM15 9.5c1.7.3 3 1.3 3 2.5s-1.3 2.2-3 2.5M6.5 15.2V19h3v-2.7",
  pin: "M12 21v-6M8 4h8l-1 6 3 5H6l3-5-1-6z",
  bell: "M6 16.5V11a6 6 0 1112 0v5.5l1.5 2h-15l1.5-2zM10 21h4",
  lock: "M6 11h12v9H6v-9zM8.5 11V8a3.5 3.5 0 017 0v3",
  copy: "M9 9h11v11H9V9zM6 15H4V4h11v2",
  link: "M10 14a4 4 0 006 0l3-3a4 4 0 00-6-6l-1 1M14 10a4 4 0 00-6 0l-3 3a4 4 0 006 6l1-1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  info: "M12 21a9 9 0 100-18 9 9 0 000 18zM12 11v5M12 8v.1",
  warn: "M12 4l9 16H3l9-16zM12 10v4.5M12 17v.1",
  minus: "M6 12h12",
  plus: "M6 12h12M12 6v12",
  clock: "M12 21a9 9 0 100-18 9 9 0 000 18zM12 7v5.5l3.5 2",
  gift: "M4 11h16v9H4v-9zM3 7.5h18V11H3V7.5zM12 7.5V20M12 7.5S11 4 8.7 4 6.5 7.5 12 7.5zM12 7.5S13 4 15.3 4s2.2 3.5-3.3 3.5z",
  down: "M5 9l7 7 7-7",
  clap: "M8 13l-2.6-4.2a1.4 1.4 0 012.4-1.5l3 4.8-4-7.3a1.4 1.4 0 012.5-1.4l4 7.3-2.6-5.6a1.4 1.4 0 012.5-1.2l3.5 7.6c1.5 3.4.2 6.7-2.9 8.2-3 1.5-6.3.4-8.2-2.6L8 13z",
};

/** Decorative: the words beside it, or the button's label, say what it means. */
export function Icon({ name, solid = false }) {
  return html`<svg class=${`icon ${solid ? "icon--solid" : ""}`} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
    <path d=${PATHS[name]} />
  </svg>`;
}

/** A grain of rice: the mark of the house, of membership and of a seat. */
export function Grain({ size = 14 }) {
  return html`<svg width=${size * 0.6} height=${size} viewBox="0 0 12 20" aria-hidden="true" focusable="false">
    <path fill="currentColor" d="M6 1c3.2 2.6 4.6 5.9 4.6 9.2S9 17.3 6 19C3 17.3 1.4 13.5 1.4 10.2S2.8 3.6 6 1z" />
  </svg>`;
}

export function classes(...names) {
  return names.filter(Boolean).join(" ");
}

export const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
export const desk = matchMedia("(min-width: 960px)");
