// The picture of the network: focus, choice and the card with a group's layers.
//
// Streamlit calls the default function on every change of data, but its cleanup only at the end. The
// equalizer on the same page hears which group is chosen, and tells which one it edits, by the event
// "psvit-group".

const views = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".pic");
  let view = views.get(parentElement);
  if (!view || view.root !== root) {
    view?.close();
    view = new Picture(root);
    views.set(parentElement, view);
  }
  view.report = (id) => setTriggerValue("pick", id);
  view.update(data);
  return () => {
    view.close();
    views.delete(parentElement);
  };
}

class Picture {
  constructor(root) {
    this.root = root;
    this.card = root.querySelector(".pic-card");
    this.net = root.querySelector(".pic-net");
    this.groups = [];
    this.current = 0; // the group that Tab focuses
    this.chosen = -1;
    this.hear = (event) => {
      if (event.detail.from !== "picture") this.mark(this.data.ids.indexOf(event.detail.id));
    };
    globalThis.addEventListener("psvit-group", this.hear);
    this.listen();
  }

  close() {
    globalThis.removeEventListener("psvit-group", this.hear);
  }

  update(data) {
    const before = this.data;
    this.data = data;
    if (before?.svg !== data.svg) this.draw();
    if (!before || before.chosen !== data.chosen) this.mark(data.chosen);
  }

  draw() {
    const focused = this.groups.findIndex((group) => group.matches(":focus"));
    const parsed = new DOMParser().parseFromString(this.data.svg, "image/svg+xml");
    const svg = document.importNode(parsed.documentElement, true);
    svg.setAttribute("role", "group"); // it contains buttons
    this.groups = [...svg.querySelectorAll(".pn-group")];
    this.lines = this.groups.map((group) => {
      const title = group.querySelector("title");
      title.remove(); // the card shows it
      return title.textContent.split("\n");
    });
    this.groups.forEach((group, i) => {
      group.setAttribute("role", "button");
      group.setAttribute("aria-label", this.lines[i].filter((line) => !/^ |:$/.test(line)).join(", "));
    });
    this.edges = [...svg.querySelectorAll("[data-of]")].map((path) => [path, path.dataset.of.split(" ").map(Number)]);
    this.net.replaceChildren(svg);
    this.current = Math.min(this.current, this.groups.length - 1);
    this.paint();
    if (focused >= 0) this.groups[focused]?.focus({ preventScroll: true });
  }

  /** Mark a group as the chosen one; -1 for none. */
  mark(i) {
    if (i >= 0 && i < this.groups.length) this.current = i;
    this.chosen = i;
    this.paint();
  }

  paint() {
    this.groups.forEach((group, i) => {
      group.setAttribute("aria-pressed", i === this.chosen);
      group.setAttribute("tabindex", i === this.current ? 0 : -1);
    });
    this.show(this.chosen);
  }

  /** Show a group's layers, and mark what it is connected with. */
  show(i) {
    for (const [path, ends] of this.edges ?? []) path.classList.toggle("near", ends.includes(i));
    const lines = this.lines?.[i] ?? ["Point at a group to see its layers and their shapes."];
    this.card.replaceChildren(
      ...lines.map((line, k) => {
        const box = document.createElement("div");
        box.textContent = line.trim(); // names come from checkpoints: never as HTML
        box.className = !k ? "head" : line.startsWith(" ") ? "layer" : "";
        return box;
      }),
    );
    // On a phone it scrolls; then the keyboard must reach it.
    if (this.card.scrollHeight > this.card.clientHeight + 1) this.card.tabIndex = 0;
    else this.card.removeAttribute("tabindex");
  }

  choose(i) {
    this.mark(i);
    const id = this.data.ids[i];
    globalThis.dispatchEvent(new CustomEvent("psvit-group", { detail: { id, from: "picture" } }));
    this.report(id);
  }

  focus(i) {
    this.groups[this.current].setAttribute("tabindex", -1);
    this.current = i;
    this.groups[i].setAttribute("tabindex", 0);
    this.groups[i].focus({ preventScroll: true });
    this.groups[i].scrollIntoView({ block: "nearest" });
  }

  listen() {
    const at = (event) => this.groups.indexOf(event.target.closest?.(".pn-group"));
    const { net } = this;
    net.addEventListener("click", (event) => at(event) >= 0 && this.choose(at(event)));
    net.addEventListener("pointerover", (event) => this.show(at(event) < 0 ? this.chosen : at(event)));
    net.addEventListener("pointerleave", () => this.show(this.chosen));
    net.addEventListener("focusin", (event) => at(event) >= 0 && this.show(at(event)));
    net.addEventListener("focusout", () => this.show(this.chosen));
    net.addEventListener("keydown", (event) => {
      const i = at(event);
      if (i < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
      const last = this.groups.length - 1;
      const to = { ArrowDown: i + 1, ArrowRight: i + 1, ArrowUp: i - 1, ArrowLeft: i - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) this.focus(Math.min(Math.max(to, 0), last));
      else if (event.key === "Enter" || event.key === " ") this.choose(i);
      else return;
      event.preventDefault();
    });
  }
}
