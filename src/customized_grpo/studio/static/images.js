// The sample images of the runs side by side, and a slider through the training.
import { getJson } from "./api.js";
import { h } from "./dom.js";

const PLAY_MS = 600;

export function showImages(place, runs) {
  const slider = h("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Training so far", oninput: () => ((follows = Number(slider.value) === stages.length - 1), draw()) });
  const label = h("output", {});
  const play = h("button", { type: "button", onclick: () => toggle() }, "Play");
  const strip = h("input", { type: "checkbox", onchange: () => rebuild() });
  const tools = h("div", { class: "tools" }, play, h("label", { class: "stages" }, "Training so far ", slider, label), h("label", {}, strip, " all stages"));
  const rows = h("div", { class: "image-rows" });
  const empty = h("p", { class: "lead" }, "No sample images yet: they come with the first evaluation.");
  place.append(tools, empty, rows);

  const samples = new Map(); // run id -> {rows, iterations}
  let stages = [];
  let follows = true; // whether the newest stage is shown, also when another one comes
  let timer = null;
  let isGone = false;

  const stageName = (iteration) => (iteration === 0 ? "base" : `iteration ${iteration}`);
  const address = (run, row, which, side) => `/api/runs/${run.id}/samples/${row}/${which}${side ? `?side=${side}` : ""}`;

  async function read(run) {
    const found = await getJson(`/api/runs/${run.id}/samples`);
    if (isGone) return;
    samples.set(run.id, found);
    const all = new Set();
    for (const { iterations } of samples.values()) for (const iteration of iterations) all.add(iteration);
    stages = [...all].sort((first, second) => first - second);
    slider.max = String(Math.max(0, stages.length - 1));
    if (follows) slider.value = slider.max;
    rebuild();
  }

  // The newest image of a run that is not newer than the slider.
  function stageOf(run) {
    const at = stages[Number(slider.value)];
    return (samples.get(run.id)?.iterations || []).filter((iteration) => iteration <= at).at(-1);
  }

  function prompts() {
    const found = new Map(); // prompt and subject -> {row, of: run id -> row number}
    for (const run of runs) {
      (samples.get(run.id)?.rows || []).forEach((row, number) => {
        const key = JSON.stringify([row.prompt, row.subject]);
        if (!found.has(key)) found.set(key, { row, of: new Map() });
        if (!found.get(key).of.has(run.id)) found.get(key).of.set(run.id, number);
      });
    }
    return [...found.values()];
  }

  function rebuild() {
    const found = prompts();
    empty.hidden = found.length > 0;
    tools.hidden = stages.length < 2;
    rows.replaceChildren(...found.map(block));
    draw();
  }

  function block({ row, of }) {
    const [owner, number] = [...of.entries()][0];
    const first = runs.find((run) => run.id === owner);
    const cells = [];
    if (row.has_reference) cells.push(cell(address(first, number, "reference", 512), "reference", "Reference image of the subject"));
    if (row.has_target) cells.push(cell(address(first, number, "target", 512), "true image", "A true image of the prompted scene"));
    for (const run of runs) {
      if (!of.has(run.id)) cells.push(h("div", { class: "missing small" }, `${run.name} has no such prompt`));
      else if (strip.checked) for (const iteration of samples.get(run.id).iterations) cells.push(drawnCell(run, of.get(run.id), row, iteration));
      else cells.push(drawnCell(run, of.get(run.id), row, null));
    }
    const words = [row.subject && h("span", { class: "small" }, `${row.subject} `), `“${row.prompt}”`];
    return h("section", { class: "image-row" }, h("p", { class: "prompt" }, words), h("div", { class: strip.checked ? "images all" : "images" }, cells));
  }

  function cell(source, words, alt, run) {
    const image = h("img", { src: source, alt, loading: "lazy" });
    const button = h("button", { type: "button", class: "image", "aria-label": `Enlarge: ${alt}`, onclick: () => enlarge(image, alt) }, image);
    return h("div", { style: run && runs.length > 1 ? { "--c": `var(${run.colour})` } : {} }, button, h("span", {}, words));
  }

  function drawnCell(run, number, row, fixed) {
    const element = cell("data:,", "", `Drawn for ${row.prompt}`, run);
    element.classList.add("drawn");
    Object.assign(element, { run, number, fixed });
    return element;
  }

  function draw() {
    label.textContent = stages.length ? stageName(stages[Number(slider.value)]) : "";
    for (const element of rows.querySelectorAll(".drawn")) {
      const { run, number, fixed } = element;
      const iteration = fixed ?? stageOf(run);
      const image = element.querySelector("img");
      image.hidden = iteration === undefined;
      if (iteration === undefined) continue;
      const source = address(run, number, iteration, 512);
      if (image.getAttribute("src") !== source) image.setAttribute("src", source);
      element.lastChild.textContent = runs.length > 1 ? `${run.name}, ${stageName(iteration)}` : stageName(iteration);
    }
  }

  function enlarge(image, alt) {
    const dialog = document.getElementById("large");
    const source = image.getAttribute("src").replace(/\?side=.*/, "");
    dialog.replaceChildren(h("img", { src: source, alt }), h("form", { method: "dialog" }, h("button", {}, "Close")));
    dialog.showModal();
  }

  function move(step) {
    slider.value = String(Number(slider.value) + step);
    follows = Number(slider.value) === stages.length - 1;
    draw();
  }

  function toggle() {
    play.textContent = timer ? "Play" : "Pause";
    if (timer) timer = clearInterval(timer);
    else timer = setInterval(() => (Number(slider.value) === stages.length - 1 ? move(-stages.length) : move(1)), PLAY_MS);
  }

  const report = (error) => place.prepend(h("p", { class: "refused", role: "alert" }, error.message));
  for (const run of runs) read(run).catch(report);
  return {
    changed: (run, records) => {
      if (records.some((record) => record.kind === "eval")) read(run).catch(report);
    },
    viewed: () => draw(),
    leave: () => {
      isGone = true;
      clearInterval(timer);
    },
    keys: { ",": ["stage before", () => move(-1)], ".": ["next stage", () => move(1)], p: ["play", toggle] },
  };
}
