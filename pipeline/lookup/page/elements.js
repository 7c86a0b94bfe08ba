// Elements, and texts for them: everything that is shown goes through `make`, as text.

import { Digits } from "./asking.js";

const TEXT_MAX = 2000;

export const $ = (id) => document.getElementById(id);

export function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== ""));
  return made;
}

export const isNumber = (value) => typeof value === "number" || value instanceof Digits;
export const clock = () => new Date().toLocaleTimeString([], { hour12: false });
export const cut = (shown, most) => (shown.length > most ? `${shown.slice(0, most)}…` : shown);

export function text(value) {
  if (typeof value === "string") return value === "" ? "(empty text)" : cut(value, TEXT_MAX);
  return value instanceof Digits ? value.text : cut(JSON.stringify(value) ?? "", TEXT_MAX);
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.floor((ms % 60_000) / 1000)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} days`;
}
