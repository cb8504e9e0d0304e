// Elements made from data. Text is text: nothing here, or anywhere on the page, reads data as markup.

export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count >= 100 || unit === 0 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export function seconds(count) {
  if (count < 0.9995) return `${Math.round(count * 1000)} ms`;
  return count < 100 ? `${count.toFixed(1)} s` : `${Math.round(count)} s`;
}

export function clock(epochSeconds) {
  return new Date(epochSeconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function billions(count) {
  if (count === null || count === undefined) return "";
  return count >= 0.1 ? `${Number(count.toPrecision(3))} B` : `${Number((count * 1000).toPrecision(3))} M`;
}

export const percent = (share) => `${Math.round(100 * share)} %`;

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
