// The frame of the studio: which view an address shows, where the reader is, and the keys.
import { showComparison } from "./comparison.js";
import { h } from "./dom.js";
import { showList } from "./list.js";
import { getJson } from "./api.js";
import { showRuns } from "./runs.js";
import { showVote } from "./vote.js";

const main = document.getElementById("main");
const path = document.getElementById("path");
const keysDialog = document.getElementById("keys");
let leave = () => {};
let keys = {};
let first = showList; // what the address without a place shows

const EVERYWHERE = { "?": ["this list", () => showKeys()], g: ["all runs", () => (location.hash = "#/")] };

// A view is a function of its place and the words of the address. It returns what to do when the reader leaves,
// and its keys: {key: [what it does, function]}.
function route() {
  leave();
  const [kind, ...words] = location.hash.replace(/^#\/?/, "").split("/");
  // a place of its own: what a view that was left draws late is seen by nobody
  const place = h("div");
  main.replaceChildren(place);
  const view = { runs: showRuns, comparisons: showComparison, vote: showVote }[kind] || first;
  const shown = view(place, words, (parts) => path.replaceChildren(...parts));
  leave = shown.leave;
  keys = { ...EVERYWHERE, ...shown.keys };
  scrollTo(0, 0);
}

function showKeys() {
  const rows = Object.entries(keys).map(([key, [what]]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)));
  keysDialog.replaceChildren(
    h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, rows),
    h("form", { method: "dialog" }, h("button", {}, "Close")),
  );
  keysDialog.showModal();
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (field) {
    if (event.key === "Escape") field.blur();
    return;
  }
  const entry = keys[event.key];
  if (!entry) return;
  event.preventDefault();
  entry[1](event);
});

document.getElementById("help").addEventListener("click", showKeys);
const booth = await getJson("/api/vote");
if (booth.is_on) first = showVote;
addEventListener("hashchange", route);
route();
