// The equalizer in the browser: draws, edits, works out sizes in the frame of a drag.
//
// Streamlit calls the default function again with every change of data; its cleanup runs at the end
// only. So the state lives by parent element. An edit is a step; steps are sent until Python
// acknowledges them and lie on top of Python's values meanwhile, so that none is lost or snaps back.

const MOST = 95; // percent of a group that can be asked away
const SLOP = 5; // pixels a finger moves before it drags
const KEY_PAUSE = 140; // milliseconds after the last key press before it is sent
const PATIENCE = 1500; // milliseconds after which steps without an answer are sent again
const KEY_RUN = 900; // milliseconds between key presses of one run, which is one step to undo
const views = new WeakMap();
const switches = { paint: false, bytes: false, kl: false }; // outlive a page switch

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".eq");
  let view = views.get(parentElement);
  if (!view || view.root !== root) {
    view = new Equalizer(root);
    views.set(parentElement, view);
  }
  view.post = (message) => setTriggerValue("edit", message);
  view.take(data);
  return () => {
    view.close();
    views.delete(parentElement);
  };
}

function element(parent, tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text; // names come from checkpoints: never as HTML
  parent?.append(made);
  return made;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const integer = (value) => value.toLocaleString("en-US");
const signed = (text) => text.replace("-", "\u2212");
const percentText = (value, digits = 1) => signed(value.toFixed(digits)) + "\u00a0%";
const shareText = (value) => signed(String(Math.round(10 * value) / 10)) + "\u00a0%";
const pointsText = (value) => signed(value.toFixed(2).replace("-0.00", "0.00")) + "\u00a0pp";
const rangeText = (d) => signed(`${d.low.toFixed(2)} to ${d.high.toFixed(2)}`);
const megabytes = (bytes) => (bytes / 1e6).toFixed(2) + "\u00a0MB";

function countText(number) {
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number < limit) continue;
    const short = number / limit;
    return short.toFixed(short < 10 ? 2 : short < 100 ? 1 : 0) + "\u00a0" + letter;
  }
  return number.toFixed(0);
}

/** Units that a percentage removes: the rule of records.n_pruned. */
function unitsRemoved(column, percent) {
  const step = column.heads || 1;
  const removed = Math.floor((percent / 100) * column.units + 1e-9);
  return Math.min(removed - (removed % step), column.units - step);
}

/** The next percentage up or down that removes another number of units. */
function nextPercent(column, percent, direction) {
  const before = unitsRemoved(column, percent);
  if (direction > 0) {
    for (let p = Math.floor(percent) + 1; p <= MOST; p++) {
      if (unitsRemoved(column, p) > before) return p;
    }
    return MOST;
  }
  let p = Math.ceil(percent) - 1;
  while (p > 0 && unitsRemoved(column, p) >= before && before > 0) p--;
  while (p > 0 && unitsRemoved(column, p - 1) === unitsRemoved(column, p)) p--;
  return Math.max(p, 0);
}

class Equalizer {
  constructor(root) {
    this.root = root;
    this.sender = Math.random().toString(36).slice(2, 14);
    this.seq = 0;
    this.gesture = 0;
    this.pending = []; // steps that Python has not acknowledged
    this.live = new Map(); // column -> percent, of the drag or key run going on
    this.current = 0; // the column that Tab reaches
    this.drag = null;
    this.frame = 0;
    this.stamp = null;
    this.watcher = new ResizeObserver(() => this.layout());
    this.motion = matchMedia("(prefers-reduced-motion: reduce)");
    this.coarse = matchMedia("(pointer: coarse)");
    this.ruler = document.createElement("canvas").getContext("2d");
  }

  close() {
    this.flushKeys();
    this.watcher.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.cardTimer);
    clearTimeout(this.resend);
  }

  // ---- data ------------------------------------------------------------------------------------

  take(message) {
    const fixed = message.fixed ?? globalThis.psvitBoards?.get(message.stamp);
    if (!fixed) {
      const again = () => this.take(message); // its columns are still on their way
      globalThis.addEventListener("psvit-board", again, { once: true });
      return;
    }
    const data = { ...message, ...fixed };
    const other = this.data && this.data.weights !== data.weights;
    const stamp = `${data.stamp}/${data.board}`;
    const same = stamp === this.stamp;
    this.data = same ? { ...data, columns: this.data.columns } : data; // they carry what build() found
    if (other) {
      this.pending = [];
      this.live.clear();
      this.current = 0;
    }
    if (data.ack.sender === this.sender) {
      this.pending = this.pending.filter((step) => step.seq > data.ack.seq);
    }
    if (!this.pending.length) clearTimeout(this.resend);
    if (!same) this.build();
    this.stamp = stamp;
    this.settle();
    this.draw();
    if (!this.drag && !this.live.size) this.layout();
    const told = this.pending.length ? "" : this.told();
    if (told) this.voice.textContent = told;
  }

  /** What stands in each column now: Python's values, then the steps on their way, then the drag. */
  settle() {
    const { columns, values } = this.data;
    this.now = values.map(([percent, removed, locked]) => ({ percent, removed, locked: !!locked }));
    const put = (i, percent) => {
      this.now[i].percent = percent;
      this.now[i].removed = unitsRemoved(columns[i], percent);
    };
    for (const step of this.pending) {
      for (const [id, percent] of Object.entries(step.percents)) put(this.index.get(id), percent);
      for (const [id, on] of Object.entries(step.locks)) this.now[this.index.get(id)].locked = on;
    }
    for (const [i, percent] of this.live) put(i, percent);
  }

  get unsettled() {
    return this.pending.length > 0 || this.live.size > 0;
  }

  /** A sum of products of the widths that stay. */
  size(name, widths) {
    let sum = 0;
    for (const [factor, ...columns] of this.data.terms[name]) {
      let product = factor;
      for (const i of columns) product *= widths[i];
      sum += product;
    }
    return Math.round(sum);
  }

  widths(changed = -1, width = 0) {
    return this.data.columns.map((c, i) => (i === changed ? width : c.units - this.now[i].removed));
  }

  /** Drop of one column alone, percentage points, linear between cells; null before a sweep. */
  alone(i, removed) {
    const column = this.data.columns[i];
    if (removed === 0) return 0;
    let x0 = 0, y0 = 0, found = false;
    for (const [, units, drop] of column.swept) {
      const y = Math.max(drop, 0);
      found = true;
      if (removed <= units) return units === x0 ? y0 : y0 + ((y - y0) * (removed - x0)) / (units - x0);
      x0 = units;
      y0 = y;
    }
    return found ? y0 : null;
  }

  /** Bytes that removing all of each column takes away, given what the others lose.
   *
   * A tensor shrinks on several axes at once, so what is saved is shared between them: along the
   * straight way from the whole network to this plan (Simpson's rule is exact for up to 4 axes).
   * Shares times the fractions removed add up to the memory saved, to the byte. */
  shares() {
    const { columns, terms } = this.data;
    const gone = columns.map((c, i) => this.now[i].removed / c.units);
    const shares = new Array(columns.length).fill(0);
    for (const [factor, ...axes] of terms.bytes) {
      const whole = axes.reduce((product, i) => product * columns[i].units, factor);
      axes.forEach((i, at) => {
        let half = 1, full = 1;
        axes.forEach((j, other) => {
          if (other === at) return;
          half *= 1 - gone[j] / 2;
          full *= 1 - gone[j];
        });
        shares[i] += (whole * (1 + 4 * half + full)) / 6;
      });
    }
    return shares;
  }

  // ---- building --------------------------------------------------------------------------------

  build() {
    const { columns } = this.data;
    this.watcher.disconnect();
    this.index = new Map(columns.map((c, i) => [c.id, i]));
    columns.forEach((column) => {
      column.swept = column.cells.filter((cell) => cell.length > 1 && cell[1] > 0);
      column.least = 1; // the smallest percentage that removes a unit
      while (column.least < MOST && !unitsRemoved(column, column.least)) column.least++;
    });
    const whole = columns.map((c) => c.units);
    this.base = { bytes: this.size("bytes", whole), params: this.size("params", whole), macs: this.size("macs", whole) };
    this.drawn = [];
    this.root.replaceChildren();
    this.buildFigures();
    this.board = null;
    if (this.data.board) {
      this.buildBar();
      this.buildBoard();
      this.buildKey();
      this.card = element(this.stage, "div", "card");
      this.card.hidden = true;
      this.watcher.observe(this.scroller);
    }
    this.voice = element(this.root, "div", "hidden");
    this.voice.setAttribute("aria-live", "polite");
  }

  buildFigures() {
    const box = element(this.root, "div", "figures");
    this.figures = {};
    const names = {
      bytes: "Memory", params: "Parameters", macs: "MACs a time step",
      predicted: "Predicted drop", measured: "Measured drop",
    };
    for (const [name, title] of Object.entries(names)) {
      const figure = element(box, "div", `figure ${name}`);
      element(figure, "div", "name", title);
      const value = element(figure, "div", "value");
      let gauge = null;
      if (name === "bytes") {
        gauge = element(figure, "div", "gauge");
        this.gauge = { bar: element(gauge, "i"), mark: element(gauge, "b") };
      }
      this.figures[name] = { value, note: element(figure, "div", "note") };
    }
  }

  buildBar() {
    const bar = element(this.root, "div", "bar");
    element(bar, "div", "hint fine",
      "Drag a column: the hatched part is removed. Shift: all groups of its type. Alt: its block. " +
      "Keys: arrows, Page, Home, End; L locks, P paints.");
    element(bar, "div", "hint coarse", "Drag a column up or down; swipe sideways to see more. Tap the lock above it to keep it.");
    const box = element(bar, "div", "switches");
    const add = (name, text, help) => {
      const button = element(box, "button", "switch", text);
      button.type = "button";
      button.title = help;
      button.setAttribute("aria-pressed", switches[name]);
      button.addEventListener("click", () => this.flip(name));
      return button;
    };
    this.buttons = {
      paint: add("paint", "Paint across groups", "One stroke sets every group that it crosses"),
      bytes: add("bytes", "Width: share of bytes", "A column is as wide as the bytes that it holds, so that the hatched area is the memory saved"),
      kl: add("kl", "Heat: KL", "Colour by how far the outputs move instead of by the accuracy lost"),
    };
  }

  flip(name) {
    switches[name] = !switches[name];
    this.buttons[name].setAttribute("aria-pressed", switches[name]);
    if (name === "kl") this.columns.forEach((made, i) => this.paintHeat(i, made));
    if (name === "kl") this.drawKey();
    this.root.classList.toggle("painting", switches.paint);
    this.layout();
  }

  buildBoard() {
    this.stage = element(this.root, "div", "stage");
    const frame = element(this.stage, "div", "frame");
    const axis = element(frame, "div", "axis");
    for (const percent of [0, 25, 50, 75, 100]) {
      element(axis, "span", "", `${percent}\u00a0%`).style.bottom = `${percent}%`;
    }
    this.scroller = element(frame, "div", "scroller");
    this.board = element(this.scroller, "div", "board");
    this.board.setAttribute("role", "group");
    this.board.setAttribute("aria-label", "Equalizer: percent removed of each channel group");
    this.columns = this.data.columns.map((column, i) => this.buildColumn(column, i));
    this.bands = [];
    this.data.columns.forEach((column, i) => {
      const last = this.bands.at(-1);
      if (last && last.name === column.block) last.end = i + 1;
      else this.bands.push({ name: column.block, start: i, end: i + 1 });
    });
    for (const band of this.bands) {
      band.box = element(this.board, "div", "band");
      band.box.title = band.name;
      band.box.style.gridColumn = `${band.start + 1} / ${band.end + 1}`;
      if (band.start) this.columns[band.start].well.classList.add("seam");
    }
    this.root.classList.toggle("painting", switches.paint);
    this.listen();
  }

  buildColumn(column, i) {
    const box = element(this.board, "div", "column");
    box.dataset.i = i;
    box.setAttribute("role", "slider");
    box.setAttribute("aria-orientation", "vertical");
    box.setAttribute("aria-label", `${column.block} \u00b7 ${column.title}`);
    box.setAttribute("aria-valuemin", 0);
    box.setAttribute("aria-valuemax", MOST);
    box.tabIndex = i === this.current ? 0 : -1;
    if (column.reason) {
      box.classList.add("fixed");
      box.setAttribute("aria-disabled", "true");
    }
    const lock = element(box, "div", "lock");
    const well = element(box, "div", "well");
    const heat = element(well, "div", "heat");
    const cut = element(well, "div", "cut");
    const knob = element(well, "div", "knob");
    const tick = element(box, "div", "tick");
    element(tick, "span", "", column.short);
    const made = { box, lock, well, heat, cut, knob, tick };
    this.paintHeat(i, made);
    return made;
  }

  /** Bands of heat, one a measured cell; what is not swept yet, and what removes nothing, differ. */
  paintHeat(i, made) {
    const column = this.data.columns[i];
    for (const old of made.well.querySelectorAll(".todo, .dead")) old.remove();
    const dead = column.reason ? 100 : column.least > 2 ? column.least : 0;
    const cells = column.cells.filter((cell) => cell.length === 1 || cell[1] > 0);
    const stops = [`transparent 0 ${dead}%`];
    const paper = this.colour(0);
    cells.forEach((cell, at) => {
      const low = at ? 50 * (cells[at - 1][0] + cell[0]) : Math.max(dead, 50 * cell[0]);
      const high = at + 1 < cells.length ? 50 * (cell[0] + cells[at + 1][0]) : 100;
      if (!at && low > dead) stops.push(`${paper} ${dead}% ${low}%`);
      if (cell.length > 1) {
        stops.push(`${this.colour(switches.kl ? cell[5] : cell[2])} ${low}% ${high}%`);
      } else {
        stops.push(`transparent ${low}% ${high}%`);
        this.patch(made, "todo", low, high);
      }
    });
    if (!cells.length && !column.reason) this.patch(made, "todo", dead, 100);
    if (dead) this.patch(made, "dead", 0, dead);
    made.heat.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
  }

  patch(made, name, low, high) {
    const box = document.createElement("div");
    box.className = name;
    box.style.bottom = `${low}%`;
    box.style.height = `${high - low}%`;
    made.heat.after(box);
  }

  /** The heat colour of a drop (pp) or KL (nats): square root, so that small costs show. */
  colour(value) {
    const { looks } = this.data;
    const end = switches.kl ? looks.end.kl : looks.end.drop;
    const at = Math.sqrt(clamp(value / end, 0, 1));
    return `light-dark(${mix(looks.light, at)}, ${mix(looks.dark, at)})`;
  }

  buildKey() {
    this.key = element(this.root, "div", "key");
    this.drawKey();
  }

  drawKey() {
    this.key.replaceChildren();
    const { looks } = this.data;
    const end = switches.kl ? `\u2265 ${looks.end.kl} nat` : `\u2265 ${looks.end.drop} pp`;
    const item = (name, text) => {
      const box = element(this.key, "span", "item");
      element(element(box, "span", "swatch"), "i", name);
      element(box, "span", "", text);
    };
    const heat = element(this.key, "span", "item");
    element(heat, "span", "", switches.kl ? "KL when pruned alone: 0" : "Drop when pruned alone: 0");
    const ramp = element(heat, "span", "ramp");
    const steps = [0, 0.25, 0.5, 0.75, 1].map((at) => `light-dark(${mix(looks.light, at)}, ${mix(looks.dark, at)})`);
    ramp.style.background = `linear-gradient(to right, ${steps.join(", ")})`;
    element(heat, "span", "", end);
    item("cut", "removed");
    if (this.data.columns.some((c) => c.cells.length === 0 || c.cells.some((cell) => cell.length === 1))) {
      item("todo", "not swept yet");
    }
    item("dead", "removes nothing: not safe, just empty");
    this.area = element(this.key, "span", "item area");
  }

  // ---- layout ----------------------------------------------------------------------------------

  layout() {
    if (!this.board || this.drag || !this.scroller.clientWidth) return;
    const room = this.scroller.clientWidth - 1;
    const n = this.columns.length;
    const fine = switches.bytes ? 6 : 12;
    const least = this.coarse.matches ? 24 : fine;
    let pixels = new Array(n).fill(Math.max(least, room / n));
    if (switches.bytes) pixels = fill(this.shares(), room, least);
    const template = pixels.map((p) => `${p.toFixed(2)}px`).join(" ");
    if (template === this.template && this.board.style.gridTemplateColumns) return this.drawArea();
    const moved = this.template !== undefined && !this.motion.matches;
    this.board.classList.toggle("easing", moved);
    this.board.style.gridTemplateColumns = template;
    this.template = template;
    this.ruler.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    const fits = this.data.columns.every((c, i) => this.ruler.measureText(c.short).width <= pixels[i] - 8);
    const longest = Math.max(...this.data.columns.map((c) => this.ruler.measureText(c.short).width));
    this.root.classList.toggle("flat", fits);
    this.root.style.setProperty("--tick", `${Math.min(Math.ceil(longest) + 16, 80)}px`);
    this.columns.forEach((made, i) => made.box.classList.toggle("narrow", pixels[i] < 11));
    for (const band of this.bands) {
      const width = pixels.slice(band.start, band.end).reduce((a, b) => a + b, 0) - 6;
      band.box.textContent = shortest(band.name).find((t) => this.ruler.measureText(t).width <= width) || "";
    }
    this.drawArea();
  }

  drawArea() {
    const saved = this.base.bytes - this.size("bytes", this.widths());
    this.area.textContent = switches.bytes ? `hatched area: ${megabytes(saved)} saved` : "";
  }

  // ---- drawing ---------------------------------------------------------------------------------

  later() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.settle();
      this.draw();
    });
  }

  draw() {
    this.drawFigures();
    if (!this.board) return;
    this.now.forEach((state, i) => {
      const live = this.live.has(i);
      const mark = `${state.percent}/${state.removed}/${state.locked}/${live}`;
      if (this.drawn[i] === mark) return;
      this.drawn[i] = mark;
      this.drawColumn(i, state, live);
    });
    if (this.shown !== undefined && !this.card.hidden) this.fillCard(this.shown);
    if (switches.bytes) this.drawArea();
  }

  drawColumn(i, state, live) {
    const column = this.data.columns[i];
    const { box, cut, knob } = this.columns[i];
    knob.style.bottom = `${state.percent}%`;
    cut.style.height = `${(100 * state.removed) / column.units}%`;
    box.classList.toggle("locked", state.locked);
    box.classList.toggle("live", live);
    box.classList.toggle("pruned", state.removed > 0);
    box.setAttribute("aria-valuenow", Math.round(state.percent));
    box.setAttribute("aria-valuetext", this.spoken(i, state));
    box.toggleAttribute("aria-readonly", false);
    if (state.locked) box.setAttribute("aria-readonly", "true");
  }

  spoken(i, state) {
    const column = this.data.columns[i];
    if (column.reason) return `cannot be pruned: ${column.reason}`;
    const parts = [`${Math.round(state.percent)} percent`, `${state.removed} of ${column.units} units removed`];
    const alone = this.alone(i, state.removed);
    if (state.percent > 0 && state.removed === 0) parts.push("removes nothing");
    else if (alone === null) parts.push("not swept yet");
    else if (state.removed) parts.push(`alone ${alone.toFixed(2)} points${this.noisy(i, state.percent) ? ", within noise" : ""}`);
    if (state.locked) parts.push("locked");
    return parts.join(", ");
  }

  nearest(i, percent) {
    const { swept } = this.data.columns[i];
    let best = null;
    for (const cell of swept) {
      if (!best || Math.abs(100 * cell[0] - percent) < Math.abs(100 * best[0] - percent)) best = cell;
    }
    return best;
  }

  noisy(i, percent) {
    const cell = this.nearest(i, percent);
    return cell !== null && cell[3] <= 0 && cell[4] >= 0;
  }

  drawFigures() {
    const { predicted, measured, measuring, budget } = this.data;
    const widths = this.widths();
    const bytes = this.size("bytes", widths);
    const limit = this.base.bytes * (1 - budget);
    this.figures.bytes.value.textContent = megabytes(bytes);
    this.gauge.bar.style.width = `${(100 * bytes) / this.base.bytes}%`;
    this.gauge.mark.style.left = `${100 * (1 - budget)}%`;
    const met = bytes <= limit * (1 + 1e-9);
    const over = `${((bytes - limit) / 1e6).toFixed(2)}\u00a0MB over budget`;
    this.tell("bytes", `${change(bytes, this.base.bytes)} \u00b7 ${met ? "budget met" : over}`, met ? "met" : "over");
    for (const name of ["params", "macs"]) {
      const size = this.size(name, widths);
      this.figures[name].value.textContent = name === "params" ? integer(size) : countText(size);
      this.tell(name, change(size, this.base[name]));
    }
    const value = this.figures.predicted.value;
    if (!predicted) {
      value.textContent = "no sweep";
      this.tell("predicted", "a finished sweep predicts it");
    } else if (this.unsettled) {
      value.textContent = `\u2248 ${pointsText(this.estimate())}`;
      this.tell("predicted", "working out its interval");
    } else {
      value.textContent = pointsText(predicted.value);
      this.tell("predicted", predicted.empty ? "nothing is removed" : `expected ${rangeText(predicted)}`);
    }
    value.classList.toggle("word", !predicted);
    const shown = this.unsettled ? null : measured || measuring;
    this.figures.measured.value.classList.toggle("word", !shown);
    this.figures.measured.value.textContent = shown ? pointsText(shown.value) : "not measured";
    this.tell("measured", !shown ? "" : measured
      ? `95 %: ${rangeText(shown)}`
      : `${rangeText(shown)}, ${shown.images} images so far`);
  }

  tell(name, text, kind = "") {
    const { note } = this.figures[name];
    note.textContent = text;
    note.title = text;
    note.className = `note ${kind}`;
  }

  /** Python's prediction, moved by what the columns' own drops say; until Python answers. */
  estimate() {
    let sum = this.data.predicted.value;
    this.data.values.forEach(([, removed], i) => {
      if (removed === this.now[i].removed) return;
      const more = (this.alone(i, this.now[i].removed) ?? 0) - (this.alone(i, removed) ?? 0);
      sum += this.data.calibration * more;
    });
    return Math.min(Math.max(sum, 0), this.data.most);
  }

  told() {
    const { predicted } = this.data;
    const bytes = this.size("bytes", this.widths());
    const drop = predicted ? `, predicted drop ${pointsText(predicted.value)}` : "";
    return `Memory ${megabytes(bytes)}, ${change(bytes, this.base.bytes)}${drop}`;
  }

  // ---- the card beside a column ----------------------------------------------------------------

  show(i, wait = 0) {
    clearTimeout(this.cardTimer);
    this.cardTimer = setTimeout(() => {
      this.shown = i;
      this.fillCard(i);
      this.card.hidden = false;
      const column = this.columns[i].well.getBoundingClientRect();
      const stage = this.stage.getBoundingClientRect();
      const width = this.card.offsetWidth;
      const right = column.right - stage.left + 12;
      const left = column.left - stage.left - width - 12;
      const place = right + width <= stage.width || left < 0 ? right : left;
      this.card.style.left = `${clamp(place, 0, Math.max(stage.width - width, 0))}px`;
      this.card.style.top = "24px";
    }, wait);
  }

  hide() {
    clearTimeout(this.cardTimer);
    this.shown = undefined;
    if (this.card) this.card.hidden = true;
  }

  fillCard(i) {
    const column = this.data.columns[i];
    const state = this.now[i];
    const card = this.card;
    card.replaceChildren();
    element(card, "div", "head", `${column.block} \u00b7 ${column.title}`);
    const row = (name, text) => {
      const line = element(card, "div", "row");
      element(line, "span", "", name);
      element(line, "span", "", text);
    };
    const warn = (text) => element(card, "div", "warn", text);
    if (column.reason) {
      warn(`Cannot be pruned: ${column.reason}.`);
    } else {
      row("Removed", `${shareText(state.percent)}: ${state.removed} of ${column.units} units`);
      const reached = (100 * state.removed) / column.units;
      if (state.removed && Math.abs(reached - state.percent) > 0.05) row("Reached", percentText(reached));
      if (state.percent > 0 && !state.removed) {
        warn(`Removes nothing: ${column.least}\u00a0% is the least that removes a unit${column.heads ? " of each head" : ""}.`);
      }
      const saved = this.size("bytes", this.widths(i, column.units)) - this.size("bytes", this.widths());
      if (state.removed) row("Saves in this plan", saved >= 1e5 ? megabytes(saved) : `${(saved / 1e3).toFixed(1)}\u00a0kB`);
      this.cardDrop(i, state, row);
      if (column.heads) row("Heads", `${column.heads}, all keep the same number`);
      if (state.locked) row("Locked", "drags and planners leave it");
    }
    const layers = element(card, "div", "layers");
    element(layers, "div", "", "Shrinks with it:");
    for (const name of column.coupled) element(layers, "div", "", name);
  }

  cardDrop(i, state, row) {
    const cell = this.nearest(i, state.percent);
    if (!cell) return row("Sensitivity", "not swept yet");
    if (state.removed) row("Drop alone, here", `\u2248 ${pointsText(this.alone(i, state.removed))}`);
    const range = `${pointsText(cell[2])} (${rangeText({ low: cell[3], high: cell[4] })})`;
    row(`Measured at ${shareText(100 * cell[0])}`, range);
    if (this.noisy(i, state.percent)) row("", "within noise: no drop was shown");
    row("KL there", `${cell[5].toFixed(4)} nats`);
  }

  // ---- editing ---------------------------------------------------------------------------------

  free(i) {
    return !this.now[i].locked && !this.data.columns[i].reason;
  }

  /** The columns that an edit of one changes: with Shift all of its type, with Alt its block. */
  mates(i, event) {
    const { columns } = this.data;
    const own = columns[i];
    const together = event.shiftKey
      ? (c) => c.kind === own.kind
      : event.altKey ? (c) => c.block === own.block : (c) => c === own;
    return columns.map((_, j) => j).filter((j) => together(columns[j]) && this.free(j));
  }

  set(indices, percent) {
    for (const i of indices) if (this.free(i)) this.live.set(i, percent);
    this.later();
  }

  /** Make the drag or key run a step on its way. */
  commit() {
    const percents = {};
    for (const [i, percent] of this.live) percents[this.data.columns[i].id] = percent;
    this.live.clear();
    if (Object.keys(percents).length) this.push({ percents, locks: {} });
    this.later();
  }

  push(change) {
    this.pending.push({ seq: ++this.seq, gesture: this.gesture, ...change });
    this.send();
  }

  send() {
    clearTimeout(this.resend);
    if (!this.pending.length) return;
    this.post({ sender: this.sender, weights: this.data.weights, steps: this.pending });
    this.resend = setTimeout(() => this.send(), PATIENCE); // done twice is done once: they have numbers
  }

  toggleLock(i) {
    if (this.data.columns[i].reason) return;
    this.flushKeys();
    this.gesture++;
    this.push({ percents: {}, locks: { [this.data.columns[i].id]: !this.now[i].locked } });
    this.later();
  }

  focusColumn(i) {
    this.columns[this.current].box.tabIndex = -1;
    this.current = i;
    const { box } = this.columns[i];
    box.tabIndex = 0;
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  listen() {
    const at = (event) => {
      const box = event.target.closest?.(".column");
      return box ? Number(box.dataset.i) : -1;
    };
    const board = this.board;
    board.addEventListener("pointerdown", (event) => this.down(event, at(event)));
    board.addEventListener("pointermove", (event) => this.move(event));
    board.addEventListener("pointerup", (event) => this.up(event));
    board.addEventListener("pointercancel", () => this.abandon());
    board.addEventListener("click", (event) => {
      if (event.target.closest(".lock")) this.toggleLock(at(event));
    });
    board.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && !this.drag && at(event) >= 0) this.show(at(event), 90);
    });
    board.addEventListener("pointerleave", () => this.drag || this.hide());
    board.addEventListener("keydown", (event) => this.keydown(event, at(event)));
    board.addEventListener("focusin", (event) => {
      const i = at(event);
      if (i >= 0 && this.columns[i].box.matches(":focus-visible")) this.show(i);
    });
    board.addEventListener("focusout", () => {
      this.flushKeys();
      this.hide();
    });
  }

  // ---- pointer ---------------------------------------------------------------------------------

  percentAt(event) {
    const well = this.drag.rect;
    const percent = (100 * (well.bottom - event.clientY + this.drag.grip)) / well.height;
    return Math.round(clamp(percent, 0, MOST));
  }

  down(event, i) {
    if (i < 0 || event.button !== 0 || event.target.closest(".lock")) return;
    this.flushKeys();
    const touch = event.pointerType === "touch";
    const rect = this.columns[i].well.getBoundingClientRect();
    const knob = rect.bottom - (rect.height * this.now[i].percent) / 100;
    const near = Math.abs(event.clientY - knob) <= 8;
    const grip = touch && !switches.paint ? event.clientY - knob : near ? event.clientY - knob : 0;
    this.drag = {
      i, rect, grip, touch, y: event.clientY, begun: !touch || switches.paint, last: i,
      edges: this.columns.map((c) => c.well.getBoundingClientRect().right),
    };
    if (!touch) this.focusColumn(i);
    this.gesture++;
    this.board.setPointerCapture(event.pointerId);
    if (!touch) event.preventDefault();
    this.show(i);
    if (this.drag.begun && !near) this.stroke(event);
  }

  move(event) {
    if (!this.drag) return;
    if (!this.drag.begun) {
      if (Math.abs(event.clientY - this.drag.y) < SLOP) return;
      this.drag.begun = true;
    }
    this.stroke(event);
  }

  stroke(event) {
    const percent = this.percentAt(event);
    if (!switches.paint) return this.set(this.mates(this.drag.i, event), percent);
    const found = this.drag.edges.findIndex((edge) => event.clientX < edge);
    const to = found < 0 ? this.columns.length - 1 : found;
    const [low, high] = [Math.min(this.drag.last, to), Math.max(this.drag.last, to)];
    for (let i = low; i <= high; i++) this.set(this.mates(i, event), percent);
    this.drag.last = to;
    if (this.shown !== to) this.show(to);
  }

  up() {
    if (!this.drag) return;
    const { touch } = this.drag;
    this.drag = null;
    this.commit();
    this.layout();
    if (touch) this.hide();
  }

  abandon() {
    if (!this.drag) return;
    this.drag = null;
    this.live.clear();
    this.hide();
    this.later();
  }

  // ---- keyboard --------------------------------------------------------------------------------

  keydown(event, i) {
    if (i < 0 || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") {
      this.abandon();
      this.hide();
      return;
    }
    const last = this.columns.length - 1;
    const { percent } = this.now[i];
    const column = this.data.columns[i];
    const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const goal = {
      ArrowUp: () => nextPercent(column, percent, 1),
      ArrowDown: () => nextPercent(column, percent, -1),
      PageUp: () => clamp(Math.round(percent) + 10, 0, MOST),
      PageDown: () => clamp(Math.round(percent) - 10, 0, MOST),
      Home: () => 0,
      End: () => MOST,
    }[event.key];
    if (sideways && !event.altKey) {
      this.flushKeys();
      this.focusColumn(clamp(i + sideways, 0, last));
    } else if (goal) {
      this.press(i, event, goal());
    } else if (event.key.toLowerCase() === "l" && !event.altKey) {
      this.toggleLock(i);
    } else if (event.key.toLowerCase() === "p" && !event.altKey) {
      this.flip("paint");
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  press(i, event, percent) {
    const mates = this.mates(i, event);
    const run = `${i}/${event.shiftKey}/${event.altKey}`;
    const now = performance.now();
    if (run !== this.run || now - this.pressed > KEY_RUN) {
      this.flushKeys();
      this.gesture++;
    }
    this.run = run;
    this.pressed = now;
    this.set(mates, percent);
    this.settle(); // the next key press goes on from here, whether a frame was drawn or not
    clearTimeout(this.keyTimer);
    this.keyTimer = setTimeout(() => this.flushKeys(), KEY_PAUSE);
  }

  flushKeys() {
    clearTimeout(this.keyTimer);
    if (!this.drag && this.live.size) {
      this.commit();
      this.settle();
      this.layout();
    }
  }
}

/** Colour at a place of a scale of evenly spaced stops. */
function mix(stops, at) {
  const place = at * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const parts = (text) => [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
  const [from, to] = [parts(stops[low]), parts(stops[low + 1])];
  return `rgb(${from.map((v, k) => Math.round(v + (to[k] - v) * (place - low))).join(" ")})`;
}

/** Widths in proportion to shares that fill the room; none below the least. */
function fill(shares, room, least) {
  const total = Math.max(room, least * shares.length);
  const small = new Set();
  for (;;) {
    const left = total - least * small.size;
    const sum = shares.reduce((s, share, i) => (small.has(i) ? s : s + share), 0);
    const scale = sum ? left / sum : 0;
    const more = shares.findIndex((share, i) => !small.has(i) && share * scale < least);
    if (more < 0) return shares.map((share, i) => (small.has(i) ? least : share * scale));
    small.add(more);
  }
}

/** A block's name, then shorter ways to say it. */
function shortest(name) {
  const [first, ...rest] = name.split(" ");
  const number = rest.join(" ");
  return /\d/.test(number) ? [name, `${first[0]}${number}`, number] : [name, first];
}

function change(part, whole) {
  return percentText(100 * (part / whole - 1)).replace(/^\u22120\.0/, "0.0");
}
