// The state of the explorer, which is the fragment of its address, and the features that it shows.
"use strict";

const app = { state: null, order: new Uint32Array(0), shown: null, plots: [], grid: null, opening: 0 };
const EMPTY = {
  open: -1,
  pin: -1,
  query: "",
  classes: [],
  selected: false,
  sort: "",
  ranges: {},
  ternary: null,
  model: "",
  corners: [],
  difference: false,
};

// ---- state and fragment

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  const table = explorer.table;
  const place = (name) => (given.has(name) ? (table.place.get(Number(given.get(name))) ?? -1) : -1);
  const ranges = {};
  for (const { key } of table.columns) {
    const [low, high] = (given.get(key) || "").split("..").map((part) => (part === "" ? NaN : Number(part)));
    if (Number.isFinite(low) || Number.isFinite(high)) ranges[key] = [low, high];
  }
  const ternary = (given.get("mas") || "").split(",").map(Number);
  const corners = given.getAll("corner").filter((name) => table.models.includes(name));
  return {
    open: place("f"),
    pin: place("with"),
    query: given.get("q") || "",
    classes: given.getAll("class").filter((name) => table.classes.includes(name)),
    selected: given.get("selected") === "1",
    sort: given.get("sort") || "",
    ranges,
    ternary: ternary.length === 4 && ternary.every(Number.isFinite) ? ternary : null,
    model: table.tuned.includes(given.get("model")) ? given.get("model") : "",
    corners: corners.length === 3 ? corners : [],
    difference: given.get("contexts") === "difference",
  };
}

function fragmentOf(state) {
  const table = explorer.table;
  const given = new URLSearchParams();
  if (state.open >= 0) given.set("f", table.feature[state.open]);
  if (state.pin >= 0) given.set("with", table.feature[state.pin]);
  if (state.query) given.set("q", state.query);
  for (const name of state.classes) given.append("class", name);
  if (state.selected) given.set("selected", "1");
  if (state.sort) given.set("sort", state.sort);
  for (const [key, [low, high]] of Object.entries(state.ranges))
    given.set(key, [low, high].map((value) => (Number.isFinite(value) ? String(value) : "")).join(".."));
  if (state.ternary) given.set("mas", state.ternary.map((value) => value.toFixed(4)).join(","));
  if (state.model) given.set("model", state.model);
  for (const name of state.corners) given.append("corner", name);
  if (state.difference) given.set("contexts", "difference");
  return given.toString();
}

// Change the state; a feature that opens is a step of the history, everything else replaces it.
app.change = (changes) => {
  const before = app.state;
  app.state = { ...before, ...changes };
  const text = `#${fragmentOf(app.state)}`;
  if (text !== (location.hash || "#")) {
    if (before.open !== app.state.open) location.hash = text;
    else location.replace(text);
  }
  app.update(before);
};

app.open = (place) => app.change({ open: place });

// ---- filter and sort

function matching(query) {
  const { tokens, labels, feature } = explorer.table;
  const wanted = query.toLowerCase();
  const hit = tokens.lower.map((text) => text.includes(wanted));
  const any = ({ start, token }, place) => {
    for (let i = start[place]; i < start[place + 1]; i++) if (hit[token[i]]) return true;
    return false;
  };
  return (place) =>
    String(feature[place]) === wanted ||
    any(tokens.peaks, place) ||
    any(tokens.promoted, place) ||
    (labels[feature[place]] || "").toLowerCase().includes(wanted);
}

function applyFilters(state) {
  const table = explorer.table;
  const tests = [];
  if (state.classes.length) {
    const wanted = table.classes.map((name) => state.classes.includes(name));
    tests.push((i) => wanted[table.class[i]]);
  }
  if (state.selected) tests.push((i) => table.rank[i] >= 0);
  for (const [key, [low, high]] of Object.entries(state.ranges)) {
    const values = table.values[key];
    tests.push((i) => !(values[i] < low) && !(values[i] > high) && !Number.isNaN(values[i]));
  }
  const triangle = app.plots.find((plot) => plot.kind === "ternary");
  if (state.ternary && triangle) {
    const [x0, y0, x1, y1] = state.ternary;
    tests.push((i) => triangle.x[i] >= x0 && triangle.x[i] <= x1 && triangle.y[i] >= y0 && triangle.y[i] <= y1);
  }
  if (state.query.trim()) tests.push(matching(state.query.trim()));
  const shown = new Uint8Array(table.feature.length);
  const order = new Uint32Array(table.feature.length);
  let n = 0;
  for (let i = 0; i < shown.length; i++) {
    if (tests.every((test) => test(i))) {
      shown[i] = 1;
      order[n++] = i;
    }
  }
  app.shown = shown;
  app.order = sorted(order.subarray(0, n), state.sort);
}

// By a column, falling with a minus; missing values come last. Without one, selected features come first.
function sorted(order, sort) {
  const table = explorer.table;
  const [key, sign] = sort.startsWith("-") ? [sort.slice(1), -1] : [sort, 1];
  const last = (value) => (Number.isNaN(value) ? Infinity : value);
  const ranked = (place) => (table.rank[place] < 0 ? Infinity : table.rank[place]);
  const by =
    { "": ranked, rank: ranked, feature: (place) => place, class: (place) => table.class[place] }[key] ||
    (table.values[key] ? (place) => sign * last(sign * table.values[key][place]) : () => 0);
  const keys = new Float64Array(table.feature.length);
  for (const place of order) keys[place] = last(sign * by(place));
  return order.slice().sort((a, b) => keys[a] - keys[b] || a - b);
}
