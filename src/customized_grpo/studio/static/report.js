// The figures of the report, which the server draws: one look in the studio and in the file that is mailed.
import { getText } from "./api.js";
import { h, setDrawn } from "./dom.js";
import { paced } from "./pace.js";

const PAUSE_MS = 3000; // at least between two drawings: the server reads the whole run for each

export function showReport(place, runs) {
  const columns = new Map(runs.map((run) => [run.id, h("div", { class: "report" })]));
  place.classList.toggle("side-by-side", runs.length > 1);
  place.append(...columns.values());
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

  const draws = new Map(runs.map((run) => [run.id, paced(() => draw(run), PAUSE_MS)]));

  function leave() {
    isGone = true;
    for (const ask of draws.values()) ask.stop();
  }

  return { changed: (run) => draws.get(run.id)(), leave, keys: {} };
}
