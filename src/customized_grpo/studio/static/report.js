// The figures of the report, which the server draws: one look in the studio and in the file that is mailed.
import { getText } from "./api.js";
import { h, setDrawn } from "./dom.js";

const PAUSE_MS = 3000; // at least between two drawings: the server reads the whole run for each

export function showReport(place, runs) {
  const columns = new Map(runs.map((run) => [run.id, h("div", { class: "report" })]));
  place.classList.toggle("side-by-side", runs.length > 1);
  place.append(...columns.values());
  const waiting = new Set();
  let isGone = false;

  async function draw(run) {
    const column = columns.get(run.id);
    try {
      const html = await getText(`/api/runs/${run.id}/report`);
      if (!isGone) setDrawn(column, html);
    } catch (error) {
      column.replaceChildren(h("p", { class: "refused", role: "alert" }, error.message));
    }
  }

  function changed(run) {
    if (waiting.has(run.id)) return;
    waiting.add(run.id);
    const isFirst = !columns.get(run.id).children.length;
    setTimeout(() => {
      waiting.delete(run.id);
      if (!isGone) draw(run);
    }, isFirst ? 0 : PAUSE_MS);
  }

  return { changed, leave: () => (isGone = true), keys: {} };
}
