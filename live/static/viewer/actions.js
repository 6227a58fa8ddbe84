// What a person wants. An act that needs a name is kept, the person signs in, and the act is done then.

import { signal } from "@preact/signals";

import { boot, isMember, known, sheet, toast, you } from "./state.js";
import { t } from "./words.js";

let socket = null;
let after = null; // the act that waits for sign-in

export const wanted = signal(null); // its name, so that the sign-in sheet can say why

export function setConnection(made) {
  socket = made;
}

export function connection() {
  return socket;
}

/** Do `act` as a member: now, or after the sign-in that this opens. */
export function ask(name, details, act) {
  if (boot.preview) {
    toast(t("preview.only"));
    return;
  }
  const guestMay = name === "comment" && boot.show?.guest_comments;
  if (isMember.value || guestMay || (name === "comment" && you.value.badge === "host")) {
    act();
    return;
  }
  if (!known.value && socket && !socket.ready) {
    toast(t("link.wait"));
    return;
  }
  after = act;
  wanted.value = { name, ...details };
  sheet.value = { name: "sign-in" };
}

/** Called when the person is known to be a member. */
export function carryOn() {
  const act = after;
  after = null;
  wanted.value = null;
  if (act) act();
  return act !== null;
}

export function forgetWanted() {
  after = null;
  wanted.value = null;
}
