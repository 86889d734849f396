// Constants, text formats and small functions of the equalizer.
//
// The files are joined to one module in the order of SCRIPTS in __init__.py: Streamlit takes a
// component's JavaScript as one text.

const MAX_PERCENT = 95; // of a group that can be requested
const DRAG_THRESHOLD = 5; // pixels a finger moves before a drag starts
const KEY_DELAY = 140; // milliseconds after the last key press before it is sent
const KEY_RUN = 900; // longest gap between key presses that are undone together, milliseconds
const RESEND_AFTER = 1500; // milliseconds without an answer after which edits are sent again
const switches = { paint: false, bytes: false, kl: false }; // survive a page switch

function element(parent, tag, name, text) {
  const created = document.createElement(tag);
  if (name) created.className = name;
  if (text !== undefined) created.textContent = text; // names come from checkpoints: never as HTML
  parent?.append(created);
  return created;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const integer = (value) => value.toLocaleString("en-US");
const signed = (text) => text.replace("-", "\u2212");
const percentText = (value, digits = 1) => signed(value.toFixed(digits)) + "\u00a0%";
const shareText = (value) => signed(String(Math.round(10 * value) / 10)) + "\u00a0%";
const pointsText = (value) => signed(value.toFixed(2).replace("-0.00", "0.00")) + "\u00a0pp";
const rangeText = (d) => signed(`${d.low.toFixed(2)} to ${d.high.toFixed(2)}`);
const megabytes = (bytes) => (bytes / 1e6).toFixed(2) + "\u00a0MB";

/** Format a large count with a unit prefix, as formats.short_count does. */
function countText(number) {
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number < limit) continue;
    const short = number / limit;
    return short.toFixed(short < 10 ? 2 : short < 100 ? 1 : 0) + "\u00a0" + letter;
  }
  return number.toFixed(0);
}

/** Return the units that a percentage removes, as records.n_pruned does. */
function unitsRemoved(column, percent) {
  const step = column.heads || 1;
  const removed = Math.floor((percent / 100) * column.units + 1e-9);
  return Math.min(removed - (removed % step), column.units - step);
}

/** Return the smallest percentage that removes a unit. */
function smallestPercent(column) {
  let percent = 1;
  while (percent < MAX_PERCENT && !unitsRemoved(column, percent)) percent++;
  return percent;
}

/** Return the next percentage up or down that removes a different number of units. */
function nextPercent(column, percent, direction) {
  const before = unitsRemoved(column, percent);
  if (direction > 0) {
    for (let p = Math.floor(percent) + 1; p <= MAX_PERCENT; p++) {
      if (unitsRemoved(column, p) > before) return p;
    }
    return MAX_PERCENT;
  }
  let p = Math.ceil(percent) - 1;
  while (p > 0 && unitsRemoved(column, p) >= before && before > 0) p--;
  while (p > 0 && unitsRemoved(column, p - 1) === unitsRemoved(column, p)) p--;
  return Math.max(p, 0);
}

/** Return the colour at a position, 0 to 1, of a scale of evenly spaced stops. */
function mix(stops, at) {
  const place = at * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const parts = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
  const [from, to] = [parts(stops[low]), parts(stops[low + 1])];
  return `rgb(${from.map((v, k) => Math.round(v + (to[k] - v) * (place - low))).join(" ")})`;
}

/** Return widths proportional to shares that fill the space, none below a minimum. */
function fitWidths(shares, space, minimum) {
  const total = Math.max(space, minimum * shares.length);
  const small = new Set();
  for (;;) {
    const rest = total - minimum * small.size;
    const sum = shares.reduce((s, share, i) => (small.has(i) ? s : s + share), 0);
    const scale = sum ? rest / sum : 0;
    const next = shares.findIndex((share, i) => !small.has(i) && share * scale < minimum);
    if (next < 0) return shares.map((share, i) => (small.has(i) ? minimum : share * scale));
    small.add(next);
  }
}

/** Return a block's name, then shorter forms of it. */
function abbreviations(name) {
  const [first, ...rest] = name.split(" ");
  const number = rest.join(" ");
  return /\d/.test(number) ? [name, `${first[0]}${number}`, number] : [name, first];
}

/** Return the change from whole to part as text, without the sign of a rounded zero. */
function relativeChange(part, whole) {
  return percentText(100 * (part / whole - 1)).replace(/^\u22120\.0/, "0.0");
}
