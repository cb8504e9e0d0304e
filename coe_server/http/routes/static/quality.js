// Quality against active parameters, as measured on prompts held out of training.

import { billions, byId, drawn, element } from "./dom.js";

const HEIGHT = 340;
const [NARROWEST, WIDEST] = [320, 1100];
const EDGE = { left: 44, right: 16, top: 26, bottom: 46 };
const TOGETHER = { x: 10, y: 48 }; // experts nearer to each other than this share a label
const HALO = 2; // around the letters of a name
const NAMED = 4; // of experts that share a label

export function showQuality(quality) {
  if (!quality) return;
  byId("quality-section").hidden = false;
  byId("quality-lead").textContent = lead(quality);
  const place = element("div");
  byId("quality").replaceChildren(place, legend(), numbers(quality));
  new ResizeObserver(() => place.replaceChildren(chart(quality, place.clientWidth))).observe(byId("quality"));
}

function lead({ router, best_single: best, prompts }) {
  const gain = 100 * (router.score - best.score);
  const sign = gain >= 0 ? "+" : "−";
  return `On ${prompts} held-out prompts the router scores ${points(router.score)}, ${sign}${Math.abs(gain).toFixed(1)} points over ${best.expert}, the best single expert, with ${billions(router.cost)} mean active parameters.`;
}

const points = (score) => (100 * score).toFixed(1);

function chart(quality, room) {
  const width = Math.max(NARROWEST, Math.min(WIDEST, room));
  const all = [...quality.experts, ...quality.curve, ...quality.budgets, quality.router];
  const costs = all.map((one) => one.cost);
  const scores = all.map((one) => one.score);
  const [lowest, highest] = [Math.min(...costs), Math.max(...costs)];
  const spread = Math.log(highest / lowest) || 1;
  const floor = Math.max(0, Math.floor(10 * Math.min(...scores)) / 10);
  const ceiling = Math.min(1, Math.ceil(10 * Math.max(...scores) + 0.2) / 10);
  const [first, last] = [EDGE.left + 22, width - EDGE.right - 26];
  const x = (cost) => first + (Math.log(cost / lowest) / spread) * (last - first);
  const y = (score) => HEIGHT - EDGE.bottom - ((score - floor) / (ceiling - floor || 1)) * (HEIGHT - EDGE.top - EDGE.bottom);
  return drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-labelledby": "quality-lead" },
    ...gridLines(floor, ceiling, y, width),
    ...ticks(costs, x, width),
    path("hull", straight(quality.hull), x, y),
    path("curve", quality.curve, x, y),
    ...named(marks(quality, x, y), width).reverse().map(mark), // the router is drawn above the others
  );
}

function gridLines(floor, ceiling, y, width) {
  const lines = [];
  const steps = Math.round((ceiling - floor) * 10);
  for (let step = 0; step <= steps; step += steps > 5 ? 2 : 1) {
    const score = floor + step / 10;
    lines.push(drawn("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(score), y2: y(score) }));
    lines.push(drawn("text", { class: "tick", x: EDGE.left - 10, y: y(score) + 4, "text-anchor": "end" }, String(Math.round(100 * score))));
  }
  lines.push(drawn("text", { class: "axis", x: 0, y: 13 }, "score"));
  return lines;
}

function ticks(costs, x, width) {
  const shown = [];
  for (const cost of [...new Set(costs)].sort((a, b) => a - b)) {
    if (shown.every((other) => Math.abs(x(other) - x(cost)) > 70)) shown.push(cost);
  }
  return [
    ...shown.map((cost) => drawn("text", { class: "tick", x: x(cost), y: HEIGHT - EDGE.bottom + 20, "text-anchor": "middle" }, billions(cost))),
    drawn("text", { class: "axis", x: width - EDGE.right, y: HEIGHT - 6, "text-anchor": "end" }, "mean active parameters"),
  ];
}

// Lots mix costs in proportion: straight on a plain axis, bent on this one.
function straight(corners) {
  const sorted = [...corners].sort((a, b) => a.cost - b.cost);
  return sorted.flatMap((to, place) => {
    const from = sorted[place - 1] ?? to;
    return Array.from({ length: 24 }, (_, step) => {
      const part = (step + 1) / 24;
      return { cost: from.cost + part * (to.cost - from.cost), score: from.score + part * (to.score - from.score) };
    });
  });
}

function path(name, through, x, y) {
  const corners = [...through].sort((a, b) => a.cost - b.cost).map((one) => `${x(one.cost).toFixed(1)} ${y(one.score).toFixed(1)}`);
  return drawn("path", { class: name, d: corners.length ? `M${corners.join("L")}` : "M0 0", fill: "none" });
}

// Experts that stand one upon the other, the best of them first.
function together(experts, x, y) {
  const groups = [];
  for (const one of [...experts].sort((a, b) => b.score - a.score)) {
    const near = ([first]) => Math.abs(x(first.cost) - x(one.cost)) < TOGETHER.x && Math.abs(y(first.score) - y(one.score)) < TOGETHER.y;
    const group = groups.find(near);
    if (group) group.push(one);
    else groups.push([one]);
  }
  return groups;
}

// The marks of the chart, those first that most need their name.
function marks(quality, x, y) {
  const at = (kind, one, label) => ({ kind, label, x: x(one.cost), y: y(one.score), radius: kind === "router" ? 8 : 5 });
  const groups = together(quality.experts, x, y);
  return [
    at("router", quality.router, "the router"),
    ...quality.budgets.map((one) => at("budget", one, one.name)),
    ...groups.map(([first, ...others]) => at("expert", first, list([first, ...others]))),
    ...groups.flatMap(([, ...others]) => others.map((one) => at("expert", one, ""))),
  ];
}

function list(experts) {
  const names = experts.map(({ name }) => name);
  return names.length > NAMED ? `${names.slice(0, NAMED - 1).join(", ")} and ${names.length - NAMED + 1} more` : names.join(", ");
}

// Each mark with the place of its name: the first where it covers no mark and no other name. Without such a place it
// has none: "The numbers" has all.
function named(all, width) {
  const taken = all.map(({ x, y, radius }) => ({ left: x - radius - 1, right: x + radius + 1, top: y - radius - 1, bottom: y + radius + 1 }));
  return all.map((one) => {
    for (const [anchor, dx, dy] of places(one, width)) {
      const box = boxOf(one, anchor, one.x + dx, one.y + dy);
      const fits = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= HEIGHT - EDGE.bottom;
      if (!one.label || !fits || taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      return { ...one, text: { anchor, x: one.x + dx, y: one.y + dy } };
    }
    return one;
  });
}

// Where a name may stand: its anchor, and how far it is from the middle of its mark.
function places({ kind, x, radius }, width) {
  const beside = radius + 7;
  const right = [["start", beside, kind === "router" ? 4 : 17], ["start", beside, 4], ["start", beside, -12]];
  const left = [["end", -beside, -8], ["end", -beside, 4], ["end", -beside, 20]];
  const sides = x > 0.7 * width ? [...left, ...right] : [...right, ...left];
  return [...sides, ["middle", 0, radius + 21], ["middle", 0, -radius - 9]];
}

function boxOf({ kind, label }, anchor, x, y) {
  const wide = label.length * (kind === "router" ? 9.5 : 7.8);
  const left = x - { start: 0, middle: wide / 2, end: wide }[anchor];
  return { left: left - HALO, right: left + wide + HALO, top: y - 16 - HALO, bottom: y + 5 + HALO };
}

const overlap = (one, other) => one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;

function mark({ kind, x, y, radius, label, text }) {
  return drawn("g", { class: `mark ${kind}` },
    drawn("circle", { cx: x, cy: y, r: radius }),
    text ? drawn("text", { x: text.x, y: text.y, "text-anchor": text.anchor }, label) : null);
}

function legend() {
  const entry = (name, text) => element("span", { class: `key ${name}` }, text);
  return element("figcaption", { class: "keys" },
    entry("curve", "the router at every budget"), entry("hull", "drawing lots between single experts"), entry("expert", "a single expert"));
}

function numbers(quality) {
  const row = (name, { score, cost }) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", { class: "number" }, points(score)), element("td", { class: "number" }, billions(cost)));
  const rows = [row("the router", quality.router), ...quality.budgets.map((one) => row(one.name, one)), ...quality.experts.map((one) => row(one.name, one))];
  return element("details", {}, element("summary", {}, "The numbers"),
    element("table", {}, element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "expert"), element("th", { scope: "col", class: "number" }, "score"), element("th", { scope: "col", class: "number" }, "active"))), element("tbody", {}, ...rows)));
}
