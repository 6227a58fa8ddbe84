// Sign-in: phone, then the code that came. What the person wanted to do is done right after.

import { useEffect, useId, useRef, useState } from "preact/hooks";

import { carryOn, connection, forgetWanted, wanted } from "./actions.js";
import { post } from "./api.js";
import { html } from "./dom.js";
import { OtherLanguage } from "./language.js";
import { Busy, Field, Notice, Sheet, closeSheet } from "./sheet.js";
import { applyYou, boot, card, clock, sheet, tick, toast, you } from "./state.js";
import { refusalText, t } from "./words.js";

const CODE_DIGITS = 6;

/** The session is new: the socket hears it on the spot; where there is none, HTTP says who we are. */
export async function signedIn(token, person) {
  // The public id stays: the socket's own `you` brings the new one.
  if (person) applyYou({ ...you.value, ...person, id: you.value.id, kind: person.kind ?? "registered" });
  const socket = connection();
  if (token && socket?.ready) {
    try {
      await socket.send("refresh", { token });
      return;
    } catch {
      // the socket would not change person: it says hello anew, by the cookie
    }
  }
  socket?.restart(null);
}

export async function signOut() {
  try {
    await post("/v1/sign-out");
  } catch (error) {
    if (error.code !== "unauthenticated") {
      toast(refusalText(error), "bad");
      return;
    }
  }
  location.reload();
}

export function SignInSheet() {
  const id = useId();
  const [step, setStep] = useState("phone");
  const [phone, setPhone] = useState("");
  const [code, setCode] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const [sent, setSent] = useState(null); // {expires_at, resend_at, sandbox_code}
  const codeInput = useRef();
  const tries = useRef("");
  const why = wanted.value;

  useEffect(() => {
    if (step === "code") codeInput.current?.focus();
  }, [step]);

  const close = () => {
    forgetWanted();
    closeSheet();
  };

  const send = async (event) => {
    event?.preventDefault();
    if (busy) return;
    if (phone.replace(/\D/g, "").length < 6) {
      setError(t("refused.invalid_phone"));
      return;
    }
    setBusy(true);
    setError("");
    try {
      const answer = await post("/v1/sign-in/codes", { phone });
      const now = clock.now();
      setSent({
        expires_at: now + (answer.expires_s ?? 300) * 1000,
        resend_at: now + (answer.resend_s ?? 60) * 1000,
        sandbox_code: answer.sandbox_code,
      });
      setCode("");
      tries.current = "";
      setStep("code");
    } catch (refusal) {
      setError(refusalText(refusal));
    } finally {
      setBusy(false);
    }
  };

  const check = async (digits) => {
    if (busy || tries.current === digits) return;
    tries.current = digits;
    const mine = sheet.value;
    setBusy(true);
    setError("");
    try {
      const answer = await post("/v1/sign-in", { phone, code: digits, show: card.value.id ?? boot.show?.id ?? null });
      await signedIn(answer.token, answer.you);
      toast(t("sign.welcome"), "ok");
      carryOn();
      if (sheet.value === mine) closeSheet(); // unless the act opened a sheet of its own
    } catch (refusal) {
      setError(refusalText(refusal));
      if (refusal.code === "code_expired") setStep("phone");
      setCode("");
    } finally {
      setBusy(false);
    }
  };

  const onCode = (event) => {
    const digits = event.target.value.replace(/\D/g, "").slice(0, CODE_DIGITS);
    event.target.value = digits;
    setCode(digits);
    if (digits.length === CODE_DIGITS) check(digits);
  };

  const wait = sent ? Math.ceil((sent.resend_at - tick.value) / 1000) : 0;
  const title = why?.name === "comment" ? t("sign.title.comment") : why ? t("sign.title.act") : t("sign.title");
  return html`<${Sheet} title=${title} onClose=${close} onBack=${step === "code" ? () => setStep("phone") : null}>
    <div class="stack" style=${{ "--gap": "16px" }}>
      ${why?.name === "comment" && html`<p class="quote"><span class="muted small">${t("sign.kept")}</span><br />${why.text}</p>`}
      ${step === "phone"
        ? html`<form class="stack" onSubmit=${send} novalidate>
            <${Field} id=${`${id}-phone`} label=${t("sign.phone")} hint=${t("sign.phone.hint")} error=${error}>
              <input
                id=${`${id}-phone`}
                class="input num"
                type="tel"
                name="phone"
                inputmode="tel"
                autocomplete="tel"
                data-focus
                maxlength="24"
                value=${phone}
                placeholder=${t("sign.phone.example")}
                aria-invalid=${error ? "true" : null}
                aria-describedby=${error ? `${id}-phone-error` : `${id}-phone-hint`}
                onInput=${(event) => setPhone(event.target.value)}
              />
            <//>
            <${Busy} busy=${busy} large type="submit">${t("sign.send")}<//>
            <p class="tiny muted">${t("sign.terms")}</p>
            <${OtherLanguage} />
          </form>`
        : html`<form
            class="stack"
            onSubmit=${(event) => {
              event.preventDefault();
              tries.current = "";
              if (code.length === CODE_DIGITS) check(code);
            }}
            novalidate
          >
            ${sent?.sandbox_code &&
            html`<${Notice} kind="warn" data-sandbox-code=${sent.sandbox_code}>${t("sign.sandbox")} <strong class="num code">${sent.sandbox_code}</strong><//>`}
            <${Field} id=${`${id}-code`} label=${t("sign.code", { phone })} error=${error}>
              <input
                id=${`${id}-code`}
                ref=${codeInput}
                class="input input--code"
                type="text"
                name="code"
                inputmode="numeric"
                autocomplete="one-time-code"
                pattern="[0-9]*"
                maxlength=${CODE_DIGITS}
                value=${code}
                aria-invalid=${error ? "true" : null}
                aria-describedby=${error ? `${id}-code-error` : null}
                onInput=${onCode}
              />
            <//>
            <${Busy} busy=${busy} large type="submit" disabled=${code.length !== CODE_DIGITS}>${t("sign.in")}<//>
            <button type="button" class="link-button" disabled=${wait > 0 || busy} onClick=${send}>
              ${wait > 0 ? t("sign.resend.wait", { seconds: wait, n: wait }) : t("sign.resend")}
            </button>
          </form>`}
    </div>
  <//>`;
}
