// Starting, stopping and resuming runs; nothing of it is there unless the studio was started with --control.
import { getJson, post } from "./api.js";
import { h } from "./dom.js";

const LOOK_MS = 1500;
let state = null; // ControlView, asked for once

export async function control() {
  state ??= await getJson("/api/control");
  return state;
}

// The button for a new run and the processes that were started, for the list; gives what to do at the end.
export function showControl(place) {
  const jobs = h("div", { class: "jobs" });
  let timer = null;
  let isGone = false;

  function draw(view) {
    jobs.replaceChildren(
      ...view.jobs
        .filter((job) => job.words || job.status === null)
        .map((job) =>
          h(
            "details",
            { class: job.words ? "job failed" : "job", open: Boolean(job.words) },
            h("summary", {}, `${job.verb} ${job.name}: ${job.status === null ? "runs" : `failed with status ${job.status}`}`),
            job.words && h("pre", {}, job.words),
          ),
        ),
    );
  }

  async function look() {
    const view = await getJson("/api/control").catch(() => null);
    if (isGone || !view) return;
    draw(view);
    timer = setTimeout(look, LOOK_MS);
  }

  control().then((view) => {
    if (!view.is_on || isGone) return;
    const button = h("button", { type: "button", onclick: () => startDialog(view, draw) }, "New run");
    place.append(button);
    place.after(jobs);
    look();
  });
  return () => {
    isGone = true;
    clearTimeout(timer);
  };
}

async function startDialog(view, draw) {
  const { runs } = await getJson("/api/list");
  const refused = h("p", { class: "refused", role: "alert" });
  const options = [
    ...view.presets.map((name) => h("option", { value: name })),
    ...runs.map((run) => h("option", { value: `run ${run.name}` })),
  ];
  const recipe = h("input", { type: "text", list: "recipes", required: true, autocomplete: "off", placeholder: "preset, path of a YAML file, or run NAME" });
  const name = h("input", { type: "text", required: true, autocomplete: "off", pattern: "[A-Za-z0-9][A-Za-z0-9_.+\\-]*" });
  const settings = h("textarea", { rows: 5, spellcheck: "false", placeholder: "train.iterations=100\nschedule.name=constant" });
  const form = h(
    "form",
    { class: "start" },
    h("h2", {}, "New run"),
    h("label", {}, "Recipe", recipe),
    h("datalist", { id: "recipes" }, options),
    h("label", {}, `Name of the folder in ${view.folder}`, name),
    h("label", {}, "Settings that replace the recipe's, one in each line", settings),
    refused,
    h("div", { class: "tools" }, h("button", { class: "main" }, "Start"), h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
  );
  const dialog = h("dialog", { "aria-label": "New run", onclose: () => dialog.remove() }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const source = runs.find((run) => `run ${run.name}` === recipe.value);
    try {
      draw(await post("/api/control/start", { recipe: source ? source.id : recipe.value, name: name.value, settings: lines(settings.value) }));
      dialog.close();
    } catch (error) {
      refused.textContent = error.message;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
}

// The buttons of a run: Stop while it trains here, Resume when it does not.
export function runButtons(run, report) {
  if (!state?.is_on || !run.view) return null;
  const act = (path, body) => () => post(path, body).then(() => report(""), (error) => report(error.message));
  const words = { running: "Stop", stopped: "Resume", failed: "Resume", ended: "Train longer" }[run.view.state];
  if (!words) return null;
  if (words === "Stop") {
    return h("button", { type: "button", title: "Save a checkpoint and stop", onclick: act("/api/control/stop", { run: run.id }) }, words);
  }
  if (words === "Resume") return h("button", { type: "button", onclick: act("/api/control/resume", { run: run.id }) }, words);
  return h("button", { type: "button", onclick: () => longerDialog(run, act) }, words);
}

function longerDialog(run, act) {
  const total = h("input", { type: "number", min: run.view.iteration + 1, value: run.view.iteration * 2, required: true });
  const form = h(
    "form",
    { class: "start" },
    h("label", {}, `Iterations in all; ${run.name} has done ${run.view.iteration}`, total),
    h("div", { class: "tools" }, h("button", { class: "main" }, "Resume"), h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
  );
  const dialog = h("dialog", { "aria-label": "Train longer", onclose: () => dialog.remove() }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act("/api/control/resume", { run: run.id, settings: [`train.iterations=${total.value}`] })();
    dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
