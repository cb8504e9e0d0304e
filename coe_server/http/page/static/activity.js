// The last hundred decisions and moves, newest first.

import { bytes, clock, element, seconds } from "./dom.js";

const KEPT = 100;

export class Activity {
  constructor(decisions, moves) {
    this.decisions = decisions;
    this.moves = moves;
    this.known = new Set();
  }

  // What the decision log remembers, newest first.
  start(past) {
    for (const one of [...past].reverse()) this.#addDecision({ ...one, residency: one.ranking[0]?.residency });
  }

  add(event) {
    if (event.kind === "decision") this.#addDecision(event);
    if (event.kind === "move") this.#addMove(event);
    if (event.kind === "prefetch") this.#addReadAhead(event);
    if (event.kind === "failure") this.#addFailure(event);
  }

  #addDecision(one) {
    if (this.known.has(one.decision_id)) return;
    this.known.add(one.decision_id);
    const sure = one.confidence === null || one.confidence === undefined ? "" : ` ${Math.round(100 * one.confidence)}\u00a0%`;
    newest(this.decisions, clock(one.time), `${one.category ?? "—"}${sure}`, one.expert, one.reason.replaceAll("_", " "), tier(one.residency));
  }

  #addMove(one) {
    const path = element("span", { class: "path" }, tier(one.from), " → ", tier(one.to));
    newest(this.moves, clock(one.time), one.expert, path, number(seconds(one.seconds)), number(bytes(one.bytes)));
  }

  #addReadAhead(one) {
    const what = element("span", {}, tier("disk"), ", files read ahead");
    newest(this.moves, clock(one.time), one.expert, what, number(seconds(one.seconds)), number(bytes(one.bytes)));
  }

  #addFailure(one) {
    newest(this.moves, clock(one.time), one.expert, "failed", number(""), number(""));
  }
}

const tier = (name) => (name ? element("span", { class: "tier", "data-tier": name }, name) : "—");

const number = (text) => element("td", { class: "number" }, text);

function newest(body, ...cells) {
  const made = cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : element("td", {}, cell)));
  body.prepend(element("tr", {}, ...made));
  while (body.children.length > KEPT) body.lastElementChild.remove();
}
