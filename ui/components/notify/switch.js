// A switch that asks for the browser's permission to show notifications.

const KEY = "psvit-notify"; // notices.js reads it
const CHANGED = "psvit-notify-changed";
const DENIED =
  "This browser does not show notifications of this page. Allow them beside its address, then " +
  "switch this on again. Until then, a message on the page tells when a job ends.";
const IMPOSSIBLE =
  "This browser shows notifications only over https, or on the machine that runs the app. A " +
  "message on the page tells when a job ends.";
const ON = "Shown while a page of this app is open, in whichever tab.";
const begun = new WeakSet();

export default function ({ data, parentElement }) {
  if (begun.has(parentElement)) return;
  begun.add(parentElement);
  const box = parentElement.querySelector("input");
  const note = parentElement.querySelector(".note");
  parentElement.querySelector("span").textContent = data.label;
  const show = (text = "") => {
    box.checked = isOn();
    note.textContent = text || (box.checked ? ON : "");
  };
  if (!globalThis.isSecureContext || !("Notification" in globalThis)) {
    box.disabled = true;
    note.textContent = IMPOSSIBLE;
    return;
  }
  show();
  box.addEventListener("change", async () => {
    const granted = box.checked && (await Notification.requestPermission()) === "granted";
    const denied = box.checked && !granted;
    try {
      localStorage.setItem(KEY, granted ? "on" : "off");
    } catch {
      show(DENIED); // a browser that keeps nothing cannot remember the answer
      return;
    }
    show(denied ? DENIED : "");
    globalThis.dispatchEvent(new Event(CHANGED));
  });
}

function isOn() {
  try {
    return localStorage.getItem(KEY) === "on" && Notification.permission === "granted";
  } catch {
    return false;
  }
}
