// All runs and comparisons of the folders, live.
import { follow } from "./api.js";
import { showControl } from "./control.js";
import { h } from "./dom.js";
import { ago, number } from "./format.js";

const HEADLINES = [
  ["judge/identity", "reward/identity", "Identity"],
  ["judge/prompt", "reward/prompt", "Prompt"],
];
const selected = new Set();

export function badge(run) {
  const words = { elsewhere: `on ${run.host}?` };
  return h("span", { class: `badge ${run.state}`, title: run.problem || run.ending || null }, words[run.state] || run.state);
}

export function progress(run) {
  const share = run.total ? Math.min(1, run.iteration / run.total) : 0;
  return h(
    "span",
    { class: "progress", title: "iterations" },
    h("progress", { max: 1, value: share, "aria-label": "iterations done" }),
    ` ${run.iteration} / ${run.total ?? "?"}`,
  );
}

function heldOut(run, [judge, reward]) {
  const key = run.held_out[judge] ? judge : reward;
  const change = run.held_out[key];
  if (!change) return h("span", { class: "small" }, "–");
  const moved = change.base !== null && run.iteration > 0;
  return h("span", { title: key }, moved ? `${change.base.toFixed(2)} → ${change.now.toFixed(2)}` : change.now.toFixed(2));
}

function rewards(run) {
  const parts = Object.entries(run.rewards).map(([name, value]) => `${name} ${number(value, 2)}`);
  return parts.join(", ") || "–";
}

export function showList(place, words, setPath) {
  const filter = h("input", { type: "search", placeholder: "Filter  ( / )", "aria-label": "Filter runs", oninput: () => draw() });
  const compare = h("button", { type: "button", class: "main", onclick: open }, "Compare");
  const body = h("tbody");
  const names = ["", "Run", "State", "Iterations", "Training rewards", ...HEADLINES.map((line) => line[2]), "Written"];
  const heads = names.map((name) => h("th", {}, name));
  const table = h("table", { class: "runs" }, h("thead", {}, h("tr", {}, heads)), body);
  const comparisons = h("div", { class: "comparisons" });
  const empty = h("p", { class: "lead" }, "Looking for runs …");
  let list = { runs: [], comparisons: [], folders: [] };
  let cursor = -1;

  setPath([]);
  const tools = h("div", { class: "tools" }, filter, compare);
  place.append(tools, comparisons, table, empty);
  const leaveControl = showControl(tools);

  const shown = () => {
    const text = filter.value.toLowerCase();
    return list.runs.filter((run) => `${run.name} ${run.state}`.toLowerCase().includes(text));
  };

  function draw() {
    const runs = shown();
    cursor = Math.min(cursor, runs.length - 1);
    const focused = document.activeElement?.dataset?.run;
    body.replaceChildren(...runs.map((run, index) => row(run, index)));
    if (focused) body.querySelector(`input[data-run="${focused}"]`)?.focus();
    table.hidden = !runs.length;
    empty.hidden = runs.length > 0;
    empty.textContent = list.runs.length ? "No run has this in its name or state." : `No runs in ${list.folders.join(", ")} yet.`;
    comparisons.replaceChildren(...list.comparisons.map(card));
    compare.disabled = selected.size === 0;
    compare.textContent = selected.size > 1 ? `Compare ${selected.size} runs` : "Open";
  }

  function row(run, index) {
    const box = h("input", {
      type: "checkbox",
      "data-run": run.id,
      "aria-label": `Select ${run.name}`,
      onchange: () => toggle(run),
    });
    box.checked = selected.has(run.id);
    const alarms = run.alarms.map((text) => h("span", { class: "alarm-line" }, `⚠ ${text}`));
    return h(
      "tr",
      { class: index === cursor ? "cursor" : null },
      h("td", { class: "box" }, box),
      h("td", { class: "name" }, h("a", { href: `#/runs/${run.id}` }, run.name), alarms),
      h("td", {}, badge(run)),
      h("td", { class: "number" }, progress(run)),
      h("td", { class: "small rewards" }, rewards(run)),
      HEADLINES.map((line) => h("td", { class: "number", "data-name": line[2] }, heldOut(run, line))),
      h("td", { class: "small when" }, ago(run.written_s)),
    );
  }

  function card(entry) {
    const of = list.runs.filter((run) => run.comparison === entry.id);
    const ended = of.filter((run) => run.state === "ended").length + entry.elsewhere;
    const all = Math.max(entry.runs, of.length);
    const joined = entry.elsewhere ? `, ${entry.elsewhere} of them elsewhere` : "";
    return h(
      "a",
      { class: "card", href: `#/comparisons/${entry.id}` },
      h("strong", {}, entry.name),
      h("span", { class: "small" }, `comparison, ${ended} of ${all} runs ended${joined}`),
    );
  }

  function toggle(run) {
    if (!selected.delete(run.id)) selected.add(run.id);
    draw();
  }

  function open() {
    if (selected.size) location.hash = `#/runs/${[...selected].join(",")}`;
  }

  function move(step) {
    cursor = Math.max(0, Math.min(shown().length - 1, cursor + step));
    draw();
    body.children[cursor]?.scrollIntoView({ block: "nearest" });
  }

  const atCursor = (action) => () => shown()[cursor] && action(shown()[cursor]);
  const stop = follow("/api/stream", {
    list: (news) => {
      list = news;
      const known = new Set(list.runs.map((run) => run.id));
      for (const id of selected) if (!known.has(id)) selected.delete(id);
      draw();
    },
  });
  const clock = setInterval(draw, 10000); // "3 min ago" grows old by itself
  return {
    leave: () => {
      stop();
      leaveControl();
      clearInterval(clock);
    },
    keys: {
      "/": ["filter", () => filter.focus()],
      j: ["next run", () => move(1)],
      k: ["run before", () => move(-1)],
      x: ["select the run", atCursor(toggle)],
      Enter: ["open the run", atCursor((run) => (location.hash = `#/runs/${run.id}`))],
      c: ["compare the selected runs", open],
    },
  };
}
