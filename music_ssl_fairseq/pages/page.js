"use strict";
// What all pages share: tables that sort, a player, a map of points. No library, no network.

const find = (selector, root = document) => root.querySelector(selector);
const SVG_TAGS = new Set(["svg", "g", "rect", "circle", "text", "title", "line"]);

/** Make an element: attributes by name, `on...` as listeners, then children. */
function make(tag, attributes = {}, ...children) {
  const made = SVG_TAGS.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const read = (id) => JSON.parse(find(`#${id}`)?.textContent ?? "null");

/** Plays parts of the page's sounds, one at a time. */
const player = {
  sounds: read("sounds") ?? [],
  decoded: new Map(),
  stop() {},

  /** Decode a sound, or take it from the last few that were played. */
  async buffer(number) {
    this.context ??= new AudioContext();
    if (!this.decoded.has(number)) {
      const bytes = Uint8Array.from(atob(this.sounds[number]), (c) => c.charCodeAt(0));
      this.decoded.set(number, await this.context.decodeAudioData(bytes.buffer));
      if (this.decoded.size > 24) this.decoded.delete(this.decoded.keys().next().value);
    }
    return this.decoded.get(number);
  },

  /** Play `clip` ({sound, from, to} in seconds); `button` shows that it does. */
  async play(clip, button) {
    const again = button?.getAttribute("aria-pressed") === "true";
    this.stop();
    if (again) return;
    button?.setAttribute("aria-pressed", "true");
    let source, stopped = false;
    this.stop = () => {
      stopped = true;
      button?.setAttribute("aria-pressed", "false");
      source?.stop();
    };
    const buffer = await this.buffer(clip.sound);
    await this.context.resume();
    if (stopped) return;
    source = new AudioBufferSourceNode(this.context, { buffer });
    const gain = new GainNode(this.context, { gain: 0 });
    const from = clip.from ?? 0, length = (clip.to ?? buffer.duration) - from;
    const begin = this.context.currentTime, fade = Math.min(0.01, length / 4);
    gain.gain.setValueAtTime(0, begin);
    gain.gain.linearRampToValueAtTime(1, begin + fade);
    gain.gain.setValueAtTime(1, begin + length - fade);
    gain.gain.linearRampToValueAtTime(0, begin + length);
    source.connect(gain).connect(this.context.destination);
    source.onended = () => button?.setAttribute("aria-pressed", "false");
    source.start(begin, from, length);
  },

  button(clip, label) {
    const made = make("button", { class: "play", type: "button", "aria-label": label, title: label, "aria-pressed": "false" });
    made.addEventListener("click", (event) => {
      event.stopPropagation();
      this.play(clip, made);
    });
    return made;
  },
};

const ROWS_PER_PAGE = 50;

/** Sorts, filters and pages a table. A row is {values, node()}: what is sorted by, and its <tr>. */
class SortedTable {
  constructor(table, rows) {
    this.table = table;
    this.rows = this.shown = rows ?? [...table.tBodies[0].rows].map((tr) => ({
      node: () => tr,
      values: [...tr.cells].map((cell) => {
        const value = cell.dataset.value ?? cell.textContent;
        return value === "" || Number.isNaN(Number(value)) ? value : Number(value);
      }),
    }));
    this.page = 0;
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      if (cell.dataset.sort === "no") return;
      const button = make("button", { type: "button", onclick: () => this.sort(column) });
      button.append(...cell.childNodes);
      cell.append(button);
    });
    if (this.rows.length > ROWS_PER_PAGE) this.addPager();
    this.draw();
  }

  /** Sort by a column: numbers from the largest, text from A; again for the other direction. */
  sort(column) {
    const cells = this.table.tHead.rows[0].cells, before = cells[column].getAttribute("aria-sort");
    const first = this.rows.some((row) => typeof row.values[column] === "number") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const direction = before === first ? other : first;
    for (const cell of cells) cell.removeAttribute("aria-sort");
    cells[column].setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const empty = (value) => value === "" || value === null || Number.isNaN(value);
    this.rows.sort(({ values: a }, { values: b }) => {
      const [x, y] = [a[column], b[column]];
      if (empty(x) || empty(y)) return empty(x) - empty(y);
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : `${x}`.localeCompare(`${y}`, undefined, { numeric: true }));
    });
    this.filter(this.test);
  }

  /** Show only rows that pass the test (all without one). */
  filter(test) {
    this.test = test;
    this.shown = test ? this.rows.filter(test) : this.rows;
    this.page = 0;
    this.draw();
  }

  addPager() {
    this.place = make("span", { "aria-live": "polite" });
    const step = (text, label, by) => make("button", { type: "button", "aria-label": label, onclick: () => { this.page += by; this.draw(); } }, text);
    this.steps = [step("‹", "previous rows", -1), step("›", "next rows", 1)];
    this.table.parentNode.after(make("div", { class: "controls" }, this.steps[0], this.place, this.steps[1]));
  }

  draw() {
    const first = this.page * ROWS_PER_PAGE, count = this.shown.length;
    const last = this.place ? Math.min(count, first + ROWS_PER_PAGE) : count;
    this.table.tBodies[0].replaceChildren(...this.shown.slice(first, last).map((row) => row.node()));
    if (!this.place) return;
    this.place.textContent = count ? `${first + 1}–${last} of ${count}` : "nothing matches";
    this.steps[0].disabled = !this.page;
    this.steps[1].disabled = last >= count;
  }
}

// Viridis, at five places.
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
// Okabe and Ito's colours and five more, told apart by the colour-blind as far as twelve can be.
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#A8A000", "#8C6BB1", "#B15928", "#4C5CC5", "#1B7F5C", "#E7298A"];

function rampColour(share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1), low = Math.floor(place);
  return `rgb(${RAMP[low].map((value, i) => Math.round(value + (place - low) * (RAMP[low + 1][i] - value)))})`;
}

/** Points on a plane: hover for the name, click to choose, wheel or buttons to zoom, drag to move. */
class PointMap {
  /** `points`: [{x, y, name}] in 0..1; `choose(index)` is called on a click. */
  constructor(place, points, label, choose) {
    this.points = points;
    this.choose = choose;
    this.view = [-40, -40, 1080, 1080];
    this.svg = make("svg", { role: "application", "aria-label": `${label}. Arrow keys go to the next point, Enter plays.`, tabindex: 0 });
    this.dots = points.map(({ x, y }, index) => make("circle", { cx: 1000 * x, cy: 1000 - 1000 * y, "data-index": index }));
    this.svg.append(...this.dots);
    this.svg.classList.toggle("many", points.length > 2000);
    this.tip = make("div", { class: "tip", role: "status", hidden: "" });
    const zoom = (text, name, by) => make("button", { type: "button", "aria-label": name, onclick: () => this.zoom(by) }, text);
    this.legend = make("div", { class: "legend" });
    const whole = make("button", { type: "button", onclick: () => { this.view = [-40, -40, 1080, 1080]; this.draw(); } }, "whole map");
    place.append(this.legend, this.svg, this.tip, make("div", { class: "controls" }, zoom("+", "zoom in", 0.7), zoom("−", "zoom out", 1 / 0.7), whole));
    this.listen();
    this.draw();
    new ResizeObserver(() => this.draw()).observe(this.svg); // points keep their size in pixels
  }

  listen() {
    const index = (event) => event.target.dataset?.index;
    this.svg.addEventListener("pointerover", (event) => index(event) === undefined ? (this.tip.hidden = true) : this.show(+index(event)));
    this.svg.addEventListener("focus", () => this.svg.matches(":focus-visible") && this.show(this.at ?? 0));
    this.svg.addEventListener("blur", () => { this.tip.hidden = true; });
    this.svg.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.svg.addEventListener("click", (event) => index(event) !== undefined && this.choose(+index(event)));
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.svg.getBoundingClientRect();
      this.zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, (event.clientX - box.x) / box.width, (event.clientY - box.y) / box.height);
    }, { passive: false });
    this.svg.addEventListener("pointermove", (event) => {
      if (event.buttons !== 1) return;
      const scale = this.view[2] / this.svg.clientWidth;
      this.view[0] -= event.movementX * scale;
      this.view[1] -= event.movementY * scale;
      this.draw();
    });
    this.svg.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (direction) this.step(...direction);
      else if (event.key === "Enter") this.choose(this.at ?? 0);
      else return;
      event.preventDefault();
    });
  }

  /** Go to the nearest point in a direction. */
  step(dx, dy) {
    const from = this.points[this.at ?? 0];
    const distance = ({ x, y }) => {
      const along = (x - from.x) * dx + (y - from.y) * dy, aside = Math.abs((x - from.x) * dy) + Math.abs((y - from.y) * dx);
      return along > 1e-9 ? along + 2 * aside : Infinity;
    };
    const all = this.points.map(distance), best = Math.min(...all);
    if (best < Infinity) this.show(all.indexOf(best));
    this.mark(this.at ?? 0, this.near ?? []);
  }

  show(index) {
    this.at = index;
    const box = this.dots[index].getBoundingClientRect(), place = this.svg.parentNode.getBoundingClientRect();
    this.tip.textContent = this.points[index].name;
    this.tip.hidden = false;
    this.tip.style.left = 0; // measured where it has room, so that it is no narrower than it need be
    this.tip.style.left = `${Math.max(0, Math.min(box.x - place.x + 12, place.width - this.tip.offsetWidth - 4))}px`;
    this.tip.style.top = `${box.y - place.y - this.tip.offsetHeight - 4}px`;
  }

  /** Zoom about a place of the view, in 0..1. */
  zoom(by, x = 0.5, y = 0.5) {
    const size = Math.min(2000, Math.max(20, this.view[2] * by));
    this.view = [this.view[0] + x * (this.view[2] - size), this.view[1] + y * (this.view[3] - size), size, size];
    this.draw();
  }

  draw() {
    this.svg.setAttribute("viewBox", this.view.join(" "));
    const width = this.svg.clientWidth || 600;
    const pixels = (this.points.length > 2000 ? 3 : this.points.length > 600 ? 4.5 : 6) * Math.sqrt(1080 / this.view[2] * Math.min(1, width / 600));
    const radius = pixels * this.view[2] / width;
    for (const dot of this.dots) dot.setAttribute("r", radius);
  }

  mark(index, near = []) {
    this.at = index;
    this.near = near;
    const others = new Set(near);
    this.dots.forEach((dot, i) => {
      dot.classList.toggle("chosen", i === index);
      dot.classList.toggle("near", others.has(i));
    });
    this.svg.append(...near.map((i) => this.dots[i]), this.dots[index]); // drawn last: on top
  }

  /** Fade points that fail the test. */
  filter(test) {
    this.dots.forEach((dot, i) => dot.classList.toggle("faded", Boolean(test) && !test(i)));
  }

  /** Colour by numbers; `label` says what they are, with their unit. */
  colourByNumber(values, label) {
    const known = values.filter((value) => value !== null).sort((a, b) => a - b);
    // A few outliers would leave the others one colour.
    const [low, high] = [0.02, 0.98].map((share) => known[Math.round(share * (known.length - 1))] ?? 0);
    const span = high - low || 1, [least, most] = [known[0], known[known.length - 1]];
    this.dots.forEach((dot, i) => { dot.style.fill = values[i] === null ? "#8888" : rampColour((values[i] - low) / span); });
    const ramp = make("span", { class: "ramp", style: `background: linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(rampColour)})` });
    const text = (value) => Number(value.toPrecision(3)).toString();
    const ends = [(least < low ? "≤ " : "") + text(low), text(high) + (most > high ? " or more" : "")];
    this.legend.replaceChildren(make("span", {}, `${label}:`), make("span", {}, ends[0], ramp, ends[1]));
  }

  /** Colour by names: the most frequent ones have colours, others and those without are grey. The legend has the order of `order`, or the alphabet's. */
  colourByName(names, without, order = []) {
    const counts = new Map();
    for (const name of names) if (name) counts.set(name, (counts.get(name) ?? 0) + 1);
    const shown = [...counts].sort((a, b) => b[1] - a[1]).slice(0, PALETTE.length).map(([name]) => name);
    shown.sort((a, b) => order.indexOf(a) - order.indexOf(b) || a.localeCompare(b, undefined, { numeric: true }));
    const colour = (name) => shown.includes(name) ? PALETTE[shown.indexOf(name)] : "#888";
    this.dots.forEach((dot, i) => { dot.style.fill = colour(names[i]); });
    const chip = (name, fill) => make("span", {}, make("i", { style: `background: ${fill}` }), name);
    const grey = [counts.size > shown.length ? "other" : "", names.every(Boolean) ? "" : without].filter(Boolean);
    const rest = grey.length ? [chip(grey.join(", "), "#888")] : [];
    this.legend.replaceChildren(...shown.map((name) => chip(name, colour(name))), ...rest);
  }
}

/** Small bar chart with a text for screen readers; `top` is the bar to stress. */
function bars(values, label, { width = 96, height = 26, top = -1, names = [] } = {}) {
  const most = Math.max(...values, 1e-9), step = width / values.length, room = names.length ? 10 : 0;
  const svg = make("svg", { class: "bars", width, height: height + room, viewBox: `0 0 ${width} ${height + room}`, role: "img", "aria-label": label });
  svg.append(make("title", {}, label));
  values.forEach((value, i) => {
    const size = Math.max(0.5, height * value / most);
    svg.append(make("rect", { x: i * step + 0.5, y: height - size, width: Math.max(0.5, step - 1), height: size, class: i === top ? "top" : "" }));
    if (names[i]) {
      const text = make("text", { x: (i + 0.5) * step, y: height + 9, "text-anchor": "middle" }, names[i]);
      svg.append(text);
    }
  });
  return svg;
}

for (const table of document.querySelectorAll("table.sortable:not([data-own])")) new SortedTable(table);
