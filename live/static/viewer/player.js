// The moving picture. HLS by the browser where it can, else hls.js; FLV by mpegts.js; MP4 by the browser.
// Starts silent (browsers insist), says so, and comes back by itself after the network did.

import { useEffect, useRef } from "preact/hooks";
import { signal } from "@preact/signals";

import { Icon, html } from "./dom.js";
import { card, status, video } from "./state.js";
import { t } from "./words.js";

const HLS_WORKER = new URL("../vendor/hls.worker.js", import.meta.url).href; // ours: no blob is needed
const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 15_000;
const LIVE_LAG_S = 12; // farther behind than this, jump to the edge

export const shape = signal("portrait"); // of the picture
const muted = signal(true);
const blocked = signal(false); // the browser wants a tap first
const trouble = signal(false);
const playing = signal(false);

async function attach(element, source, onBroken) {
  if (source.kind === "flv") {
    const { default: mpegts } = await import("mpegts.js");
    if (!mpegts.isSupported()) throw new Error("this browser cannot play FLV");
    const player = mpegts.createPlayer(
      { type: "flv", isLive: true, url: new URL(source.url, location.href).href, cors: true },
      { enableStashBuffer: false, liveBufferLatencyChasing: true, lazyLoad: false },
    );
    player.on(mpegts.Events.ERROR, onBroken);
    player.attachMediaElement(element);
    player.load();
    return () => player.destroy();
  }
  const native = element.canPlayType("application/vnd.apple.mpegurl");
  if (source.kind === "hls" && !(native && !window.MediaSource)) {
    const { default: Hls } = await import("hls.js");
    if (Hls.isSupported()) {
      const player = new Hls({ lowLatencyMode: true, backBufferLength: 20, maxBufferLength: 20, workerPath: HLS_WORKER });
      player.on(Hls.Events.ERROR, (_, data) => {
        if (!data.fatal) return;
        if (data.type === Hls.ErrorTypes.MEDIA_ERROR) player.recoverMediaError();
        else onBroken();
      });
      player.loadSource(source.url);
      player.attachMedia(element);
      return () => player.destroy();
    }
  }
  element.src = source.url;
  return () => {
    element.removeAttribute("src");
    element.load();
  };
}

async function play(element) {
  try {
    await element.play();
    blocked.value = false;
  } catch (error) {
    if (error.name === "NotAllowedError") blocked.value = true;
  }
}

function useSource(ref, source) {
  useEffect(() => {
    if (!source?.url) return undefined;
    const element = ref.current;
    let release = null;
    let gone = false;
    let wait = RETRY_MIN_MS;
    let timer = null;
    const again = () => {
      if (gone || timer) return;
      trouble.value = true;
      playing.value = false;
      timer = setTimeout(() => {
        timer = null;
        release?.();
        release = null;
        start();
      }, wait * (0.5 + Math.random() / 2));
      wait = Math.min(RETRY_MAX_MS, wait * 2);
    };
    const start = async () => {
      try {
        const done = await attach(element, source, again);
        if (gone) done();
        else {
          release = done;
          play(element);
        }
      } catch {
        again();
      }
    };
    const fine = () => {
      trouble.value = false;
      playing.value = true;
      wait = RETRY_MIN_MS;
    };
    const measured = () => {
      const { videoWidth, videoHeight } = element;
      if (videoWidth) shape.value = videoWidth > videoHeight * 0.9 ? "landscape" : "portrait";
    };
    const shown = () => {
      if (document.visibilityState !== "visible") return;
      const edge = element.seekable.length ? element.seekable.end(element.seekable.length - 1) : 0;
      if (source.kind !== "mp4" && Number.isFinite(edge) && edge - element.currentTime > LIVE_LAG_S) element.currentTime = edge - 2;
      play(element);
    };
    element.addEventListener("playing", fine);
    element.addEventListener("loadedmetadata", measured);
    element.addEventListener("resize", measured);
    if (source.kind === "mp4") element.addEventListener("error", again);
    addEventListener("online", shown);
    document.addEventListener("visibilitychange", shown);
    start();
    return () => {
      gone = true;
      clearTimeout(timer);
      element.removeEventListener("playing", fine);
      element.removeEventListener("loadedmetadata", measured);
      element.removeEventListener("resize", measured);
      element.removeEventListener("error", again);
      removeEventListener("online", shown);
      document.removeEventListener("visibilitychange", shown);
      release?.();
    };
  }, [source?.url, source?.kind]);
}

/** On a phone it stands where the thumb is, on a desk in the picture's corner: two places, one shown. */
export function Sound({ place }) {
  if (!video.value?.url) return null;
  const turn = () => {
    muted.value = !muted.value;
  };
  return html`<button type="button" class=${`sound sound--${place}`} onClick=${turn} aria-pressed=${!muted.value} aria-label=${t("video.sound")}>
    <${Icon} name=${muted.value ? "silent" : "sound"} />${muted.value && html`<span>${t("video.unmute")}</span>`}
  </button>`;
}

export function Player() {
  const ref = useRef();
  const source = video.value;
  const poster = source?.poster || card.value.poster;
  useSource(ref, source);
  const silent = muted.value;
  useEffect(() => {
    ref.current.muted = silent;
    if (!silent) play(ref.current);
  }, [silent]);
  const paused = status.value === "paused";
  return html`<div class="picture" data-shape=${shape.value}>
    ${poster && html`<img class="picture__poster" src=${poster} alt="" hidden=${playing.value && shape.value === "portrait"} />`}
    <video
      class="picture__video"
      ref=${ref}
      muted
      autoplay
      playsinline
      webkit-playsinline="true"
      x5-video-player-type="h5-page"
      loop=${source?.kind === "mp4"}
      disablepictureinpicture
      aria-label=${t("video.label")}
    ></video>
    <div class="picture__shade" aria-hidden="true"></div>
    ${(blocked.value || trouble.value || paused) &&
    html`<div class="picture__note">
      ${paused
        ? html`<p>${t("video.paused")}</p>`
        : blocked.value
          ? html`<button type="button" class="button button--large" onClick=${() => play(ref.current)}>
              <${Icon} name="play" solid />${t("video.tap")}
            </button>`
          : html`<p>${t("video.trouble")}</p>`}
    </div>`}
    <${Sound} place="stage" />
  </div>`;
}
