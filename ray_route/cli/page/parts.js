// Small means of making elements and of writing numbers.

// All text is set as text: a uid is whatever users chose, and may look like markup.
export function make(tag, facts = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export const find = (id) => document.getElementById(id);

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const number = (value) =>
  value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : 0 });

export const time = (seconds) => new Date(seconds * 1e3).toLocaleTimeString("en-GB");

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];

export function span(seconds) {
  for (const [size, unit] of UNITS) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.max(0, seconds).toFixed(seconds < 10 ? 1 : 0)} s`;
}

export const count = (many, what) => `${number(many)} ${what}${many === 1 ? "" : "s"}`;
