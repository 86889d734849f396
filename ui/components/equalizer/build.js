// The equalizer's elements, built once per model and sweep.

class EqualizerBuilder extends EqualizerState {
  build() {
    const { columns } = this.data;
    this.watcher.disconnect();
    this.index = new Map(columns.map((c, i) => [c.id, i]));
    columns.forEach((column) => {
      column.swept = column.cells.filter((cell) => cell.length > 1 && cell[1] > 0);
      column.smallestPercent = smallestPercent(column);
    });
    const whole = columns.map((c) => c.units);
    this.base = { bytes: this.size("bytes", whole), params: this.size("params", whole), macs: this.size("macs", whole) };
    this.drawn = [];
    this.root.replaceChildren();
    this.buildFigures();
    this.grid = null;
    if (this.data.show_columns) {
      this.buildBar();
      this.buildGrid();
      this.buildKey();
      this.card = element(this.stage, "div", "card");
      this.card.hidden = true;
      this.watcher.observe(this.scroller);
    }
    this.liveRegion = element(this.root, "div", "hidden");
    this.liveRegion.setAttribute("aria-live", "polite");
  }

  buildFigures() {
    const box = element(this.root, "div", "figures");
    this.figures = {};
    const names = {
      bytes: "Memory", params: "Parameters", macs: "MACs per time step",
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
      "Drag a column; the hatched part is removed. Shift: all groups of its kind. Alt: its block. " +
      "Keys: arrows, Page Up and Down, Home, End; L locks, P paints.");
    element(bar, "div", "hint coarse", "Drag a column up or down; swipe sideways to see more. Tap the lock above a column to lock it.");
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
      paint: add("paint", "Paint across groups", "One stroke sets all groups that it crosses"),
      bytes: add("bytes", "Width: share of bytes", "Makes each column as wide as its share of the bytes, so that the hatched area is the memory saved"),
      kl: add("kl", "Heat: KL", "Colours by the change of the outputs instead of the accuracy drop"),
    };
  }

  flip(name) {
    switches[name] = !switches[name];
    this.buttons[name].setAttribute("aria-pressed", switches[name]);
    if (name === "kl") this.columns.forEach((parts, i) => this.paintHeat(i, parts));
    if (name === "kl") this.drawKey();
    this.root.classList.toggle("painting", switches.paint);
    this.layout();
  }

  buildGrid() {
    this.stage = element(this.root, "div", "stage");
    const frame = element(this.stage, "div", "frame");
    const axis = element(frame, "div", "axis");
    for (const percent of [0, 25, 50, 75, 100]) {
      element(axis, "span", "", `${percent}\u00a0%`).style.bottom = `${percent}%`;
    }
    this.scroller = element(frame, "div", "scroller");
    this.grid = element(this.scroller, "div", "grid");
    this.grid.setAttribute("role", "group");
    this.grid.setAttribute("aria-label", "Equalizer: percent removed of each channel group");
    this.columns = this.data.columns.map((column, i) => this.buildColumn(column, i));
    this.bands = [];
    this.data.columns.forEach((column, i) => {
      const last = this.bands.at(-1);
      if (last && last.name === column.block) last.end = i + 1;
      else this.bands.push({ name: column.block, start: i, end: i + 1 });
    });
    for (const band of this.bands) {
      band.box = element(this.grid, "div", "band");
      band.box.title = band.name;
      band.box.style.gridColumn = `${band.start + 1} / ${band.end + 1}`;
      if (band.start) this.columns[band.start].well.classList.add("seam");
    }
    this.root.classList.toggle("painting", switches.paint);
    this.listen();
  }

  buildColumn(column, i) {
    const box = element(this.grid, "div", "column");
    box.dataset.i = i;
    box.setAttribute("role", "slider");
    box.setAttribute("aria-orientation", "vertical");
    box.setAttribute("aria-label", `${column.block} \u00b7 ${column.title}`);
    box.setAttribute("aria-valuemin", 0);
    box.setAttribute("aria-valuemax", MAX_PERCENT);
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
    const parts = { box, lock, well, heat, cut, knob, tick };
    this.paintHeat(i, parts);
    return parts;
  }

  /** Draw a column's heat: a band per measured cell, patches for unswept and empty ranges. */
  paintHeat(i, parts) {
    const column = this.data.columns[i];
    for (const old of parts.well.querySelectorAll(".todo, .dead")) old.remove();
    const dead = column.reason ? 100 : column.smallestPercent > 2 ? column.smallestPercent : 0;
    const cells = column.cells.filter((cell) => cell.length === 1 || cell[1] > 0);
    const stops = [`transparent 0 ${dead}%`];
    const harmless = this.colour(0);
    cells.forEach((cell, at) => {
      const low = at ? 50 * (cells[at - 1][0] + cell[0]) : Math.max(dead, 50 * cell[0]);
      const high = at + 1 < cells.length ? 50 * (cell[0] + cells[at + 1][0]) : 100;
      if (!at && low > dead) stops.push(`${harmless} ${dead}% ${low}%`);
      if (cell.length > 1) {
        stops.push(`${this.colour(switches.kl ? cell[5] : cell[2])} ${low}% ${high}%`);
      } else {
        stops.push(`transparent ${low}% ${high}%`);
        this.patch(parts, "todo", low, high);
      }
    });
    if (!cells.length && !column.reason) this.patch(parts, "todo", dead, 100);
    if (dead) this.patch(parts, "dead", 0, dead);
    parts.heat.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
  }

  patch(parts, name, low, high) {
    const box = document.createElement("div");
    box.className = name;
    box.style.bottom = `${low}%`;
    box.style.height = `${high - low}%`;
    parts.heat.after(box);
  }

  /** Return the heat colour of a drop (pp) or KL (nats); a square root makes small costs visible. */
  colour(value) {
    const { heat } = this.data;
    const end = switches.kl ? heat.end.kl : heat.end.drop;
    const at = Math.sqrt(clamp(value / end, 0, 1));
    return `light-dark(${mix(heat.light, at)}, ${mix(heat.dark, at)})`;
  }

  buildKey() {
    this.key = element(this.root, "div", "key");
    this.drawKey();
  }

  drawKey() {
    this.key.replaceChildren();
    const { heat } = this.data;
    const end = switches.kl ? `\u2265 ${heat.end.kl} nat` : `\u2265 ${heat.end.drop} pp`;
    const item = (name, text) => {
      const box = element(this.key, "span", "item");
      element(element(box, "span", "swatch"), "i", name);
      element(box, "span", "", text);
    };
    const scale = element(this.key, "span", "item");
    element(scale, "span", "", switches.kl ? "KL when pruned alone: 0" : "Drop when pruned alone: 0");
    const ramp = element(scale, "span", "ramp");
    const steps = [0, 0.25, 0.5, 0.75, 1].map((at) => `light-dark(${mix(heat.light, at)}, ${mix(heat.dark, at)})`);
    ramp.style.background = `linear-gradient(to right, ${steps.join(", ")})`;
    element(scale, "span", "", end);
    item("cut", "removed");
    if (this.data.columns.some((c) => c.cells.length === 0 || c.cells.some((cell) => cell.length === 1))) {
      item("todo", "not swept yet");
    }
    item("dead", "too few channels to remove any at this ratio");
    this.area = element(this.key, "span", "item area");
  }
}
