// What ratings moved: the steps in force, how experts differ, and undoing the last step.

import { byId, clock, element } from "./dom.js";
import { ask } from "./server.js";

export function showLearning(learning) {
  const nothing = !learning || (!learning.steps.length && !learning.ratings);
  byId("learning-section").hidden = nothing;
  if (nothing) return;
  byId("learning-lead").textContent = lead(learning);
  byId("learning").replaceChildren(...[steps(learning.steps), differences(learning.differences)].filter(Boolean));
}

function lead({ steps: made, ratings, source, left_out: left }) {
  const unused = Object.entries(left).map(([why, count]) => `${count} left out: ${why}`);
  const used = source ? `${ratings} ratings in use (${source})` : "No ratings in use";
  return `${[used, ...unused].join("; ")}. ${made.length} step${made.length === 1 ? "" : "s"} in force.`;
}

function steps(made) {
  if (!made.length) return null;
  const [last, ...before] = made;
  const button = element("button", { type: "button" }, "Undo the last step");
  button.addEventListener("click", () => undo(button));
  const older = before.length ? element("details", {}, element("summary", {}, "Earlier steps"), ...before.map(step)) : null;
  return element("div", {}, step(last), button, older);
}

async function undo(button) {
  button.disabled = true;
  try {
    showLearning(await ask("/admin/learning/undo", { method: "POST" }));
  } catch (error) {
    button.replaceWith(element("p", { class: "trouble", role: "alert" }, error.message));
  }
}

function step({ time, ratings, moved }) {
  const rows = moved.map(({ category, expert, before, after }) =>
    element("tr", {}, element("th", { scope: "row" }, category), element("td", {}, expert), number(points(before)), number(points(after))));
  return table(`${new Date(time * 1000).toLocaleDateString()} ${clock(time)}, by ${ratings} ratings, in points`, ["category", "expert", "before", "after"], rows);
}

function differences(found) {
  if (!found.length) return null;
  const rows = found.map((one) =>
    element("tr", {}, element("th", { scope: "row" }, one.category), element("td", {}, `${one.other} against ${one.best}`), number(String(one.ratings)), number(known(one)), number(one.needed ? one.needed.toLocaleString() : "")));
  return element("details", {}, element("summary", {}, "Differences between experts, in points"),
    table("95 % intervals that hold at every look", ["category", "experts", "ratings", "difference", "more ratings for 3 points"], rows));
}

const known = ({ difference, low, high }) => (difference === null ? "not known yet" : `${points(difference)} (${points(low)} to ${points(high)})`);
const points = (share) => `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}`;
const number = (text) => element("td", { class: "number" }, text);

function table(caption, names, rows) {
  const head = element("tr", {}, ...names.map((name, place) => element("th", place > 1 ? { scope: "col", class: "number" } : { scope: "col" }, name)));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {}, element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...rows)));
}
