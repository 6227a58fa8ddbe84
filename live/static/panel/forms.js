// A form of the panel: what was typed, what is wrong with it once someone tried to send it, the dialog around it.

import { useId, useState } from "preact/hooks";
import { Button, Dialog, Problem, html, t } from "./ui.js";

/** After the next paint, so that fields which the attempt marked are marked. */
export const focusFirstWrong = (within = "dialog") => requestAnimationFrame(() => document.querySelector(`${within} [aria-invalid='true']`)?.focus());

/**
 * `errorsOf(form)` names what is wrong by field; it is shown from the first attempt on. `sending(send)` handles a
 * submit: with something wrong it goes to the first such field, else it calls `send`.
 */
export function useForm(blank, errorsOf) {
  const [form, setForm] = useState(blank);
  const [tried, setTried] = useState(false);
  const errors = errorsOf(form);
  return {
    form,
    shown: tried ? errors : {},
    set: (change) => setForm((old) => ({ ...old, ...change })),
    clear() {
      setForm(blank);
      setTried(false);
    },
    sending: (send) => (event) => {
      event.preventDefault();
      setTried(true);
      if (Object.values(errors).some(Boolean)) focusFirstWrong();
      else send();
    },
  };
}

/** A dialog that is one form. `act` sends it (useAct); `does` is what its button says. */
export function FormDialog({ title, does, act, onSubmit, onClose, children }) {
  const id = useId();
  return html`
    <${Dialog}
      title=${title}
      onClose=${onClose}
      foot=${html`<${Problem} failure=${act.failure} onRetry=${act.failure?.unsure ? act.again : null} />
        <div class="row"><${Button} kind="primary" class="grow" busy=${act.busy} type="submit" form=${id}>${does}<//>
        <${Button} onClick=${onClose}>${t("cancel")}<//></div>`}
    >
      <form id=${id} class="stack" novalidate onSubmit=${onSubmit}>${children}</form>
    <//>
  `;
}
