// Addresses: where what was bought is sent, and the gifts that were won.

import { signal } from "@preact/signals";
import { useEffect, useId, useRef, useState } from "preact/hooks";

import { call, get, once, post } from "./api.js";
import { Icon, html } from "./dom.js";
import { phone } from "./format.js";
import { Busy, Field, Notice, Sheet, closeSheet, openSheet } from "./sheet.js";
import { boot, isMember, sheet, toast } from "./state.js";
import { refusalText, t } from "./words.js";

const keys = new Map();
export const addresses = signal(null); // null: not read yet
export const chosenAddress = signal(null);

let reading = null;

export function readAddresses() {
  reading ??= get("/v1/me/addresses")
    .then((answer) => {
      addresses.value = answer.items;
      chosenAddress.value ??= answer.items[0]?.id ?? null;
    })
    .finally(() => {
      reading = null;
    });
  return reading;
}

/** Keep an address. Given again, one that was there is the newest: gifts are sent to the newest. */
async function keepAddress(body) {
  const one = await once(keys, ["address", body], (key) => post("/v1/me/addresses", body, { key }));
  await readAddresses().catch(() => {
    addresses.value = [one, ...(addresses.value ?? []).filter((other) => other.id !== one.id)];
  });
  chosenAddress.value = one.id;
}

async function dropAddress(one) {
  try {
    await call("DELETE", `/v1/me/addresses/${encodeURIComponent(one.id)}`);
    addresses.value = addresses.value.filter((other) => other.id !== one.id);
    if (chosenAddress.value === one.id) chosenAddress.value = addresses.value[0]?.id ?? null;
  } catch (error) {
    toast(refusalText(error), "bad");
  }
}

// — where gifts are sent —

/** The newest address, read once it is needed; undefined until it is known, null without one. */
function useNewest() {
  useEffect(() => {
    if (addresses.value === null && isMember.value && !boot.preview) readAddresses().catch(() => {}); // asked again where it is shown next
  }, []);
  return addresses.value === null ? undefined : (addresses.value[0] ?? null);
}

const openAddresses = (add = false) => openSheet("address", { back: sheet.value, add });

/** Where a gift that was won is sent, and the way to change it; without an address it is asked for. */
export function GiftTo() {
  const to = useNewest();
  if (to === undefined) return null;
  if (to === null) {
    return html`<${Notice} kind="warn" icon="gift">
      <p>${t("gift.to.ask")}</p>
      <button type="button" class="button button--primary button--small gift-to__ask" onClick=${() => openAddresses(true)}>${t("address.first")}</button>
    <//>`;
  }
  return html`<div class="gift-to row">
    <${Icon} name="gift" />
    <p class="small grow">${t("gift.to")} <strong>${to.name}</strong> <span class="num muted">${phone(to.phone)}</span><br />${to.region} ${to.detail}</p>
    <button type="button" class="link-button small" onClick=${() => openAddresses()}>${t("gift.to.change")}</button>
  </div>`;
}

/** The same in the little room of a card. */
export function GiftToCard() {
  const to = useNewest();
  if (to === undefined) return null;
  if (to === null) return html`<button type="button" class="button button--primary button--small" onClick=${() => openAddresses(true)}>${t("gift.to.add")}</button>`;
  return html`<button type="button" class="link-button small clip" onClick=${() => openAddresses()}>${t("gift.to.name", { name: to.name })}</button>`;
}

/** Every address of one's own; the newest is where gifts are sent. */
export function AddressBook({ onAdd = () => openAddresses(true) }) {
  const newest = useNewest();
  if (newest === undefined) return html`<div class="skeleton" style=${{ height: "64px" }}></div>`;
  const use = async ({ name, phone: number, region, detail }) => {
    try {
      await keepAddress({ name, phone: number, region, detail });
      toast(t("gift.to.set", { name }), "ok");
    } catch (error) {
      toast(refusalText(error), "bad");
    }
  };
  return html`<div class="stack" style=${{ "--gap": "8px" }}>
    ${newest
      ? html`<ul class="list">
          ${addresses.value.map(
            (one) => html`<li key=${one.id} class="list__row">
              <span class="grow"><strong>${one.name}</strong> <span class="num muted">${phone(one.phone)}</span><br /><span class="small">${one.region} ${one.detail}</span><br />
                ${one === newest
                  ? html`<span class="badge badge--plan">${t("gift.to.here")}</span>`
                  : html`<button type="button" class="link-button small" aria-label=${t("gift.to.use.named", { name: one.name, detail: one.detail })} onClick=${() => use(one)}>${t("gift.to.use")}</button>`}</span>
              <button type="button" class="icon-button" onClick=${() => dropAddress(one)} aria-label=${t("address.remove", { name: one.name })}><${Icon} name="close" /></button>
            </li>`,
          )}
        </ul>`
      : html`<p class="small muted">${t("address.none")}</p>`}
    <button type="button" class="button" onClick=${onAdd}><${Icon} name="plus" />${t(newest ? "address.add" : "address.first")}</button>
    <p class="tiny muted">${t("gift.to.rule")}</p>
  </div>`;
}

export function AddressSheet() {
  const { back, add } = sheet.value;
  const [adding, setAdding] = useState(add);
  const onBack = back
    ? () => {
        sheet.value = back;
      }
    : null;
  if (adding) {
    const leave = add && (onBack ?? closeSheet);
    return html`<${AddressForm} onBack=${leave || (() => setAdding(false))} onDone=${add && back ? onBack : () => setAdding(false)} />`;
  }
  return html`<${Sheet} title=${t("address.label")} onBack=${onBack}><${AddressBook} onAdd=${() => setAdding(true)} /><//>`;
}

// — choosing and giving one —

export function AddressChoice({ address, onAdd }) {
  const [open, setOpen] = useState(false);
  const list = addresses.value ?? [];
  if (addresses.value === null) return html`<div class="skeleton" style=${{ height: "64px" }}></div>`;
  if (!list.length) {
    return html`<button type="button" class="option" onClick=${onAdd}><${Icon} name="plus" /><span>${t("address.first")}</span></button>`;
  }
  if (!open && address) {
    return html`<button type="button" class="option" onClick=${() => setOpen(true)} aria-label=${t("address.change")}>
      <span class="grow"><strong>${address.name}</strong> <span class="num muted">${phone(address.phone)}</span><br /><span class="small">${address.region} ${address.detail}</span></span>
      <${Icon} name="down" />
    </button>`;
  }
  return html`<div class="stack" role="radiogroup" aria-label=${t("address.label")} style=${{ "--gap": "8px" }}>
    ${list.map(
      (one) => html`<div class="row" key=${one.id}>
        <label class="option grow">
          <input
            type="radio"
            name="address"
            checked=${one.id === chosenAddress.value}
            onChange=${() => {
              chosenAddress.value = one.id;
              setOpen(false);
            }}
          />
          <span class="grow"><strong>${one.name}</strong> <span class="num muted">${phone(one.phone)}</span><br /><span class="small">${one.region} ${one.detail}</span></span>
        </label>
        <button type="button" class="icon-button" onClick=${() => dropAddress(one)} aria-label=${t("address.remove", { name: one.name })}><${Icon} name="close" /></button>
      </div>`,
    )}
    <button type="button" class="button button--quiet" onClick=${onAdd}><${Icon} name="plus" />${t("address.add")}</button>
  </div>`;
}

const FIELDS = [
  { name: "name", autocomplete: "name", max: 40 },
  { name: "phone", autocomplete: "tel", max: 24, type: "tel", inputmode: "tel" },
  { name: "region", autocomplete: "address-level1", max: 60 },
  { name: "detail", autocomplete: "street-address", max: 120 },
];

export function AddressForm({ onBack, onDone }) {
  const id = useId();
  const form = useRef();
  const [busy, setBusy] = useState(false);
  const [errors, setErrors] = useState({});
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    const body = Object.fromEntries(FIELDS.map(({ name }) => [name, form.current.elements[name].value.trim()]));
    const empty = Object.fromEntries(Object.entries(body).filter(([, value]) => !value).map(([name]) => [name, t(`address.${name}.needed`)]));
    setErrors(empty);
    if (Object.keys(empty).length) {
      form.current.elements[Object.keys(empty)[0]].focus();
      return;
    }
    setBusy(true);
    try {
      await keepAddress(body);
      onDone();
    } catch (error) {
      const field = error.code === "invalid_phone" ? "phone" : (error.details.field ?? "detail");
      setErrors({ [field]: error.code === "invalid_address" && field === "region" ? t("address.region.wrong") : refusalText(error) });
    } finally {
      setBusy(false);
    }
  };
  return html`<${Sheet}
    title=${t("address.add")}
    onBack=${onBack}
    foot=${html`<${Busy} busy=${busy} large type="submit" form=${`${id}-form`}>${t("address.save")}<//>`}
  >
    <form class="stack" id=${`${id}-form`} ref=${form} onSubmit=${submit} novalidate>
      ${FIELDS.map(
        ({ name, autocomplete, max, type, inputmode }, i) => html`<${Field} key=${name} id=${`${id}-${name}`} label=${t(`address.${name}`)} error=${errors[name]}>
          <input
            id=${`${id}-${name}`}
            class="input"
            name=${name}
            type=${type ?? "text"}
            inputmode=${inputmode}
            autocomplete=${autocomplete}
            maxlength=${max}
            placeholder=${t(`address.${name}.example`)}
            aria-invalid=${errors[name] ? "true" : null}
            aria-describedby=${errors[name] ? `${id}-${name}-error` : null}
            data-focus=${i === 0 ? "" : null}
          />
        <//>`,
      )}
    </form>
  <//>`;
}
