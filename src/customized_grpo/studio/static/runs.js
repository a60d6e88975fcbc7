// One run, or several side by side: a head with state and alarms, and tabs.
import { follow, getText } from "./api.js";
import { showCharts } from "./charts.js";
import { control, runButtons } from "./control.js";
import { h, setDrawn } from "./dom.js";
import { showImages } from "./images.js";
import { badge, progress } from "./list.js";
import { paced } from "./pace.js";
import { showRecipes } from "./recipes.js";
import { showReport } from "./report.js";

const TABS = { charts: ["Charts", showCharts], images: ["Images", showImages], report: ["Report", showReport], recipe: ["Recipe", showRecipes] };
const COLOURS = ["--arm1", "--arm2", "--arm3", "--arm4", "--arm5", "--plain"];
const HEAD_MS = 2000; // at least between two looks at the alarms of a run

export function showRuns(place, [ids = "", tab = "charts"], setPath) {
  const runs = [...new Set(ids.split(","))].map((id, index) => ({
    id,
    name: "…",
    colour: COLOURS[index % COLOURS.length],
    dash: index < COLOURS.length ? null : "5 3",
    train: [],
    evals: [],
    view: null,
  }));
  const byId = new Map(runs.map((run) => [run.id, run]));
  const chips = h("div", { class: "chips" });
  const head = h("div", { class: runs.length > 1 ? "heads" : "head" });
  const tabs = h("div", { class: "tabs", role: "tablist" });
  const panel = h("div", { class: "panel", role: "tabpanel" });
  const heads = new Map(runs.map((run) => [run.id, h("div", { class: "run-head" })]));
  head.append(...heads.values());
  const refused = h("p", { class: "refused", role: "alert" });
  place.append(chips, refused, head, tabs, panel);
  control().then(drawChips, () => {});

  let shown = { leave: () => {}, keys: {} };
  const address = (name) => `#/runs/${ids}/${name}`;
  for (const [name, [title]] of Object.entries(TABS)) {
    const isOn = name === tab;
    tabs.append(h("a", { role: "tab", href: address(name), "aria-selected": String(isOn), class: isOn ? "on" : null }, title));
  }
  const [, show] = TABS[tab] || TABS.charts;
  shown = show(panel, runs);

  function drawChips() {
    setPath([h("span", {}, runs.length > 1 ? `${runs.length} runs` : "run")]);
    document.title = `${runs.map((run) => run.name).join(", ")} · Studio`;
    chips.replaceChildren(...runs.map((run) => chip(run)));
  }

  function chip(run) {
    const others = runs.filter((other) => other !== run).map((other) => other.id);
    return h(
      "div",
      { class: "chip", style: { "--c": `var(${run.colour})` } },
      runs.length > 1 && h("span", { class: "patch" }),
      h("strong", {}, run.name),
      run.view && badge(run.view),
      run.view && progress(run.view),
      run.view?.ending && h("span", { class: "small" }, run.view.ending),
      runButtons(run, (message) => (refused.textContent = message)),
      runs.length > 1 && h("a", { href: `#/runs/${others.join(",")}/${tab}`, "aria-label": `Leave out ${run.name}`, title: "Leave out" }, "×"),
    );
  }

  async function drawHead(run) {
    const element = heads.get(run.id);
    try {
      setDrawn(element, await getText(`/api/runs/${run.id}/head`));
    } catch (error) {
      element.replaceChildren(h("p", { class: "refused", role: "alert" }, error.message));
    }
    if (runs.length > 1) element.prepend(h("h3", {}, run.name));
  }

  function take({ run: id, restarted, records }) {
    const run = byId.get(id);
    if (restarted) {
      run.train = [];
      run.evals = [];
    }
    for (const record of records) {
      if (record.kind === "train") run.train.push(record);
      else if (record.kind === "eval") run.evals.push(record);
    }
    shown.changed?.(run, records);
    run.askHead();
  }

  for (const run of runs) run.askHead = paced(() => drawHead(run), HEAD_MS);
  const query = runs.map((run) => `runs=${encodeURIComponent(run.id)}`).join("&");
  const stop = follow(`/api/stream?${query}`, {
    records: take,
    run: (view) => {
      const run = byId.get(view.id);
      run.view = view;
      run.name = view.name;
      drawChips();
      shown.viewed?.(run);
    },
  });
  drawChips();

  const keys = {};
  Object.keys(TABS).forEach((name, index) => {
    keys[String(index + 1)] = [TABS[name][0].toLowerCase(), () => (location.hash = address(name))];
  });
  return {
    leave: () => {
      stop();
      shown.leave();
      for (const run of runs) run.askHead.stop();
      document.title = "Studio · Customized-GRPO";
    },
    keys: { ...keys, ...shown.keys },
  };
}
