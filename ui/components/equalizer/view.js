// The equalizer's layout and drawing.

class EqualizerView extends EqualizerBuilder {
  // ---- layout ----------------------------------------------------------------------------------

  layout() {
    if (!this.grid || this.drag || !this.scroller.clientWidth) return;
    const space = this.scroller.clientWidth - 1;
    const n = this.columns.length;
    const fine = switches.bytes ? 6 : 12;
    const minimum = this.coarse.matches ? 24 : fine;
    let pixels = new Array(n).fill(Math.max(minimum, space / n));
    if (switches.bytes) pixels = fitWidths(this.shares(), space, minimum);
    const template = pixels.map((p) => `${p.toFixed(2)}px`).join(" ");
    if (template === this.template && this.grid.style.gridTemplateColumns) return this.drawArea();
    const moved = this.template !== undefined && !this.motion.matches;
    this.grid.classList.toggle("easing", moved);
    this.grid.style.gridTemplateColumns = template;
    this.template = template;
    this.columns.forEach((parts, i) => parts.box.classList.toggle("narrow", pixels[i] < 11));
    this.layoutLabels(pixels);
    this.drawArea();
  }

  /** Turn or shorten the labels of columns and blocks to fit. */
  layoutLabels(pixels) {
    this.ruler.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    const fits = this.data.columns.every((c, i) => this.ruler.measureText(c.short).width <= pixels[i] - 8);
    const longest = Math.max(...this.data.columns.map((c) => this.ruler.measureText(c.short).width));
    this.root.classList.toggle("flat", fits);
    this.root.style.setProperty("--tick", `${Math.min(Math.ceil(longest) + 16, 80)}px`);
    for (const band of this.bands) {
      const width = pixels.slice(band.start, band.end).reduce((a, b) => a + b, 0) - 6;
      band.box.textContent = abbreviations(band.name).find((t) => this.ruler.measureText(t).width <= width) || "";
    }
  }

  drawArea() {
    const saved = this.base.bytes - this.size("bytes", this.widths());
    this.area.textContent = switches.bytes ? `hatched area: ${megabytes(saved)} saved` : "";
  }

  // ---- drawing ---------------------------------------------------------------------------------

  scheduleDraw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.computeValues();
      this.draw();
    });
  }

  draw() {
    this.drawFigures();
    if (!this.grid) return;
    this.values.forEach((state, i) => {
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
    box.setAttribute("aria-valuetext", this.valueText(i, state));
    box.toggleAttribute("aria-readonly", false);
    if (state.locked) box.setAttribute("aria-readonly", "true");
  }

  /** Return a column's state for screen readers. */
  valueText(i, state) {
    const column = this.data.columns[i];
    if (column.reason) return `cannot be pruned: ${column.reason}`;
    const parts = [`${Math.round(state.percent)} percent`, `${state.removed} of ${column.units} units removed`];
    const alone = this.groupDrop(i, state.removed);
    if (state.percent > 0 && state.removed === 0) parts.push("removes nothing");
    else if (alone === null) parts.push("not swept yet");
    else if (state.removed) parts.push(`alone ${alone.toFixed(2)} points${this.withinNoise(i, state.percent) ? ", within noise" : ""}`);
    if (state.locked) parts.push("locked");
    return parts.join(", ");
  }

  /** Return the measured cell whose ratio is closest; null before a sweep. */
  nearestCell(i, percent) {
    const { swept } = this.data.columns[i];
    let best = null;
    for (const cell of swept) {
      if (!best || Math.abs(100 * cell[0] - percent) < Math.abs(100 * best[0] - percent)) best = cell;
    }
    return best;
  }

  withinNoise(i, percent) {
    const cell = this.nearestCell(i, percent);
    return cell !== null && cell[3] <= 0 && cell[4] >= 0;
  }

  drawFigures() {
    this.drawSizes();
    this.drawDrops();
  }

  drawSizes() {
    const { budget } = this.data;
    const widths = this.widths();
    const bytes = this.size("bytes", widths);
    const limit = this.base.bytes * (1 - budget);
    this.figures.bytes.value.textContent = megabytes(bytes);
    this.gauge.bar.style.width = `${(100 * bytes) / this.base.bytes}%`;
    this.gauge.mark.style.left = `${100 * (1 - budget)}%`;
    const met = bytes <= limit * (1 + 1e-9);
    const over = `${((bytes - limit) / 1e6).toFixed(2)}\u00a0MB over budget`;
    this.setNote("bytes", `${relativeChange(bytes, this.base.bytes)} \u00b7 ${met ? "budget met" : over}`, met ? "met" : "over");
    for (const name of ["params", "macs"]) {
      const size = this.size(name, widths);
      this.figures[name].value.textContent = name === "params" ? integer(size) : countText(size);
      this.setNote(name, relativeChange(size, this.base[name]));
    }
  }

  drawDrops() {
    const { predicted, measured, live } = this.data;
    const measuring = (live && this.progress?.job === live && this.progress.partial) || this.data.measuring;
    const value = this.figures.predicted.value;
    if (!predicted) {
      value.textContent = "no sweep";
      this.setNote("predicted", "needs a finished sweep");
    } else if (this.unsettled) {
      value.textContent = `\u2248 ${pointsText(this.estimate())}`;
      this.setNote("predicted", "computing the interval");
    } else {
      value.textContent = pointsText(predicted.value);
      this.setNote("predicted", predicted.empty ? "nothing removed" : `expected ${rangeText(predicted)}`);
    }
    value.classList.toggle("word", !predicted);
    const shown = this.unsettled ? null : measured || measuring;
    this.figures.measured.value.classList.toggle("word", !shown);
    const none = live || (this.unsettled && this.data.measures) ? "measuring" : "not measured";
    this.figures.measured.value.textContent = shown ? pointsText(shown.value) : none;
    this.setNote("measured", !shown ? "" : measured
      ? `95 %: ${rangeText(shown)}`
      : `${rangeText(shown)}, ${shown.images} of ${shown.of} images`);
  }

  setNote(name, text, kind = "") {
    const { note } = this.figures[name];
    note.textContent = text;
    note.title = text;
    note.className = `note ${kind}`;
  }

  /** Estimate the drop until Python answers: its last prediction plus the columns' own changes. */
  estimate() {
    let sum = this.data.predicted.value;
    this.data.values.forEach(([, removed], i) => {
      if (removed === this.values[i].removed) return;
      const more = (this.groupDrop(i, this.values[i].removed) ?? 0) - (this.groupDrop(i, removed) ?? 0);
      sum += this.data.calibration * more;
    });
    return Math.min(Math.max(sum, 0), this.data.largest_drop);
  }

  /** Return the text for screen readers after a change. */
  announcement() {
    const { predicted } = this.data;
    const bytes = this.size("bytes", this.widths());
    const drop = predicted ? `, predicted drop ${pointsText(predicted.value)}` : "";
    return `Memory ${megabytes(bytes)}, ${relativeChange(bytes, this.base.bytes)}${drop}`;
  }

  // ---- the card of a column --------------------------------------------------------------------

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
    const state = this.values[i];
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
        const unit = column.heads ? "a unit of each head" : "a unit";
        warn(`Removes nothing: ${column.smallestPercent}\u00a0% is the smallest ratio that removes ${unit}.`);
      }
      const saved = this.size("bytes", this.widths(i, column.units)) - this.size("bytes", this.widths());
      if (state.removed) row("Saves in this plan", saved >= 1e5 ? megabytes(saved) : `${(saved / 1e3).toFixed(1)}\u00a0kB`);
      this.cardDrop(i, state, row);
      if (column.heads) row("Heads", `${column.heads}, all keep the same number`);
      if (state.locked) row("Locked", "edits and planners do not change it");
    }
    const layers = element(card, "div", "layers");
    element(layers, "div", "", "Coupled layers:");
    for (const name of column.coupled) element(layers, "div", "", name);
  }

  cardDrop(i, state, row) {
    const cell = this.nearestCell(i, state.percent);
    if (!cell) return row("Sensitivity", "not swept yet");
    if (state.removed) row("Predicted drop alone", `\u2248 ${pointsText(this.groupDrop(i, state.removed))}`);
    const range = `${pointsText(cell[2])} (${rangeText({ low: cell[3], high: cell[4] })})`;
    row(`Measured at ${shareText(100 * cell[0])}`, range);
    if (this.withinNoise(i, state.percent)) row("", "within noise: the interval includes 0");
    row("KL at this ratio", `${cell[5].toFixed(4)} nats`);
  }
}
