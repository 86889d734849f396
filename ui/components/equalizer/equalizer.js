// The equalizer in the browser: it draws, edits, and computes sizes while the user drags.
//
// Streamlit calls the default function on every change of data, but its cleanup only at the end. So
// the state is kept by parent element. Edits are sent until Python acknowledges them. Until then
// they are shown on top of Python's values, so that none is lost or snaps back.

const views = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".eq");
  let view = views.get(parentElement);
  if (!view || view.root !== root) {
    view = new Equalizer(root);
    views.set(parentElement, view);
  }
  view.post = (message) => setTriggerValue("edit", message);
  view.update(data);
  return () => {
    view.close();
    views.delete(parentElement);
  };
}

class Equalizer extends EqualizerView {
  // ---- editing ---------------------------------------------------------------------------------

  editable(i) {
    return !this.values[i].locked && !this.data.columns[i].reason;
  }

  /** Return the columns that an edit of one changes: with Shift its kind, with Alt its block. */
  targets(i, event) {
    const { columns } = this.data;
    const own = columns[i];
    const together = event.shiftKey
      ? (c) => c.kind === own.kind
      : event.altKey ? (c) => c.block === own.block : (c) => c === own;
    return columns.map((_, j) => j).filter((j) => together(columns[j]) && this.editable(j));
  }

  set(indices, percent) {
    for (const i of indices) if (this.editable(i)) this.live.set(i, percent);
    this.scheduleDraw();
  }

  /** Send the current drag or run of key presses as an edit. */
  commit() {
    const percents = {};
    for (const [i, percent] of this.live) percents[this.data.columns[i].id] = percent;
    this.live.clear();
    if (Object.keys(percents).length) this.push({ percents, locks: {} });
    this.scheduleDraw();
  }

  push(change) {
    this.pending.push({ seq: ++this.seq, gesture: this.gesture, ...change });
    this.send();
  }

  send() {
    clearTimeout(this.resend);
    if (!this.pending.length) return;
    this.post({ sender: this.sender, weights: this.data.weights, edits: this.pending });
    this.resend = setTimeout(() => this.send(), RESEND_AFTER); // Python skips duplicates
  }

  toggleLock(i) {
    if (this.data.columns[i].reason) return;
    this.flushKeys();
    this.gesture++;
    this.push({ percents: {}, locks: { [this.data.columns[i].id]: !this.values[i].locked } });
    this.scheduleDraw();
  }

  focusColumn(i) {
    this.columns[this.current].box.tabIndex = -1;
    this.current = i;
    const { box } = this.columns[i];
    box.tabIndex = 0;
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** Show the column of a group that was chosen in the picture, where the focus stays. */
  pointAt(i) {
    if (i === undefined) return;
    this.columns[this.current].box.tabIndex = -1;
    this.current = i;
    const { box } = this.columns[i];
    box.tabIndex = 0;
    box.scrollIntoView({ block: "nearest", inline: "nearest" });
    this.show(i);
  }

  /** Tell the picture of the network which group is edited. */
  tellGroup(i) {
    const detail = { id: this.data.columns[i].id, from: "equalizer" };
    globalThis.dispatchEvent(new CustomEvent("psvit-group", { detail }));
  }

  listen() {
    const at = (event) => {
      const box = event.target.closest?.(".column");
      return box ? Number(box.dataset.i) : -1;
    };
    const grid = this.grid;
    grid.addEventListener("pointerdown", (event) => this.pointerDown(event, at(event)));
    grid.addEventListener("pointermove", (event) => this.pointerMove(event));
    grid.addEventListener("pointerup", (event) => this.pointerUp(event));
    grid.addEventListener("pointercancel", () => this.cancelDrag());
    grid.addEventListener("click", (event) => {
      if (event.target.closest(".lock")) this.toggleLock(at(event));
    });
    grid.addEventListener("pointerover", (event) => {
      if (event.pointerType === "mouse" && !this.drag && at(event) >= 0) this.show(at(event), 90);
    });
    grid.addEventListener("pointerleave", () => this.drag || this.hide());
    grid.addEventListener("keydown", (event) => this.keydown(event, at(event)));
    grid.addEventListener("focusin", (event) => {
      const i = at(event);
      if (i >= 0) this.tellGroup(i);
      if (i >= 0 && this.columns[i].box.matches(":focus-visible")) this.show(i);
    });
    grid.addEventListener("focusout", () => {
      this.flushKeys();
      this.hide();
    });
  }

  // ---- pointer ---------------------------------------------------------------------------------

  percentAt(event) {
    const well = this.drag.rect;
    const percent = (100 * (well.bottom - event.clientY + this.drag.grip)) / well.height;
    return Math.round(clamp(percent, 0, MAX_PERCENT));
  }

  pointerDown(event, i) {
    if (i < 0 || event.button !== 0 || event.target.closest(".lock")) return;
    this.flushKeys();
    const touch = event.pointerType === "touch";
    const rect = this.columns[i].well.getBoundingClientRect();
    const knob = rect.bottom - (rect.height * this.values[i].percent) / 100;
    const near = Math.abs(event.clientY - knob) <= 8;
    const grip = touch && !switches.paint ? event.clientY - knob : near ? event.clientY - knob : 0;
    this.drag = {
      i, rect, grip, touch, y: event.clientY, begun: !touch || switches.paint, last: i,
      edges: this.columns.map((c) => c.well.getBoundingClientRect().right),
    };
    if (!touch) this.focusColumn(i);
    this.gesture++;
    this.grid.setPointerCapture(event.pointerId);
    if (!touch) event.preventDefault();
    this.show(i);
    if (this.drag.begun && !near) this.stroke(event);
  }

  pointerMove(event) {
    if (!this.drag) return;
    if (!this.drag.begun) {
      if (Math.abs(event.clientY - this.drag.y) < DRAG_THRESHOLD) return;
      this.drag.begun = true;
    }
    this.stroke(event);
  }

  stroke(event) {
    const percent = this.percentAt(event);
    if (!switches.paint) return this.set(this.targets(this.drag.i, event), percent);
    const found = this.drag.edges.findIndex((edge) => event.clientX < edge);
    const to = found < 0 ? this.columns.length - 1 : found;
    const [low, high] = [Math.min(this.drag.last, to), Math.max(this.drag.last, to)];
    for (let i = low; i <= high; i++) this.set(this.targets(i, event), percent);
    this.drag.last = to;
    if (this.shown !== to) this.show(to);
  }

  pointerUp() {
    if (!this.drag) return;
    const { touch } = this.drag;
    this.drag = null;
    this.commit();
    this.layout();
    if (touch) this.hide();
  }

  cancelDrag() {
    if (!this.drag) return;
    this.drag = null;
    this.live.clear();
    this.hide();
    this.scheduleDraw();
  }

  // ---- keyboard --------------------------------------------------------------------------------

  keydown(event, i) {
    if (i < 0 || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") {
      this.cancelDrag();
      this.hide();
      return;
    }
    const last = this.columns.length - 1;
    const { percent } = this.values[i];
    const column = this.data.columns[i];
    const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const goal = {
      ArrowUp: () => nextPercent(column, percent, 1),
      ArrowDown: () => nextPercent(column, percent, -1),
      PageUp: () => clamp(Math.round(percent) + 10, 0, MAX_PERCENT),
      PageDown: () => clamp(Math.round(percent) - 10, 0, MAX_PERCENT),
      Home: () => 0,
      End: () => MAX_PERCENT,
    }[event.key];
    if (sideways && !event.altKey) {
      this.flushKeys();
      this.focusColumn(clamp(i + sideways, 0, last));
    } else if (goal) {
      this.pressKey(i, event, goal());
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

  pressKey(i, event, percent) {
    const targets = this.targets(i, event);
    const run = `${i}/${event.shiftKey}/${event.altKey}`;
    const now = performance.now();
    if (run !== this.keyRun || now - this.pressedAt > KEY_RUN) {
      this.flushKeys();
      this.gesture++;
    }
    this.keyRun = run;
    this.pressedAt = now;
    this.set(targets, percent);
    this.computeValues(); // the next key press starts here, even if no frame was drawn
    clearTimeout(this.keyTimer);
    this.keyTimer = setTimeout(() => this.flushKeys(), KEY_DELAY);
  }

  flushKeys() {
    clearTimeout(this.keyTimer);
    if (!this.drag && this.live.size) {
      this.commit();
      this.computeValues();
      this.layout();
    }
  }
}
