// Every metric of the runs as a chart, live: grouped by the first part of its name, several runs as several lines.
import { Chart, shared, zoomAll } from "./chart.js";
import { h } from "./dom.js";
import { paced } from "./pace.js";

const ORDER = ["reward", "judge", "mode", "score", "advantage", "diversity", "monitor", "gap", "policy", "health", "time"];
const TITLES = {
  reward: "Rewards",
  judge: "Held-out judges",
  mode: "What samples are",
  score: "Rewards by name",
  advantage: "Advantages and quadrants",
  diversity: "Spread within a group",
  monitor: "Reward-hacking monitors",
  gap: "Training ahead of held-out prompts",
  policy: "Policy health",
  health: "Failures",
  time: "Time, in seconds",
};
const FOLDED = ["policy", "health", "time", "gap", "score"];
const COUNTERS = new Set(["kind", "iteration", "rollouts", "wall_s"]);
const AXES = { iteration: "iteration", rollouts: "rollouts", wall_s: "seconds" };
const DRAW_MS = 400; // at least between two drawings
const KEPT = "studio-charts"; // what the reader has set, kept in the browser

export function showCharts(place, runs) {
  const kept = JSON.parse(localStorage.getItem(KEPT) || "{}");
  const filter = h("input", { type: "search", placeholder: "Metrics  ( / )", "aria-label": "Filter metrics", oninput: () => arrange() });
  const smooth = h("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: kept.smooth ?? 0.6, "aria-label": "Smoothing", oninput: () => changedTools() });
  const axis = h("select", { "aria-label": "Horizontal axis", onchange: () => (zoomAll(null), changedTools()) }, Object.entries(AXES).map(([value, words]) => h("option", { value, selected: value === kept.axis }, words)));
  const log = h("input", { type: "checkbox", onchange: () => changedTools() });
  log.checked = Boolean(kept.log);
  const reset = h("button", { type: "button", hidden: true, onclick: () => zoomAll(null) }, "Whole run");
  const groups = h("div", { class: "groups" });
  const empty = h("p", { class: "lead" }, "No numbers yet: they come with the first iteration.");
  place.append(h("div", { class: "tools" }, filter, h("label", {}, "Smoothing ", smooth), h("label", {}, "Axis ", axis), h("label", {}, log, " log"), reset), empty, groups);

  const charts = new Map(); // metric -> Chart
  const sections = new Map(); // group -> {details, figures}
  const visible = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.target.chart.show(entry.isIntersecting);
  }, { rootMargin: "200px" });
  const sized = new ResizeObserver((entries) => {
    for (const entry of entries) if (entry.target.chart.isVisible) entry.target.chart.draw();
  });
  // paper has no scrolling: what was never in sight has to be drawn too
  const showAll = () => {
    for (const chart of charts.values()) chart.show(true);
  };
  addEventListener("beforeprint", showAll);
  shared.onZoom = (range) => (reset.hidden = range === null);

  function changedTools() {
    localStorage.setItem(KEPT, JSON.stringify({ smooth: Number(smooth.value), axis: axis.value, log: log.checked }));
    draw();
  }

  function metrics() {
    const found = new Set();
    for (const run of runs) {
      for (const record of [run.train.at(-1), run.train[0], run.evals.at(-1), run.evals[0]]) {
        for (const [key, value] of Object.entries(record || {})) {
          const isEnd = /_(low|high)$/.test(key) && key.replace(/_(low|high)$/, "") in record;
          if (!COUNTERS.has(key) && !isEnd && (typeof value === "number" || value === null)) found.add(key);
        }
      }
    }
    return [...found];
  }

  function section(group) {
    if (!sections.has(group)) {
      const figures = h("div", { class: "figures live" });
      const details = h("details", { open: !FOLDED.includes(group) }, h("summary", {}, TITLES[group] || group), figures);
      sections.set(group, { details, figures });
      const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
      const names = [...sections.keys()].sort((first, second) => rank(first) - rank(second));
      groups.insertBefore(details, sections.get(names[names.indexOf(group) + 1])?.details || null);
    }
    return sections.get(group);
  }

  function arrange() {
    const text = filter.value.toLowerCase();
    for (const key of metrics()) {
      if (charts.has(key)) continue;
      const chart = new Chart(key);
      charts.set(key, chart);
      chart.svg.chart = chart;
      section(key.includes("/") ? key.split("/")[0] : "other").figures.append(chart.element);
      visible.observe(chart.svg);
      sized.observe(chart.svg);
    }
    for (const [key, chart] of charts) chart.element.hidden = !key.toLowerCase().includes(text);
    for (const { details, figures } of sections.values()) {
      details.hidden = ![...figures.children].some((figure) => !figure.hidden);
      if (text) details.open = true;
    }
    empty.hidden = charts.size > 0;
  }

  function draw() {
    arrange();
    const options = { axis: AXES[axis.value], log: log.checked };
    for (const [key, chart] of charts) chart.set(linesOf(key), options);
  }

  function linesOf(key) {
    const lines = [];
    for (const run of runs) {
      const only = runs.length === 1;
      const colour = only ? kindColour(key) : run.colour;
      const train = series(run.train, key, axis.value);
      if (train) {
        const smoothed = smoothing(train.y, Number(smooth.value));
        const line = { ...train, name: only ? "training" : run.name, colour, dash: run.dash };
        lines.push(smoothed === train.y ? line : { ...line, y: smoothed, raw: train.y });
      }
      const held = series(run.evals, key, axis.value);
      if (held) lines.push({ ...held, ...interval(run.evals, key, held), name: only ? "held-out" : `${run.name}, held-out`, colour: only && train ? "--good" : colour, dots: true });
    }
    return lines;
  }

  const changed = paced(draw, DRAW_MS);
  changed();
  return {
    changed,
    viewed: changed, // the name of a run has come
    leave: () => {
      removeEventListener("beforeprint", showAll);
      changed.stop();
      visible.disconnect();
      sized.disconnect();
      shared.charts.clear();
      shared.zoom = null;
    },
    keys: { "/": ["filter metrics", () => filter.focus()], z: ["whole run, no zoom", () => zoomAll(null)] },
  };
}

function series(records, key, axis) {
  const x = [];
  const y = [];
  for (const record of records) {
    if (!(key in record) || typeof record[axis] !== "number") continue;
    x.push(record[axis]);
    y.push(typeof record[key] === "number" ? record[key] : NaN);
  }
  return y.some(Number.isFinite) ? { x, y } : null;
}

function interval(records, key, held) {
  const ends = ["low", "high"].map((end) => records.filter((record) => key in record).map((record) => record[`${key}_${end}`] ?? NaN));
  return ends[0].length === held.x.length && ends[0].some(Number.isFinite) ? { low: ends[0], high: ends[1] } : {};
}

// The exponential mean that TensorBoard and W&B draw, without its bias towards 0 at the start.
function smoothing(values, weight) {
  if (weight === 0 || values.length < 3) return values;
  let mean = 0;
  let count = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return NaN;
    mean = weight * mean + (1 - weight) * value;
    count += 1;
    return mean / (1 - weight ** count);
  });
}

function kindColour(key) {
  for (const kind of ["prompt", "identity", "quality"]) if (key.includes(kind)) return `--${kind}`;
  return "--plain";
}
