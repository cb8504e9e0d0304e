// The last hundred decisions and moves, newest first.

import { bytes, clock, element, seconds } from "./dom.js";

const KEPT = 100;

export class Activity {
  // `chooser(decision)` gives a control for its row, or null.
  constructor(decisions, moves, chooser = () => null) {
    this.chooser = chooser;
    this.decisions = decisions;
    this.moves = moves;
    this.shown = []; // the rows of decisions: id, first and last time, and the row; newest first
  }

  // What the decision log remembers, newest first.
  start(past) {
    for (const one of [...past].reverse()) this.#addDecision({ ...one, residency: one.ranking[0]?.residency });
  }

  add(event) {
    if (event.kind === "decision") this.#addDecision(event);
    if (event.kind === "move") this.#addMove(event);
    if (event.kind === "failure") this.#addFailure(event);
  }

  // In the order of their times: past events repeat what the log has. A request that fell
  // back has one row, with its outcome.
  #addDecision(one) {
    const known = this.shown.find((other) => other.id === one.decision_id);
    if (!known) this.#insert({ id: one.decision_id, since: one.time, time: one.time, row: row(...this.#cells(one)) });
    else if (one.time > known.time) {
      known.time = one.time;
      known.row.replaceChildren(...row(...this.#cells(one)).children);
    }
  }

  #cells(one) {
    const chooser = this.chooser(one);
    return chooser === null ? decided(one) : [...decided(one), chooser];
  }

  #insert(entry) {
    const older = this.shown.findIndex((other) => other.since <= entry.since);
    const at = older < 0 ? this.shown.length : older;
    this.shown.splice(at, 0, entry);
    this.decisions.insertBefore(entry.row, this.decisions.children[at] ?? null);
    while (this.shown.length > KEPT) this.shown.pop().row.remove();
  }

  #addMove(one) {
    const path = element("span", { class: "path" }, tier(one.from), " → ", tier(one.to));
    newest(this.moves, clock(one.time), name(one.expert), path, number(seconds(one.seconds)), number(bytes(one.bytes)));
  }

  #addFailure(one) {
    newest(this.moves, clock(one.time), name(one.expert), "failed", number(""), number(""));
  }
}

const tier = (name) => (name ? element("span", { class: "tier", "data-tier": name }, name) : "—");

const name = (text) => element("td", { class: "name" }, text);
const number = (text) => element("td", { class: "number" }, text);

// The confidence is the likeliest category's: not that of `general` where it stands for a category that is not believed.
function decided(one) {
  const sure = one.confidence === null || one.confidence === undefined || (one.category === "general" && one.reason !== "mapped") ? "" : ` ${Math.round(100 * one.confidence)}\u00a0%`;
  return [clock(one.time), `${one.category ?? "—"}${sure}`, name(one.expert), one.reason.replaceAll("_", " "), tier(one.residency)];
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : element("td", {}, cell))));
}

function newest(body, ...cells) {
  body.prepend(row(...cells));
  while (body.children.length > KEPT) body.lastElementChild.remove();
}
