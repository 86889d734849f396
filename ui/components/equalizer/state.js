// The equalizer's data: values, unacknowledged edits, sizes, drops.

class EqualizerState {
  constructor(root) {
    this.root = root;
    this.sender = Math.random().toString(36).slice(2, 14);
    this.seq = 0;
    this.gesture = 0;
    this.pending = []; // edits that Python has not acknowledged
    this.live = new Map(); // column -> percent, of the current drag or run of key presses
    this.current = 0; // the column that Tab focuses
    this.drag = null;
    this.frame = 0;
    this.stamp = null;
    this.progress = null; // of the last job that the page follows
    this.hear = (event) => {
      this.progress = event.detail;
      if (this.figures && this.progress.job === this.data.live) this.drawDrops();
    };
    globalThis.addEventListener("psvit-progress", this.hear);
    this.hearGroup = (event) => {
      if (event.detail.from === "picture" && this.grid) this.pointAt(this.index.get(event.detail.id));
    };
    globalThis.addEventListener("psvit-group", this.hearGroup);
    this.watcher = new ResizeObserver(() => this.layout());
    this.motion = matchMedia("(prefers-reduced-motion: reduce)");
    this.coarse = matchMedia("(pointer: coarse)");
    this.ruler = document.createElement("canvas").getContext("2d");
  }

  close() {
    this.flushKeys();
    this.watcher.disconnect();
    globalThis.removeEventListener("psvit-progress", this.hear);
    globalThis.removeEventListener("psvit-group", this.hearGroup);
    cancelAnimationFrame(this.frame);
    clearTimeout(this.cardTimer);
    clearTimeout(this.resend);
  }

  update(message) {
    const fixed = message.fixed ?? globalThis.psvitEqualizerData?.get(message.stamp);
    if (!fixed) {
      const again = () => this.update(message); // the columns have not arrived yet
      globalThis.addEventListener("psvit-equalizer-data", again, { once: true });
      return;
    }
    const data = { ...message, ...fixed };
    const other = this.data && this.data.weights !== data.weights;
    const stamp = `${data.stamp}/${data.show_columns}`;
    const same = stamp === this.stamp;
    this.data = same ? { ...data, columns: this.data.columns } : data; // keep what build() added
    if (other) {
      this.pending = [];
      this.live.clear();
      this.current = 0;
    }
    if (data.ack.sender === this.sender) {
      this.pending = this.pending.filter((edit) => edit.seq > data.ack.seq);
    }
    if (!this.pending.length) clearTimeout(this.resend);
    if (!same) this.build();
    this.stamp = stamp;
    this.computeValues();
    this.draw();
    if (!this.drag && !this.live.size) this.layout();
    if (!this.pending.length) this.liveRegion.textContent = this.announcement();
  }

  /** Compute each column's values: Python's, then unacknowledged edits, then the current drag. */
  computeValues() {
    const { columns, values } = this.data;
    this.values = values.map(([percent, removed, locked]) => ({ percent, removed, locked: !!locked }));
    const put = (i, percent) => {
      this.values[i].percent = percent;
      this.values[i].removed = unitsRemoved(columns[i], percent);
    };
    for (const edit of this.pending) {
      for (const [id, percent] of Object.entries(edit.percents)) put(this.index.get(id), percent);
      for (const [id, on] of Object.entries(edit.locks)) this.values[this.index.get(id)].locked = on;
    }
    for (const [i, percent] of this.live) put(i, percent);
  }

  /** Whether the values differ from Python's. */
  get unsettled() {
    return this.pending.length > 0 || this.live.size > 0;
  }

  /** Return a size, the sum of products of the groups' widths. */
  size(name, widths) {
    let sum = 0;
    for (const [factor, ...columns] of this.data.terms[name]) {
      let product = factor;
      for (const i of columns) product *= widths[i];
      sum += product;
    }
    return Math.round(sum);
  }

  /** Return the units that remain in each column; of one column, another number. */
  widths(changed = -1, width = 0) {
    return this.data.columns.map((c, i) => (i === changed ? width : c.units - this.values[i].removed));
  }

  /** Return the drop of one column alone, pp, interpolated between cells; null before a sweep. */
  groupDrop(i, removed) {
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

  /** Return each column's share of the bytes, given what the other columns lose.
   *
   * A tensor shrinks on several axes at once, so its saving is shared between them: the share is an
   * integral along the straight line from the unpruned network to this plan. Simpson's rule is
   * exact for up to 4 axes. The shares times the fractions removed add up to the memory saved, to
   * the byte. */
  shares() {
    const { columns, terms } = this.data;
    const gone = columns.map((c, i) => this.values[i].removed / c.units);
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
}
