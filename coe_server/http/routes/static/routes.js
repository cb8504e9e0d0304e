// The operator's own routes: the file's text, "this was law" on a logged decision, and undo.

import { byId, element } from "./dom.js";
import { ask, asJson } from "./server.js";

export class Routes {
  constructor() {
    this.known = null; // what the server said last; null where it has no routes file
    byId("routes-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#change("/admin/routes", asJson("PUT", { text: byId("routes-text").value, version: this.known.version }), "Saved and loaded.");
    });
    byId("routes-undo").addEventListener("click", () => this.#change("/admin/routes/undo", { method: "POST" }, "Undone."));
  }

  async start() {
    this.#show(await ask("/admin/routes").catch(() => null));
  }

  // A choice that makes the prompt of a decision an example of a route; null where prompts are not kept.
  chooser(decision) {
    if (!this.known?.prompts_kept) return null;
    const routes = this.known.routes.map((name) => element("option", {}, name));
    const select = element("select", { "aria-label": `What the prompt of ${decision.decision_id} was` }, element("option", { value: "" }, "this was …"), ...routes);
    select.addEventListener("change", async () => {
      const body = { decision_id: decision.decision_id, route: select.value };
      await this.#change("/admin/routes/examples", asJson("POST", body), `Its prompt is now an example of ${select.value}.`);
      select.value = "";
    });
    return select;
  }

  async #change(path, options, done) {
    try {
      this.#show(await ask(path, options));
      this.#say(done, false);
    } catch (error) {
      this.#say(error.message, true);
    }
  }

  #show(known) {
    this.known = known;
    byId("routes-section").hidden = known === null;
    byId("kind-head").hidden = !known?.prompts_kept;
    if (known === null) return;
    byId("routes-file").textContent = known.file;
    byId("routes-text").value = known.text;
    byId("routes-undo").disabled = !known.can_undo;
  }

  #say(sentence, wrong) {
    byId("routes-said").textContent = sentence;
    byId("routes-said").classList.toggle("wrong", wrong);
  }
}
