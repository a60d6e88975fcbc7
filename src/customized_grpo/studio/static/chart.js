// One chart of lines: axes, a cursor that reads every line, zoom by dragging. Drawn as SVG in the colours of the
// report, so that dark pages and print need nothing of their own.
import { h, svg } from "./dom.js";
import { number } from "./format.js";

const HEIGHT = 190;
const EDGE = { left: 52, right: 10, top: 8, bottom: 24 };
const MAX_POINTS = 400; // more than the pixels of a chart; of each few neighbours the lowest and the highest stay

// What all charts of a page have in common.
export const shared = { charts: new Set(), zoom: null, onZoom: () => {} };

export class Chart {
  constructor(title) {
    this.lines = [];
    this.options = {};
    this.isVisible = false;
    this.at = null; // where the cursor is
    this.svg = svg("svg", { class: "chart live", tabindex: "0", role: "img", "aria-label": title });
    this.read = h("div", { class: "read" });
    this.element = h("figure", { class: "live-figure" }, h("h3", {}, title), this.svg, this.read);
    this.title = title;
    this.svg.addEventListener("pointermove", (event) => this.pointed(event));
    this.svg.addEventListener("pointerleave", () => pointAll(null));
    this.svg.addEventListener("pointerdown", (event) => this.pressed(event));
    this.svg.addEventListener("pointerup", (event) => this.released(event));
    this.svg.addEventListener("dblclick", () => zoomAll(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.svg.addEventListener("blur", () => pointAll(null));
    shared.charts.add(this);
  }

  // lines: [{name, colour, dash, x: [], y: [], low, high, raw, dots}]; NaN in y is a gap.
  set(lines, options) {
    this.lines = lines;
    this.options = options;
    if (this.isVisible) this.draw();
    else this.isStale = true;
  }

  show(isVisible) {
    this.isVisible = isVisible;
    if (isVisible && this.isStale !== false) this.draw();
  }

  draw() {
    this.isStale = false;
    const width = this.svg.clientWidth || 420;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const scale = this.scale(width);
    this.scaled = scale;
    const parts = [this.grid(scale)];
    for (const line of this.lines) parts.push(...this.marks(line, scale));
    this.cursor = svg("g", { class: "cursor" });
    this.svg.replaceChildren(...parts.flat(), this.cursor);
    this.svg.setAttribute("aria-label", `${this.title}: ${this.lines.map((line) => `${line.name} ${number(last(line.y))}`).join(", ")}`);
    this.readAt(this.at);
  }

  scale(width) {
    const [low, high] = shared.zoom || [0, Math.max(1e-9, ...this.lines.map((line) => line.x.at(-1) ?? 0))];
    const values = [];
    for (const line of this.lines) {
      for (const series of [line.y, line.low, line.high, line.raw && inner(line.raw)]) {
        (series || []).forEach((value, index) => {
          if (Number.isFinite(value) && line.x[index] >= low && line.x[index] <= high) values.push(value);
        });
      }
    }
    const isLog = this.options.log && values.some((value) => value > 0);
    const used = isLog ? values.filter((value) => value > 0) : values;
    let bottom = used.length ? Math.min(...used) : 0;
    let top = used.length ? Math.max(...used) : 1;
    if (top - bottom < 1e-12) {
      const room = Math.abs(top) * 0.1 || 0.5;
      bottom -= isLog ? 0 : room;
      top += room;
    }
    const warp = isLog ? Math.log10 : (value) => value;
    const right = width - EDGE.right;
    const floor = HEIGHT - EDGE.bottom;
    const x = (value) => EDGE.left + ((value - low) / (high - low || 1)) * (right - EDGE.left);
    const y = (value) => floor - ((warp(value) - warp(bottom)) / (warp(top) - warp(bottom) || 1)) * (floor - EDGE.top);
    const back = (pixel) => low + ((pixel - EDGE.left) / (right - EDGE.left)) * (high - low);
    return { x, y, back, low, high, bottom, top, right, floor, isLog, width };
  }

  grid(scale) {
    const parts = [];
    const rows = scale.isLog ? powers(scale.bottom, scale.top) : ticks(scale.bottom, scale.top, 4);
    for (const value of rows) {
      const y = scale.y(value);
      parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: scale.right, y1: y, y2: y }));
      parts.push(svg("text", { class: "tick end", x: EDGE.left - 6, y: y + 4 }, number(value)));
    }
    for (const value of ticks(scale.low, scale.high, Math.max(2, Math.floor(scale.width / 110)))) {
      parts.push(svg("text", { class: "tick middle", x: scale.x(value), y: HEIGHT - 7 }, number(value, 4)));
    }
    return parts;
  }

  marks(line, scale) {
    const colour = { "--c": `var(${line.colour})` };
    const parts = [];
    const kept = thin(line, scale);
    if (line.low) {
      const up = kept.filter((index) => Number.isFinite(line.low[index]) && Number.isFinite(line.high[index]));
      const points = [...up.map((index) => [line.x[index], line.high[index]]), ...up.reverse().map((index) => [line.x[index], line.low[index]])];
      const d = points.map(([x, y]) => `${scale.x(x).toFixed(1)} ${scale.y(y).toFixed(1)}`).join(" L ");
      if (points.length > 2) parts.push(svg("path", { class: "band", style: colour, d: `M ${d} Z` }));
    }
    if (line.raw) parts.push(svg("path", { class: "raw", style: colour, d: path(line.x, line.raw, kept, scale) }));
    parts.push(svg("path", { class: `line thin ${line.dots ? "dashed" : ""}`, style: colour, "stroke-dasharray": line.dash, d: path(line.x, line.y, kept, scale) }));
    if (line.dots || kept.length === 1) {
      for (const index of kept.slice(-60)) {
        if (Number.isFinite(line.y[index])) parts.push(svg("circle", { class: "dot", style: colour, r: 2.6, cx: scale.x(line.x[index]), cy: scale.y(line.y[index]) }));
      }
    }
    return parts;
  }

  pointed(event) {
    if (!this.scaled) return;
    const box = this.svg.getBoundingClientRect();
    const x = this.scaled.back(event.clientX - box.left);
    if (this.from !== undefined) this.select(this.from, x);
    else pointAll(x);
  }

  pressed(event) {
    if (event.pointerType === "mouse" && event.button === 0) this.from = this.scaled.back(event.clientX - this.svg.getBoundingClientRect().left);
  }

  released(event) {
    if (this.from === undefined) return;
    const to = this.scaled.back(event.clientX - this.svg.getBoundingClientRect().left);
    const range = [Math.min(this.from, to), Math.max(this.from, to)];
    this.from = undefined;
    const isDrag = range[1] - range[0] > (this.scaled.high - this.scaled.low) * 0.02;
    if (isDrag) zoomAll([Math.max(0, range[0]), range[1]]);
    else this.cursor.replaceChildren();
  }

  select(from, to) {
    const [left, right] = [from, to].map(this.scaled.x).sort((first, second) => first - second);
    this.cursor.replaceChildren(svg("rect", { class: "selected", x: left, width: right - left, y: EDGE.top, height: this.scaled.floor - EDGE.top }));
  }

  key(event) {
    if (event.key === "Escape") return zoomAll(null);
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !this.lines.length) return;
    event.preventDefault();
    event.stopPropagation();
    const places = this.lines.reduce((longest, line) => (line.x.length > longest.length ? line.x : longest), []);
    const now = this.at === null ? places.length - 1 : nearest(places, this.at);
    const next = Math.max(0, Math.min(places.length - 1, now + step));
    pointAll(places[next]);
  }

  readAt(x) {
    this.at = x;
    if (!this.scaled || !this.cursor) return;
    const marks = [];
    const entries = this.lines.map((line) => {
      const index = x === null ? line.x.length - 1 : nearest(line.x, x);
      const value = line.y[index];
      if (x !== null && Number.isFinite(value)) {
        marks.push(svg("circle", { class: "at", style: { "--c": `var(${line.colour})` }, r: 3.4, cx: this.scaled.x(line.x[index]), cy: this.scaled.y(value) }));
      }
      const width = line.low && Number.isFinite(line.low[index]) ? ` [${number(line.low[index])}, ${number(line.high[index])}]` : "";
      return h("span", { style: { "--c": `var(${line.colour})` } }, h("i", { class: line.dots ? "key dashed" : "key" }), `${line.name} `, h("b", {}, number(value)), width);
    });
    if (x !== null) {
      const at = this.scaled.x(x);
      marks.unshift(svg("line", { class: "hair", x1: at, x2: at, y1: EDGE.top, y2: this.scaled.floor }));
      entries.unshift(h("span", { class: "where" }, `${this.options.axis} ${number(x, 5)}`));
    }
    this.cursor.replaceChildren(...(x !== null && x >= this.scaled.low && x <= this.scaled.high ? marks : []));
    this.read.replaceChildren(...entries);
  }
}

function pointAll(x) {
  for (const chart of shared.charts) if (chart.isVisible) chart.readAt(x);
}

export function zoomAll(range) {
  shared.zoom = range;
  for (const chart of shared.charts) {
    chart.isStale = true;
    if (chart.isVisible) chart.draw();
  }
  shared.onZoom(range);
}

function nearest(places, x) {
  let low = 0;
  let high = places.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && Math.abs(places[low - 1] - x) <= Math.abs(places[low] - x) ? low - 1 : low;
}

// Places of the points to draw: those in sight, and of many the lowest and the highest of each few.
function thin(line, scale) {
  const seen = [];
  line.x.forEach((x, index) => {
    const isNear = (line.x[index + 1] ?? x) >= scale.low && (line.x[index - 1] ?? x) <= scale.high;
    if (isNear) seen.push(index);
  });
  if (seen.length <= MAX_POINTS) return seen;
  const size = Math.ceil((2 * seen.length) / MAX_POINTS);
  const kept = [];
  for (let start = 0; start < seen.length; start += size) {
    const few = seen.slice(start, start + size);
    const measured = few.filter((index) => Number.isFinite(line.y[index]));
    if (!measured.length) kept.push(few[0]);
    else {
      const lowest = measured.reduce((best, index) => (line.y[index] < line.y[best] ? index : best));
      const highest = measured.reduce((best, index) => (line.y[index] > line.y[best] ? index : best));
      kept.push(...new Set([Math.min(lowest, highest), Math.max(lowest, highest)]));
    }
  }
  return kept;
}

function path(x, y, kept, scale) {
  let command = "M";
  const parts = [];
  for (const index of kept) {
    if (!Number.isFinite(y[index]) || (scale.isLog && y[index] <= 0)) {
      command = "M";
      continue;
    }
    const height = Math.min(Math.max(scale.y(y[index]), -HEIGHT), 2 * HEIGHT);
    parts.push(`${command}${Math.min(Math.max(scale.x(x[index]), EDGE.left), scale.right).toFixed(1)} ${height.toFixed(1)}`);
    command = "L";
  }
  return parts.join(" ");
}

function ticks(low, high, count) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || 10 * power;
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high + step * 1e-9; index += 1) found.push(Number((index * step).toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) if (10 ** power >= low) found.push(10 ** power);
  return found.length > 1 ? found : ticks(low, high, 3).filter((value) => value > 0);
}

// The values without the outer 2 % on each side: single noisy iterations must not flatten a curve.
function inner(values) {
  const sorted = values.filter(Number.isFinite).sort((first, second) => first - second);
  const cut = Math.floor(sorted.length / 50);
  return values.map((value) => (value >= sorted[cut] && value <= sorted[sorted.length - 1 - cut] ? value : NaN));
}

const last = (values) => values.findLast((value) => Number.isFinite(value));
