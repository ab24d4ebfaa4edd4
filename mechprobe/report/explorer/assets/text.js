// Elements, numbers and texts. Texts of models and data only ever become text nodes and attributes, never markup.
"use strict";

// el("p.soft", {title: "…"}, "text", child): children that are null or false are left out.
function el(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return made;
}

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Control, format and unassigned characters, and separators but the blanks: spelled out, so that they have no effect.
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]|(?![ \u00a0])\p{Zs}/gu;

function inert(text) {
  return text.replace(UNSEEN, (char) => `\\x${char.codePointAt(0).toString(16).padStart(2, "0")}`);
}

const LONGEST_TOKEN = 80;

// A token as the report shows it: blanks and line breaks are visible, an empty one is ∅, and of a long one the beginning.
function visible(token) {
  const signs = token.length > LONGEST_TOKEN ? Array.from(token.slice(0, 2 * LONGEST_TOKEN + 2)) : [];
  const text = signs.length > LONGEST_TOKEN ? `${signs.slice(0, LONGEST_TOKEN).join("")}…` : token;
  return inert(text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "\u00a0")) || "∅";
}

// A name where little room is: its two ends.
function short(name, most = 18) {
  const signs = Array.from(inert(name));
  const half = Math.floor((most - 1) / 2);
  return signs.length > most ? `${signs.slice(0, half).join("")}…${signs.slice(-half).join("")}` : signs.join("");
}

// Three digits; small numbers as 1.2e−5.
function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3;
  const text = size === 0 ? "0" : size < 0.001 ? value.toExponential(1) : value.toFixed(digits);
  return text.replaceAll("-", "−");
}

// With a fixed number of decimals, so that the numbers of a column stand below each other.
const fixed = (value, decimals) => (Number.isFinite(value) ? value.toFixed(decimals).replace("-", "−") : "–");

const signed = (value) => (value > 0 ? "+" : "") + number(value);
const percent = (value) => (Number.isFinite(value) ? `${number(100 * value)} %` : "–");
const thousands = (value) => value.toLocaleString("en-US");

// Text for Markdown: code with a fence that is longer than any inside.
function code(text) {
  const longest = Math.max(0, ...(text.match(/`+/g) || []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  const inner = inert(text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")).replaceAll("|", "\\|");
  const pad = longest || inner.startsWith("`") || inner.trim() !== inner ? " " : "";
  return `${fence}${pad}${inner}${pad}${fence}`;
}

const escaped = (text) => inert(text).replace(/[\\`*_{}[\]<>()#+!|~-]/g, (sign) => `\\${sign}`);

// A field of a CSV file. Spreadsheets run texts that begin as a formula, so these get an apostrophe.
function field(value) {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  const text = inert(value.replaceAll("\n", "⏎"));
  return `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
}

// Make the content of a holder anew; the element that had the focus is known by its place among those that can have it.
function keepingFocus(holder, work) {
  const all = () => Array.from(holder.querySelectorAll("button, select, input, summary, [tabindex]"));
  const place = all().indexOf(document.activeElement);
  work();
  if (place >= 0) all()[place]?.focus({ preventScroll: true });
}

function say(text) {
  document.getElementById("said").textContent = text;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea.hidden", {}, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied.");
}

// Colors of models, as in the figures of the report; the second is for dark pages.
const KNOWN = { base: ["#5a5a5a", "#b4b8bf"], sft: ["#E69F00", "#E69F00"], rl: ["#0072B2", "#56B4E9"] };
const CYCLE = [
  ["#009E73", "#2cc79b"],
  ["#CC79A7", "#d995bb"],
  ["#56B4E9", "#bfe6ff"],
  ["#D55E00", "#f0803c"],
  ["#9a8f00", "#F0E442"],
];

function modelColor(name) {
  const dark = document.documentElement.dataset.theme === "dark" ? 1 : 0;
  if (KNOWN[name]) return KNOWN[name][dark];
  const others = explorer.table.models.filter((other) => !KNOWN[other]);
  return CYCLE[Math.max(0, others.indexOf(name)) % CYCLE.length][dark];
}

// Shared features are grey, those of one model have its color, those of several are violet.
function classColor(name) {
  const dark = document.documentElement.dataset.theme === "dark";
  if (name === "shared") return dark ? "#7d8794" : "#9aa3ae";
  if (name === "unconfirmed") return dark ? "#cdb96a" : "#a48a1f";
  if (name.endsWith("-only")) return modelColor(name.slice(0, -5));
  return dark ? "#c59be8" : "#7b4ba8";
}
