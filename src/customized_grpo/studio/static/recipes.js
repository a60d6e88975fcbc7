// The resolved recipe of a run, and where it differs from another run.
import { getJson, getText } from "./api.js";
import { h } from "./dom.js";

export function showRecipes(place, runs) {
  const [first] = runs;
  const differences = h("div", { class: "differences" });
  const other = h("select", { "aria-label": "Difference to", onchange: () => compare([other.value]) });
  const text = h("pre");
  const download = h("a", { download: "recipe.yaml", href: `/api/runs/${first.id}/recipe` }, "Save as a file");
  const choice = h("label", {}, "Difference to ", other);
  place.append(choice, differences, h("h2", {}, "Recipe of the first run"), download, text);

  async function compare(ids) {
    const tables = await Promise.all(ids.filter(Boolean).map((id) => table(id)));
    differences.replaceChildren(...tables);
  }

  async function table(id) {
    const rows = await getJson(`/api/runs/${first.id}/difference/${id}`);
    const name = known.get(id) || id;
    if (!rows.length) return h("p", { class: "lead" }, `${name} has the same recipe.`);
    const heads = ["Setting", known.get(first.id), name].map((words) => h("th", {}, words));
    const body = rows.map((row) =>
      h("tr", {}, h("td", {}, key(row.key)), h("td", {}, value(row.first)), h("td", {}, value(row.second))),
    );
    return h("div", { class: "scroll" }, h("table", { class: "difference" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body)));
  }

  // a name may be broken after a dot or a low line, and nowhere else
  const key = (name) => h("code", {}, ...name.split(/(?<=[._])/).flatMap((part) => [part, h("wbr")]));
  const value = (given) => (given === null || given === undefined ? "–" : typeof given === "string" ? given : JSON.stringify(given));
  const known = new Map();

  async function start() {
    const list = await getJson("/api/list");
    for (const run of list.runs) known.set(run.id, run.name);
    const others = list.runs.filter((run) => run.id !== first.id);
    other.replaceChildren(h("option", { value: "" }, "choose a run"), ...others.map((run) => h("option", { value: run.id }, run.name)));
    choice.hidden = runs.length > 1;
    if (runs.length > 1) compare(runs.slice(1).map((run) => run.id));
    text.textContent = await getText(`/api/runs/${first.id}/recipe`);
  }

  start().catch((error) => place.prepend(h("p", { class: "refused", role: "alert" }, error.message)));
  return { leave: () => {}, keys: {} };
}
