// The cards of a machine that has several: how full each is, and of which experts. With one card the shelf tells it.

import { bytes, element } from "./dom.js";

export class Gpus {
  constructor() {
    this.root = element("ul", { class: "gpus", "aria-label": "cards", hidden: "" });
    this.gpus = [];
  }

  // `cards` as the overview has them; an expert names its bytes on each of its cards.
  show(cards, experts) {
    this.root.hidden = cards.length < 2;
    while (this.gpus.length < cards.length) this.#add(this.gpus.length);
    if (!this.root.hidden) cards.forEach((card, index) => this.gpus[index].show(card, held(experts, index)));
  }

  #add(index) {
    const gpu = new Gpu(index);
    this.gpus.push(gpu);
    this.root.append(gpu.root);
  }
}

class Gpu {
  constructor(index) {
    this.shown = "";
    this.free = element("p", { class: "gpu-free" });
    this.amount = element("p", { class: "gpu-amount" });
    this.bar = element("div", { class: "gpu-bar", "aria-hidden": "true" });
    this.names = element("ul", { class: "gpu-names" });
    const title = element("h4", {}, `Card ${index}`);
    this.root = element("li", { class: "gpu", "data-card": index }, title, this.free, this.bar, this.amount, this.names);
  }

  show({ used, capacity }, experts) {
    const news = JSON.stringify([used, capacity, experts]);
    if (news === this.shown) return;
    this.shown = news;
    this.free.textContent = `${bytes(Math.max(0, capacity - used))} free`;
    this.amount.textContent = `${bytes(used)} used of ${bytes(capacity)}`;
    this.bar.replaceChildren(...experts.map(({ size, doing }) => part(size / Math.max(used, capacity, 1), doing)));
    const asleep = experts.filter(({ doing }) => doing === "asleep");
    const lines = experts.filter((one) => !asleep.includes(one)).map(line);
    if (asleep.length) lines.push(sleepers(asleep));
    this.names.replaceChildren(...lines);
  }
}

function held(experts, index) {
  const found = experts.flatMap(({ name, state, residency, cards }) => {
    const here = cards.find((card) => card.index === index);
    const others = cards.map((card) => card.index).filter((card) => card !== index);
    return here ? [{ name, size: here.bytes, others, doing: doingOf(state, residency) }] : [];
  });
  return found.sort((one, other) => ORDER.indexOf(one.doing) - ORDER.indexOf(other.doing) || other.size - one.size);
}

const ORDER = ["loaded", "coming", "asleep"];

function doingOf(state, residency) {
  if (state === "starting") return "coming";
  return residency === "device" ? "loaded" : "asleep";
}

function part(share, doing) {
  const made = element("span", { class: `part ${doing}` });
  made.style.inlineSize = `${100 * share}%`;
  return made;
}

function line({ name, size, others, doing }) {
  const wide = others.length ? `also on card ${others.join(", ")}` : "";
  const facts = [bytes(size), doing === "coming" ? "room held while it comes" : "", wide].filter(Boolean).join(" · ");
  return element("li", { class: doing }, element("span", { class: "gpu-expert" }, name), " ", element("span", {}, facts));
}

function sleepers(asleep) {
  const size = asleep.reduce((sum, one) => sum + one.size, 0);
  const names = asleep.map(({ name }) => name).join(", ");
  const keeps = asleep.length === 1 ? "keeps" : "keep";
  return element("li", { class: "asleep" }, element("span", { class: "gpu-expert" }, names), " ", element("span", {}, `asleep, ${keeps} ${bytes(size)}`));
}
