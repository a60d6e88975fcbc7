// A comparison: the page that `cgrpo compare` writes, drawn again from its newest results, and its runs.
import { follow } from "./api.js";
import { h } from "./dom.js";
import { badge, progress } from "./list.js";

export function showComparison(place, [id], setPath) {
  const frame = h("iframe", { class: "page", title: "The page of the comparison", sandbox: "", hidden: true });
  const note = h("p", { class: "lead" }, "Reading …");
  const runs = h("ul", { class: "runs-of" });
  let written = null;
  place.append(h("details", {}, h("summary", {}, "Its runs"), runs), note, frame);

  const stop = follow("/api/stream", {
    list: (list) => {
      const entry = list.comparisons.find((comparison) => comparison.id === id);
      setPath([h("strong", {}, entry ? entry.name : "no such comparison")]);
      const of = list.runs.filter((run) => run.comparison === id);
      const elsewhere = entry?.elsewhere ? [h("li", { class: "small" }, `${entry.elsewhere} joined from elsewhere, without folders here`)] : [];
      runs.replaceChildren(
        ...elsewhere,
        ...of.map((run) => h("li", {}, h("a", { href: `#/runs/${run.id}` }, run.name), " ", badge(run), " ", progress(run))),
      );
      note.hidden = Boolean(entry?.written_s);
      note.textContent = entry ? "Its results are there when the first run has ended." : "";
      frame.hidden = !entry?.written_s;
      if (entry?.written_s && entry.written_s !== written) {
        written = entry.written_s;
        frame.src = `/api/comparisons/${id}/page`;
      }
    },
  });
  return { leave: stop, keys: {} };
}
