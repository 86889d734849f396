// Shows a notification of the browser for every job that has ended, if the user asked for it.

const KEY = "psvit-notify"; // in the browser's storage; switch.js writes it
const CHANGED = "psvit-notify-changed"; // event: the switch was used
const shown = (globalThis.psvitNotices ??= new Set()); // each once in this page
const mounted = new WeakMap();
let impossible = false; // phones only show notifications of installed apps

export default function ({ data, parentElement, setStateValue }) {
  let state = mounted.get(parentElement);
  if (!state) {
    state = { report: () => {} };
    state.listener = () => state.report();
    for (const name of [CHANGED, "storage"]) globalThis.addEventListener(name, state.listener);
    mounted.set(parentElement, state);
  }
  let known = data.allowed;
  state.report = () => {
    const now = allowed();
    if (now !== known) setStateValue("allowed", now);
    known = now;
  };
  state.report();
  if (allowed()) for (const notice of data.notices) show(notice);
  state.report(); // it may have turned out to be impossible
  return () => {
    for (const name of [CHANGED, "storage"]) globalThis.removeEventListener(name, state.listener);
    mounted.delete(parentElement);
  };
}

function allowed() {
  try {
    return !impossible && localStorage.getItem(KEY) === "on" && Notification.permission === "granted";
  } catch {
    return false; // without storage or notifications
  }
}

function show({ id, title, text }) {
  if (shown.has(id)) return;
  shown.add(id);
  try {
    // The tag makes several tabs of this browser show it once.
    const icon = document.querySelector('link[rel~="icon"]')?.href;
    const notification = new Notification(title, { body: text, tag: id, icon });
    notification.onclick = () => {
      globalThis.focus();
      notification.close();
    };
  } catch {
    impossible = true;
  }
}
