// One question at a time: which expert answers, why, and how the answer was rated.

import { billions, byId, element, percent, seconds } from "./dom.js";
import { asJson, ask, stream } from "./server.js";

const REASONS = {
  requested: () => "You asked for this expert by name.",
  sticky: () => "This conversation stays with the expert that began it.",
  route: (d) => `You gave ${d.category} to this expert.`,
  mapped: (d) => `The expert for ${d.category}.`,
  mixed: (d) => `Most like ${d.category}, and expected to do best on all that the prompt resembles.`,
  out_of_domain: () => "Unlike anything in the training data, so the expert that is best over all.",
  general: () => "The category is not clear, so the expert that is best over all.",
  budget: () => "What was spent lately changed the choice: this keeps the mean cost at its budget.",
  resident: () => "Already on the device, and as good within the stated tolerance.",
  explored: () => "Drawn, so that ratings can tell which expert is best.",
  handed_over: (d) => `Another expert's first words were unsure${tookOver(d)}.`,
  fallback: () => "The first choice failed before its first word.",
};

// Who began the answer, and what is thought of both.
const tookOver = ({ handovers = [] }) => {
  const last = handovers.at(-1);
  return last ? `: ${last.first} is right with ${percent(last.certainty)}, ${last.second} with ${percent(last.expected)}` : "";
};

const PLACES = { device: "on the device", host: "in host memory", disk: "on disk", remote: "elsewhere" };

export class Playground {
  constructor(refresh) {
    this.refresh = refresh;
    this.asked = null;
    this.remembers = false; // are decisions kept?
    this.models = []; // every name that a question may be for
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
    });
    byId("rating").addEventListener("click", (event) => {
      if (event.target.dataset.score) this.#rate(Number(event.target.dataset.score));
    });
  }

  async start() {
    const { data } = await ask("/v1/models").catch(() => ({ data: [] }));
    this.models = data.map(({ id }) => id);
    byId("model").replaceChildren(
      ...data.map(({ id, owned_by: owner }) => element("option", { value: id }, owner === "router" ? `${id} (the router)` : id)),
    );
    this.#explainNothing();
  }

  #explainNothing() {
    byId("decision").replaceChildren(
      element("p", { class: "hint" }, "The decision appears here: how sure the router is of the category, what each expert is expected to be worth, what it costs, and where it is."),
    );
  }

  async #ask() {
    const body = { model: byId("model").value, messages: [{ role: "user", content: byId("question").value }] };
    const answer = byId("answer");
    byId("send").disabled = true;
    byId("answer-box").hidden = false;
    byId("rating").hidden = true;
    byId("answer-by").textContent = "waiting";
    answer.replaceChildren();
    answer.setAttribute("aria-busy", "true");
    this.foretold = this.#foretell(body);
    try {
      await stream(body, {
        begun: (headers) => this.#begun(headers),
        word: (text) => answer.append(text),
        waiting: (told) => this.#waiting(told),
        answering: (told) => this.#answering(told),
      });
      byId("rating").hidden = this.asked === null || !this.remembers;
    } catch (error) {
      byId("answer-by").textContent = "no answer";
      answer.append(element("p", { class: "complaint" }, error.message));
    } finally {
      byId("send").disabled = false;
      answer.removeAttribute("aria-busy");
      this.refresh();
    }
  }

  // What would be decided now, to be read while the expert is on its way.
  async #foretell(body) {
    const question = (this.question = {});
    const decision = await ask("/v1/route", asJson("POST", body)).catch(() => null);
    if (decision && this.question === question && byId("answer").hasAttribute("aria-busy")) {
      this.#explain(decision, null);
      byId("answer-by").textContent = `waiting for ${decision.expert}`;
    }
    return decision;
  }

  #begun(headers) {
    this.question = null;
    this.asked = headers.get("x-coe-decision-id");
    byId("rating-text").textContent = "Was this a good answer?";
    const [expert, reason, wait_ms] = ["expert", "reason", "wait-ms"].map((name) => headers.get(`x-coe-${name}`));
    if (wait_ms !== null) this.#answering({ expert, reason, wait_ms }); // else the headers left before an expert was granted
  }

  #waiting({ expert, state, eta }) {
    const why = state === "starting" ? ", which is starting" : "";
    const left = Number(eta) >= 1 ? `: about ${seconds(Number(eta))}` : "";
    byId("answer-by").textContent = `waiting for ${expert}${why}${left}`;
  }

  async #answering({ expert, reason, wait_ms: wait }) {
    this.refresh(); // an expert is answering now
    byId("answer-by").textContent = `${expert} answers`;
    const decision = this.remembers ? await ask(`/v1/decisions/${this.asked}`) : await this.foretold;
    if (decision) this.#explain({ ...decision, expert, reason }, Number(wait) / 1000);
  }

  #explain(decision, waited) {
    const was = decision.ranking[0]?.residency;
    const facts = [
      was ? `was ${PLACES[was]}` : null,
      waited === null ? null : `waited ${seconds(waited)}`,
      `decided in ${decision.routing_ms.toFixed(1)} ms`,
    ].filter(Boolean);
    byId("decision").replaceChildren(
      element("p", { class: "chosen" }, element("strong", {}, decision.expert), element("span", { class: "reason" }, decision.reason.replaceAll("_", " "))),
      element("p", { class: "why" }, REASONS[decision.reason](decision)),
      element("p", { class: "facts-line" }, facts.join(" · ")),
      ...categories(decision),
      ranking(decision),
    );
    requestAnimationFrame(() => byId("decision").classList.add("grown"));
  }

  async #rate(score) {
    try {
      await ask("/v1/feedback", asJson("POST", { decision_id: this.asked, score }));
      byId("rating-text").textContent = `Noted as ${score ? "good" : "bad"}. A later rating replaces this one.`;
    } catch (error) {
      byId("rating-text").textContent = error.message;
    }
  }
}

function categories(decision) {
  const likeliest = Object.entries(decision.probabilities).sort((a, b) => b[1] - a[1]);
  if (!likeliest.length) return [];
  const outside = decision.gate.inside === false;
  const rows = likeliest.slice(0, 6).map(([name, share], place) =>
    element("li", { class: place === 0 && !outside ? "first" : null },
      element("span", { class: "bar-name" }, name),
      bar(share),
      element("span", { class: "bar-value" }, percent(share)),
    ),
  );
  const title = outside ? "Categories (not used: outside the training data)" : "Confidence in each category";
  return [element("h3", {}, title), element("ul", { class: "bars" }, ...rows)];
}

function bar(share) {
  const fill = element("span", { class: "bar-fill" });
  fill.style.setProperty("--share", String(Math.max(0, Math.min(1, share))));
  return element("span", { class: "bar", "aria-hidden": "true" }, fill);
}

function ranking(decision) {
  const rows = decision.ranking.map((one, place) => {
    const chosen = place === 0;
    const why = one.excluded || one.doubt;
    const score = one.expected_score === null ? "" : (100 * one.expected_score).toFixed(1);
    return element("tr", { class: chosen ? "first" : one.excluded ? "excluded" : null },
      element("th", { scope: "row" }, one.expert, why ? element("span", { class: "excluded-why" }, why) : null),
      element("td", { class: "number" }, score),
      element("td", { class: "number" }, billions(one.active_params_b)),
      element("td", {}, one.residency ? element("span", { class: "tier", "data-tier": one.residency }, one.residency) : ""),
      element("td", { class: "number" }, one.predicted_wait_seconds === null ? "" : seconds(one.predicted_wait_seconds)),
    );
  });
  const head = ["expert", "expected score", "active", "is in", "wait"].map((text, place) =>
    element("th", { scope: "col", class: [1, 2, 4].includes(place) ? "number" : null }, text),
  );
  return element("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "The experts, ranked" },
    element("table", { class: "ranking" },
      element("caption", {}, "The experts, ranked"),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...rows)));
}
