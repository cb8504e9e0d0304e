// The tiers as shelves. An expert is one card for as long as the page lives: it moves, it is not drawn anew.

import { bytes, calm, element, seconds } from "./dom.js";
import { downloaded } from "./expert.js";
import { Gpus } from "./gpus.js";

const TIERS = {
  device: ["Device", "answers now"],
  host: ["Host memory", "wakes up first"],
  disk: ["Disk", "starts first"],
  remote: ["Elsewhere", "hosted by others"],
};
const STATES = { starting: "starting", draining: "finishing its answers", failed: "failed" };
const AT_REST = { device: "ready", host: "asleep", disk: "not started", remote: "remote" };
const CROWD = 24; // experts on a shelf from which on a card is a line
const MOST_NAMES = 3; // on one card
const NEWS_MILLISECONDS = 4000;
const MOVE_MILLISECONDS = 520;

export class Shelves {
  // `open(expert)` is called with what is known of the expert whose name was chosen.
  constructor(place, open = () => {}) {
    this.place = place;
    this.open = open;
    this.shelves = new Map();
    this.cards = new Map();
    for (const tier of ["device", "host", "disk"]) this.#addShelf(tier);
  }

  // Presets and adapters share an engine and take no room: they are names on their base's card.
  show(all, tiers) {
    const experts = all.filter(({ base }) => !base);
    this.#letGo(new Set(experts.map(({ name }) => name)));
    const several = (tiers.device.cards ?? []).length > 1;
    for (const expert of experts) {
      const card = this.cards.get(expert.name) ?? this.#addCard(expert.name);
      this.#put(card, expert.residency);
      card.show(expert, several);
      card.share(all.filter(({ base }) => base === expert.name).map(({ name }) => name));
    }
    for (const [tier, amount] of Object.entries(tiers)) this.shelves.get(tier).gauge(amount);
    this.shelves.get("device").split(tiers.device.cards ?? [], experts);
    this.shelves.get("host").keeps(experts.filter(({ residency }) => residency !== "host"));
    const coming = experts.filter(({ state, residency }) => state === "starting" && residency !== "device");
    this.shelves.get("device").holdRoom(coming.map(({ name }) => name));
    for (const shelf of this.shelves.values()) shelf.count();
  }

  // A move that has just happened, before anything else is known of it.
  move({ expert, to }) {
    const card = this.cards.get(expert);
    if (card) this.#put(card, to);
  }

  // What has just happened to an expert stands on its card for a while.
  tell({ kind, expert, from, seconds: took }) {
    const card = this.cards.get(expert);
    if (kind === "move") card?.glow(`from ${from} in ${seconds(took)}`);
  }

  #addShelf(tier) {
    const shelf = new Shelf(tier);
    this.shelves.set(tier, shelf);
    this.place.append(shelf.root);
  }

  #addCard(name) {
    const card = new Card(name, (expert) => this.open(expert));
    this.cards.set(name, card);
    return card;
  }

  // A reload has removed them.
  #letGo(names) {
    for (const [name, card] of this.cards) {
      if (names.has(name)) continue;
      card.root.remove();
      this.cards.delete(name);
    }
  }

  #put(card, tier) {
    if (!this.shelves.has(tier)) this.#addShelf(tier);
    const board = this.shelves.get(tier).board;
    if (card.root.parentElement === board) return;
    const all = [...this.cards.values()].filter((one) => one.root.isConnected);
    const before = new Map(all.map((one) => [one, one.root.getBoundingClientRect()]));
    board.querySelector(`[data-coming="${CSS.escape(card.root.dataset.expert)}"]`)?.remove();
    board.append(card.root);
    for (const shelf of this.shelves.values()) shelf.count();
    if (!calm()) for (const [one, from] of before) one.travel(from, one === card);
  }
}

class Shelf {
  constructor(tier) {
    const [title, meaning] = TIERS[tier];
    this.board = element("ul", { class: "board", "aria-label": `experts: ${title}` });
    this.fill = element("div", { class: "fill" });
    this.amount = element("p", { class: "amount" });
    this.kept = element("p", { class: "kept" });
    this.empty = element("p", { class: "empty" }, "no experts here now");
    this.edge = element("div", { class: "edge", "aria-hidden": "true" }, this.fill);
    this.gpus = new Gpus();
    this.root = element(
      "section",
      { class: "shelf", "data-tier": tier, "aria-label": title },
      element("div", { class: "label" }, element("h3", {}, title), element("p", {}, meaning), this.amount, this.kept),
      element("div", { class: "stage" }, this.board, this.empty, this.edge),
      this.gpus.root,
    );
  }

  gauge({ used, capacity }) {
    this.amount.textContent = `${bytes(used)} of ${bytes(capacity)}`;
    this.fill.style.inlineSize = `${capacity ? Math.min(100, (100 * used) / capacity) : 0}%`;
  }

  // Each card has a limit of its own, so one bar for all would show room that no expert can use.
  split(cards, experts) {
    this.edge.hidden = cards.length > 1;
    this.gpus.show(cards, experts);
    if (cards.length > 1) this.amount.textContent += ` on ${cards.length} cards`;
  }

  // The host copy of a loaded expert counts here: the expert returns to it.
  keeps(elsewhere) {
    const kept = elsewhere.reduce((sum, { bytes: held }) => sum + held.host, 0);
    this.kept.textContent = kept ? `${bytes(kept)} for loaded experts` : "";
  }

  // Bytes are reserved before an expert comes: its place is shown empty until then.
  holdRoom(names) {
    for (const ghost of this.board.querySelectorAll(".ghost")) {
      if (!names.includes(ghost.dataset.coming)) ghost.remove();
    }
    for (const name of names) {
      if (this.board.querySelector(`[data-coming="${CSS.escape(name)}"]`)) continue;
      this.board.append(element("li", { class: "ghost", "data-coming": name }, `room held for ${name}`));
    }
  }

  count() {
    this.empty.hidden = this.board.children.length > 0;
    this.root.classList.toggle("crowded", this.board.children.length > CROWD);
  }
}

class Card {
  constructor(name, open) {
    this.news = null;
    this.known = null; // what was shown last
    this.name = element("button", { type: "button", class: "name", "aria-haspopup": "dialog" }, name);
    this.name.addEventListener("click", () => this.known && open(this.known));
    this.size = element("span", { class: "size" });
    this.where = element("span", { class: "where" });
    this.users = element("span", { class: "users" });
    this.shared = element("span", { class: "shared" });
    this.state = element("span", { class: "state" });
    this.root = element(
      "li",
      { class: "card", "data-expert": name },
      this.name,
      element("span", { class: "facts" }, this.size, this.where, this.shared, this.users),
      this.state,
    );
  }

  show(expert, several) {
    const { state, residency, bytes: held, cards, leases, queued, pin, failure, download } = expert;
    this.known = expert;
    const size = residency === "device" ? held.device : held.host;
    this.size.textContent = size ? bytes(size) : "";
    const seat = several ? cards.map(({ index }) => index) : [];
    this.where.textContent = seat.length ? `card ${seat.join(", ")}` : "";
    const users = [leases ? `${leases} answering` : "", queued ? `${queued} waiting` : ""].filter(Boolean);
    this.users.textContent = users.join(", ");
    this.rest = downloaded(download) || (STATES[state] ?? AT_REST[residency] + (pin ? `, pinned to ${pin}` : ""));
    this.state.textContent = failure ?? this.news ?? this.rest;
    this.root.dataset.state = state;
    this.root.classList.toggle("busy", leases > 0);
    this.root.classList.toggle("wanted", queued > 0);
  }

  share(names) {
    const told = names.length > MOST_NAMES ? `${names.length} more names` : names.join(", ");
    this.shared.textContent = told && `also ${told}`;
  }

  tell(news) {
    this.news = news;
    this.state.textContent = news;
    setTimeout(() => {
      if (this.news === news) this.news = null;
    }, NEWS_MILLISECONDS);
  }

  glow(news) {
    this.tell(news);
    this.root.classList.remove("arrived");
    void this.root.offsetWidth; // so that the animation starts anew
    this.root.classList.add("arrived");
  }

  travel(from, isTheOne) {
    const to = this.root.getBoundingClientRect();
    const [x, y] = [from.left - to.left, from.top - to.top];
    if (!x && !y) return;
    const lift = isTheOne ? " scale(1.04)" : "";
    this.root.animate(
      [{ transform: `translate(${x}px, ${y}px)${lift}` }, { transform: "none" }],
      { duration: MOVE_MILLISECONDS, easing: "cubic-bezier(.2,.75,.2,1)" },
    );
  }
}
