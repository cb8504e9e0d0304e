// One expert, opened from its card: move, pin and restart it, and read the end of its engine's log.

import { byId, bytes, element, seconds } from "./dom.js";
import { ask } from "./server.js";

const PLACES = { device: "on the device", host: "in host memory", disk: "on disk", remote: "hosted elsewhere" };
const ACTS = {
  load: { name: "Load", path: "load", fits: ({ residency, failure }) => residency !== "device" || failure, doing: "loading", done: "loaded" },
  unload: { name: "Unload", path: "unload", fits: ({ residency }) => residency === "device" || residency === "host", doing: "unloading", done: "it is evicted to disk" },
  device: { name: "Pin to the device", path: "pin?tier=device", fits: (one) => isHere(one) && one.pin !== "device", doing: "pinning", done: "pinned to the device" },
  host: { name: "Pin to host memory", path: "pin?tier=host", fits: (one) => isHere(one) && one.pin !== "host", doing: "pinning", done: "pinned to host memory" },
  unpin: { name: "Unpin", path: "unpin", fits: ({ pin }) => Boolean(pin), doing: "unpinning", done: "unpinned" },
  restart: { name: "Restart", path: "restart", fits: isHere, doing: "restarting after its answers in progress", done: "restarted" },
};

export class OpenExpert {
  // `changed()` is called after each act.
  constructor(changed) {
    this.changed = changed;
    this.dialog = byId("expert");
    this.name = null;
    this.offered = "";
    byId("expert-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => (this.name = null));
    byId("expert-log").addEventListener("toggle", () => byId("expert-log").open && this.#readLog());
    byId("expert-log-again").addEventListener("click", () => this.#readLog());
  }

  open(expert) {
    this.name = expert.name;
    this.offered = "";
    byId("expert-title").textContent = expert.name;
    byId("expert-log").open = false;
    byId("expert-log-lines").textContent = "";
    this.#say("");
    this.#offerNodes(expert.nodes ?? []);
    this.#show(expert);
    this.dialog.showModal();
  }

  // What is known of all experts now.
  show(experts) {
    const expert = experts.find(({ name }) => name === this.name);
    if (expert) this.#show(expert);
  }

  #show(expert) {
    byId("expert-facts").textContent = facts(expert);
    byId("expert-log").hidden = !expert.has_log;
    const offered = Object.entries(ACTS).filter(([, act]) => act.fits(expert));
    const news = offered.map(([key]) => key).join();
    if (news === this.offered) return; // so that a button keeps the focus
    this.offered = news;
    const focused = document.activeElement?.dataset?.act;
    byId("expert-acts").replaceChildren(...offered.map(([key, act]) => this.#button(key, act)));
    if (focused) (byId("expert-acts").querySelector(`[data-act="${focused}"]`) ?? byId("expert-close")).focus();
  }

  #button(key, act) {
    const button = element("button", { type: "button", "data-act": key }, act.name);
    button.addEventListener("click", () => this.#act(act));
    return button;
  }

  #offerNodes(nodes) {
    byId("expert-nodes").hidden = !nodes.length;
    byId("expert-node").replaceChildren(element("option", { value: "" }, "the best one"), ...nodes.map(({ name }) => element("option", {}, name)));
  }

  // `path` of this expert, on the chosen node.
  #path(path) {
    const node = byId("expert-node").value;
    const chosen = node ? `${path.includes("?") ? "&" : "?"}node=${encodeURIComponent(node)}` : "";
    return `/admin/experts/${encodeURIComponent(this.name)}/${path}${chosen}`;
  }

  async #act({ path, doing, done }) {
    const name = this.name;
    const say = (sentence, wrong) => this.name === name && this.#say(sentence, wrong);
    say(`${doing} …`);
    try {
      const row = await ask(this.#path(path), { method: "POST" });
      const took = path === "load" && row.last_move ? ` in ${seconds(row.last_move.seconds)}` : "";
      say(done + took);
    } catch (error) {
      say(error.message, true);
    }
    this.changed();
  }

  async #readLog() {
    const name = this.name;
    try {
      const { lines, note } = await ask(this.#path("log?lines=200"));
      if (this.name !== name) return;
      byId("expert-log-note").textContent = note;
      byId("expert-log-lines").textContent = lines.join("\n") || "The log is empty.";
      byId("expert-log-lines").scrollTop = byId("expert-log-lines").scrollHeight;
    } catch (error) {
      byId("expert-log-lines").textContent = error.message;
    }
  }

  #say(sentence, wrong = false) {
    byId("expert-said").textContent = sentence;
    byId("expert-said").classList.toggle("complaint", wrong);
  }
}

function isHere({ residency }) {
  return residency !== "remote";
}

function facts({ residency, state, pin, bytes: held, leases, queued, failure, download }) {
  const parts = [
    state === "starting" ? "starting" : PLACES[residency],
    pin ? `pinned to ${pin}` : "",
    held?.device ? `${bytes(held.device)} on the device` : "",
    held?.host ? `${bytes(held.host)} in host memory` : "",
    leases ? `${leases} answering` : "",
    queued ? `${queued} waiting` : "",
    downloaded(download),
    failure ?? "",
  ];
  return parts.filter(Boolean).join(" · ");
}

// How far an unfinished download is; nothing without one.
export function downloaded(download) {
  if (!download) return "";
  const { bytes: done, of } = download;
  return `downloading: ${bytes(done)}${of ? ` of ${bytes(of)}` : " so far"}`;
}
