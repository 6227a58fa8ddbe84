// Photos of a case: made small on the phone before they travel, looked at before they are sent.

import { useState } from "preact/hooks";

import { Icon, html } from "./dom.js";
import { t } from "./words.js";

export const PHOTOS_MAX = 3;
export const BYTES_MAX = 512 * 1024; // each, as the server takes them
const SIDE_MAX = 1600; // px: a torn bag and its label can be read
const QUALITIES = [0.86, 0.72, 0.58, 0.44];
const THUMB = 160;
const KINDS = new Set(["image/jpeg", "image/png", "image/webp"]);

const blobOf = (canvas, quality) => new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));

function drawn(picture, side) {
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const brush = canvas.getContext("2d");
  brush.fillStyle = "#fff"; // what is transparent would be black in a JPEG
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A file as it will be sent: `{name, blob, preview}`. Raises "kind" or "large". */
export async function prepare(file) {
  if (!KINDS.has(file.type)) throw new Error("kind");
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new Error("kind"); // its name says picture, its bytes do not
  }
  const preview = drawn(picture, THUMB).toDataURL("image/jpeg", 0.7);
  const canvas = drawn(picture, SIDE_MAX); // drawn anew: what a camera wrote beside the picture stays on the phone
  let blob = null;
  for (const quality of QUALITIES) {
    blob = await blobOf(canvas, quality);
    if (blob.size <= BYTES_MAX) break;
  }
  picture.close();
  if (blob.size > BYTES_MAX) throw new Error("large");
  return { name: file.name, blob, preview };
}

const size = (bytes) => `${Math.max(1, Math.round(bytes / 1024))} KB`;

export function Photos({ photos, setPhotos }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const take = async (event) => {
    const files = [...event.currentTarget.files].slice(0, PHOTOS_MAX - photos.length);
    event.currentTarget.value = "";
    setBusy(true);
    setError("");
    const made = [];
    for (const file of files) {
      try {
        made.push(await prepare(file));
      } catch (failure) {
        setError(t(failure.message === "large" ? "photo.large" : "photo.kind", { name: file.name }));
      }
    }
    setPhotos([...photos, ...made].slice(0, PHOTOS_MAX));
    setBusy(false);
  };
  return html`<fieldset class="photos">
    <legend class="field__label">${t("photo.label")} <span class="muted">${t("photo.most", { n: PHOTOS_MAX })}</span></legend>
    <ul class="photos__row">
      ${photos.map(
        (one, i) => html`<li key=${one.name + i} class="photo">
          <img src=${one.preview} alt=${t("photo.nth", { n: i + 1 })} />
          <span class="photo__size num">${size(one.blob.size)}</span>
          <button type="button" class="photo__drop" onClick=${() => setPhotos(photos.filter((other) => other !== one))} aria-label=${t("photo.drop", { n: i + 1 })}><${Icon} name="close" /></button>
        </li>`,
      )}
      ${photos.length < PHOTOS_MAX &&
      html`<li>
        <label class="photo photo--add" aria-busy=${busy ? "true" : null}>
          <input class="visually-hidden" type="file" accept="image/jpeg,image/png,image/webp" multiple onChange=${take} />
          <${Icon} name="plus" /><span class="tiny">${t(busy ? "photo.busy" : "photo.add")}</span>
        </label>
      </li>`}
    </ul>
    ${error ? html`<p class="field__error" role="alert">${error}</p>` : html`<p class="field__hint">${t("photo.hint")}</p>`}
  </fieldset>`;
}
