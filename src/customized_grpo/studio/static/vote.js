// A blind vote: a reference, a prompt and two images; two questions; keys for left, right and no difference.
import { getJson, post } from "./api.js";
import { h } from "./dom.js";
import { number } from "./format.js";

const NAME = "studio-voter";
const KEYS = { left: ["ArrowLeft", "1"], right: ["ArrowRight", "2"], tie: ["ArrowDown", "0"] };
const WORDS = { left: "Left", right: "Right", tie: "No difference" };

export function showVote(place, words, setPath) {
  setPath([h("strong", {}, "Blind vote")]);
  if (words[0] === "results") return showResults(place);
  let items = [];
  let booth = null;
  let voter = "";
  let at = 0; // item
  let asked = 0; // question
  let isBusy = false;

  const isDone = (item) => item.questions.every((question) => item.answers[question]);

  async function begin(name) {
    booth = await getJson("/api/vote");
    items = await getJson(`/api/vote/items?voter=${encodeURIComponent(name)}`);
    voter = name;
    localStorage.setItem(NAME, name);
    const open = items.findIndex((item) => !isDone(item));
    at = open < 0 ? items.length : open;
    asked = open < 0 ? 0 : items[open].questions.findIndex((question) => !items[open].answers[question]);
    draw();
  }

  function askName(problem) {
    const field = h("input", { type: "text", value: localStorage.getItem(NAME) || "", maxlength: 40, required: true, autocomplete: "off" });
    const submit = (event) => {
      event.preventDefault();
      begin(field.value).catch((error) => askName(error.message));
    };
    place.replaceChildren(
      h(
        "form",
        { class: "start", onsubmit: submit },
        h("h1", {}, "Which image is better?"),
        h("p", { class: "lead" }, "Two models have drawn the same prompts for the same references. You see both without their names, in random order, and answer two questions on each. You can stop at any time and go on under the same name."),
        h("label", {}, "Your name", field),
        problem && h("p", { class: "refused", role: "alert" }, problem),
        h("div", { class: "tools" }, h("button", { class: "main" }, "Begin")),
      ),
    );
    field.focus();
  }

  function draw() {
    if (at >= items.length) return drawEnd();
    const item = items[at];
    const question = item.questions[asked];
    const given = item.answers[question];
    const source = (which) => `/api/vote/image/${item.number}/${which}?voter=${encodeURIComponent(voter)}`;
    const done = items.filter(isDone).length;
    const shown = (entry) => (entry.questions.includes("identity") ? ["reference", "left", "right"] : ["left", "right"]);
    const image = (which, words) =>
      h("figure", { class: `voted ${which} ${given === which ? "given" : ""}` }, h("img", { src: source(which), alt: words, onclick: () => which !== "reference" && answer(which) }), h("figcaption", {}, words));
    const buttons = Object.keys(WORDS).map((choice) =>
      h("button", { type: "button", "aria-pressed": String(given === choice), class: given === choice ? "main" : null, onclick: () => answer(choice) }, h("kbd", {}, { left: "←", right: "→", tie: "↓" }[choice]), ` ${WORDS[choice]}`),
    );
    place.replaceChildren(
      h("div", { class: "vote-head" }, h("progress", { max: items.length, value: done, "aria-label": "done" }), h("span", { class: "small" }, `${voter}: ${done} of ${items.length} done`)),
      h("p", { class: "vote-prompt" }, `“${item.prompt}”`),
      h("div", { class: "vote-images" }, shown(item).map((which) => image(which, which))),
      h("h2", { class: "vote-question", "aria-live": "polite" }, `${asked + 1}. ${booth.questions[question]}`),
      h("div", { class: "vote-buttons" }, [buttons[0], buttons[2], buttons[1]]),
      h("div", { class: "tools vote-back" }, h("button", { type: "button", disabled: at + asked === 0, onclick: back }, h("kbd", {}, "⌫"), " Back")),
    );
    const next = items[at + 1];
    if (next) for (const which of shown(next)) new Image().src = `/api/vote/image/${next.number}/${which}?voter=${encodeURIComponent(voter)}`;
  }

  async function answer(choice) {
    if (at >= items.length || isBusy || !booth) return;
    const question = items[at].questions[asked];
    isBusy = true;
    try {
      await post("/api/vote", { voter, number: items[at].number, question, choice });
      items[at].answers[question] = choice;
      step(1);
    } catch (error) {
      place.append(h("p", { class: "refused", role: "alert" }, `The vote was not kept: ${error.message}`));
    }
    isBusy = false;
  }

  function step(by) {
    asked += by;
    if (asked < 0) {
      at -= 1;
      asked = items[at].questions.length - 1;
    } else if (at < items.length && asked >= items[at].questions.length) {
      at += 1;
      asked = 0;
    }
    draw();
  }

  const back = () => booth && at + asked > 0 && step(-1);

  function drawEnd() {
    place.replaceChildren(
      h("h1", {}, "Thank you"),
      h("p", { class: "lead" }, `${voter} has voted on all ${items.length} pairs. The results name the models: whoever has not voted yet should not see them.`),
      h("div", { class: "tools" }, h("button", { type: "button", onclick: back }, "Back to the last pair"), h("button", { type: "button", onclick: () => askName() }, "Another voter"), h("a", { href: "#/vote/results" }, "Results")),
    );
  }

  askName();
  const keys = { Backspace: ["the question before", () => back()] };
  for (const [choice, names] of Object.entries(KEYS)) for (const name of names) keys[name] = [WORDS[choice].toLowerCase(), () => answer(choice)];
  return { leave: () => {}, keys };
}

function showResults(place) {
  const refused = (error) => place.replaceChildren(h("p", { class: "refused", role: "alert" }, error.message));
  getJson("/api/vote/results").then((found) => {
    const interval = (row) => (row.low === null ? "no interval: one subject" : `[${number(row.low)}, ${number(row.high)}], ${row.subjects} subjects`);
    const kappa = ({ agreement }) => (agreement.kappa === null ? `– (${agreement.kind}, ${agreement.items} items)` : `${number(agreement.kappa)} (${agreement.kind}, ${agreement.items} items)`);
    const rows = found.results.map((row) =>
      h(
        "tr",
        {},
        h("td", { class: "wide-cell" }, h("strong", {}, row.question)),
        h("td", { class: "number", "data-name": "votes" }, `${row.votes} of ${row.voters} ${row.voters === 1 ? "voter" : "voters"}`),
        h("td", { class: "number", "data-name": "a, tie, b" }, `${row.wins} / ${row.ties} / ${row.losses}`),
        h("td", { class: "number", "data-name": "win rate of a" }, h("div", { class: "big" }, number(row.rate)), h("div", { class: "small" }, interval(row))),
        h("td", { class: "number", "data-name": "kappa" }, kappa(row)),
        h("td", { class: "number", "data-name": "left" }, row.left === null ? "–" : number(row.left, 2)),
      ),
    );
    const heads = ["Question", "Votes", "a / tie / b", "Win rate of a", "Agreement (kappa)", "Left chosen"];
    place.replaceChildren(
      h("h1", {}, "Results of the vote"),
      h("p", { class: "lead" }, `a is ${found.a} (iteration ${found.iterations[0]}), b is ${found.b} (iteration ${found.iterations[1]}). A tie counts half. Intervals are 95 %, for new subjects: votes on one subject are one cluster. With fewer than 8 subjects they are too narrow. Kappa is agreement beyond chance.`),
      rows.length ? h("table", { class: "stack" }, h("thead", {}, h("tr", {}, heads.map((words, index) => h("th", { class: index ? "number" : null }, words)))), h("tbody", {}, rows)) : h("p", {}, "Nobody has voted yet."),
      h("p", { class: "tools" }, h("a", { href: "/api/vote/votes.csv", download: "votes.csv" }, "All votes as CSV"), h("a", { href: "#/vote" }, "Back to the vote")),
      h("p", { class: "small" }, `Kept in ${found.file}`),
    );
  }, refused);
  return { leave: () => {}, keys: { v: ["back to the vote", () => (location.hash = "#/vote")] } };
}
