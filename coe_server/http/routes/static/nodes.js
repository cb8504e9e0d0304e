// The nodes of a front: which get requests, how full each is, and which experts it has in which tier.

import { bytes, element } from "./dom.js";

const TIERS = ["device", "host", "disk", "remote"];
const NAMES = { device: "on the device", host: "in host memory", disk: "on disk", remote: "elsewhere" };

export class Nodes {
  constructor(section, list) {
    this.section = section;
    this.list = list;
    this.shown = "";
  }

  // `nodes` as the overview has them, none on a server alone; an expert lists the nodes that have it.
  show(nodes, experts) {
    this.section.hidden = !nodes.length;
    const seen = nodes.map((node) => ({ ...facts(node), places: places(node.name, experts) }));
    const news = JSON.stringify(seen);
    if (news === this.shown) return;
    this.shown = news;
    this.list.replaceChildren(...seen.map(drawn));
  }
}

function facts({ name, usable, why, cards, in_flight: inFlight, version }) {
  const used = cards.reduce((sum, card) => sum + card.used, 0);
  const capacity = cards.reduce((sum, card) => sum + card.capacity, 0);
  return { name, usable, why, used, capacity, inFlight, version };
}

function places(node, experts) {
  const here = experts.flatMap(({ name, nodes }) => {
    const place = (nodes ?? []).find((one) => one.name === node);
    return place ? [{ name, ...place, expert: name }] : [];
  });
  return TIERS.map((tier) => [tier, here.filter(({ residency }) => residency === tier)]).filter(([, found]) => found.length);
}

function drawn({ name, usable, why, used, capacity, inFlight, places: found }) {
  const state = usable ? `takes requests${inFlight ? `, ${inFlight} in progress` : ""}` : `gets nothing new: ${why}`;
  const amount = capacity ? `${bytes(used)} of ${bytes(capacity)} of device memory used` : "";
  const lines = found.map(([tier, experts]) => element("li", { "data-tier": tier }, `${NAMES[tier]}: `, experts.map(label).join(", ")));
  return element(
    "li",
    { class: usable ? "node" : "node unusable", "data-node": name },
    element("h3", {}, name),
    element("p", { class: "node-state" }, state),
    amount ? element("p", { class: "node-amount" }, amount) : null,
    element("ul", {}, ...lines),
  );
}

function label({ expert, leases, queued, failure }) {
  if (failure) return `${expert} (failed)`;
  const busy = [leases ? `${leases} in use` : "", queued ? `${queued} waiting` : ""].filter(Boolean).join(", ");
  return busy ? `${expert} (${busy})` : expert;
}
