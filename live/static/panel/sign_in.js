// One-time sign-in: the token stands in the address's fragment, which no server or log sees, and is exchanged
// by POST. The fragment is taken off the address before anything else happens.

import { Failure, post } from "./api.js";
import { failureText, t } from "./ui.js";

const form = document.getElementById("sign-in");
const status = document.getElementById("sign-in-status");
const failure = document.getElementById("sign-in-failure");
const field = document.getElementById("sign-in-link");
const button = form.querySelector("button");

/** The token in a pasted link, or the text itself. */
function tokenIn(text) {
  const clean = text.trim();
  const cut = clean.lastIndexOf("#");
  return cut >= 0 ? clean.slice(cut + 1) : clean;
}

async function exchange(token) {
  form.hidden = true;
  failure.hidden = true;
  status.textContent = t("sign_in_working");
  try {
    await post("/v1/staff/sign-in", { token });
    status.textContent = t("sign_in_done");
    const next = new URLSearchParams(location.search).get("next");
    location.replace(next && /^\/panel(\/[\w-]+)?$/.test(next) ? next : "/panel");
  } catch (error) {
    const told = error instanceof Failure ? error : new Failure("page", 0, String(error));
    status.textContent = "";
    failure.hidden = false;
    failure.textContent = failureText(told.code === "unauthenticated" ? new Failure("link_unknown", 401) : told);
    form.hidden = false;
    field.value = told.unsure ? token : "";
    field.focus();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const token = tokenIn(field.value);
  if (!token) {
    failure.hidden = false;
    failure.textContent = t("sign_in_none");
    field.focus();
    return;
  }
  exchange(token);
});

const token = tokenIn(location.hash);
if (location.hash) history.replaceState(null, "", location.pathname + location.search);
button.disabled = false;
if (token) exchange(token);
else {
  status.textContent = t("sign_in_lead");
  form.hidden = false;
}
