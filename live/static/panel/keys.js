// Keys of the desk. They never fire while somebody types, in a dialog, with Ctrl/Alt/⌘, or by holding down.

const TYPING = "input, textarea, select, [contenteditable=''], [contenteditable='true']";

/** The letter, digit or sign of the key; by its place on the board when an input method swallowed it. */
export function keyOf(event) {
  if (event.key && event.key.length === 1) return event.key;
  const match = /^(?:Key([A-Z])|Digit(\d))$/.exec(event.code || "");
  return match ? match[1] || match[2] : event.key;
}

export function typing(event) {
  const at = event.target instanceof Element ? event.target : document.activeElement;
  return Boolean(event.isComposing || (at && at.closest && at.closest(TYPING)));
}

/** Call `press(key, event)` for keys meant for the desk. Returns the function that stops listening. */
export function listen(press) {
  function onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    if (typing(event) || document.querySelector("dialog[open]")) return;
    press(keyOf(event), event);
  }
  document.addEventListener("keydown", onKey);
  return () => document.removeEventListener("keydown", onKey);
}
