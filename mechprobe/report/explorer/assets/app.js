// What changes with the state; features that are open, export, theme and keys.
"use strict";

const KEYS = [
  ["j, k", "next and previous feature of the table"],
  ["↑, ↓, Enter", "in the table: mark a feature, and open it"],
  ["←, →", "in the headings: the next column, which Enter sorts"],
  ["/", "search"],
  ["c", "put the next feature beside the open one"],
  ["d", "contexts: activation, or difference from base"],
  ["t", "light or dark"],
  ["Escape", "close the feature, or leave the search"],
  ["?", "this list"],
];
const TERMS = [
  ["NRN", "normalized relative norm: 0 if only base has the feature, 1 if only the tuned model has it"],
  ["MAS", "model attribution score: share of a model in the sum of decoder norms"],
  ["ν", "latent scaling: near 0 where base lacks the feature, near 1 where it has it"],
  ["J", "joint attribution: part of a feature in the difference between base and tuned model, on gained samples"],
  ["joint", "the activation that all models share; lines of models are their own read-outs"],
];

// ---- what changes with the state

app.update = (before) => {
  const { state } = app;
  const changed = (...names) => !before || names.some((name) => JSON.stringify(before[name]) !== JSON.stringify(state[name]));
  if (changed("model", "corners")) buildPlots();
  if (changed("query", "classes", "selected", "sort", "ranges", "ternary", "model", "corners")) {
    applyFilters(state);
    const { n_features: all } = explorer.table;
    document.getElementById("count").textContent =
      `${thousands(app.order.length)} of ${thousands(explorer.table.feature.length)} live features (${thousands(all)} with dead ones)`;
    app.grid.show(app.order, state.sort);
    showFilters(state);
  }
  for (const plot of app.plots) plot.show(app.shown, brushOf(plot), state.open);
  if (changed("open", "pin")) openFeatures();
  else if (changed("difference") && state.open >= 0 && app.features) showFeatures();
};

async function openFeatures() {
  const { open, pin } = app.state;
  const pane = document.getElementById("pane");
  const number = ++app.opening;
  const left = pane.contains(document.activeElement);
  app.grid.mark(open);
  document.body.classList.toggle("opened", open >= 0);
  pane.hidden = open < 0;
  if (open < 0) {
    document.body.classList.remove("two");
    pane.replaceChildren();
    if (left) app.grid.frame.focus();
    return;
  }
  const places = pin >= 0 && pin !== open ? [pin, open] : [open];
  try {
    const features = await Promise.all(places.map(readFeature));
    if (number !== app.opening) return;
    app.features = features;
    showFeatures();
    pane.scrollTop = 0;
  } catch (error) {
    pane.replaceChildren(el("p.warn", {}, error.message));
  }
}

function showFeatures() {
  const actions = {
    difference: (difference) => app.change({ difference }),
    pin: (place) => app.change({ pin: app.state.pin === place ? -1 : place }),
    close: (place) => app.change(place === app.state.pin ? { pin: -1 } : { open: app.state.pin, pin: -1 }),
  };
  const waiting = app.state.pin >= 0 && app.features.length === 1;
  const pane = document.getElementById("pane");
  document.body.classList.toggle("two", app.features.length > 1);
  document.body.classList.toggle("choosing", waiting);
  const { difference, pin } = app.state;
  keepingFocus(pane, () =>
    pane.replaceChildren(
      ...(waiting ? [el("p.soft.hint", { role: "status" }, "Choose another feature in the table to compare.")] : []),
      ...app.features.map((feature) => featurePage(feature, { difference, pinned: feature.place === pin, actions })),
    ),
  );
  showPeaks(pane);
}

function exportTable() {
  const table = explorer.table;
  const titles = ["feature", "class", "selected", ...table.columns.map(({ key }) => key), "active_at", "label"];
  const rows = Array.from(app.order, (place) => [
    table.feature[place],
    table.classes[table.class[place]],
    table.rank[place] < 0 ? NaN : table.rank[place] + 1,
    ...table.columns.map(({ key }) => table.values[key][place]),
    firstTokens(place).join(" "),
    table.labels[table.feature[place]] || "",
  ]);
  const text = [titles, ...rows].map((row) => row.map(field).join(",")).join("\r\n");
  const link = el("a", { href: URL.createObjectURL(new Blob([`${text}\r\n`], { type: "text/csv" })), download: "features.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say(`${app.order.length} features exported.`);
}

// ---- theme and keys

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("mechprobe-theme", theme);
  } catch {
    // Some browsers keep nothing for pages of the file system.
  }
}

function startTheme() {
  let kept = null;
  try {
    kept = localStorage.getItem("mechprobe-theme");
  } catch {
    // As above.
  }
  document.documentElement.dataset.theme = kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function toggleTheme() {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  buildFilters();
  app.grid.clear();
  app.grid.draw();
  showFilters(app.state);
  for (const plot of app.plots) plot.refresh();
  if (app.state.open >= 0 && app.features) showFeatures();
}

function showKeys() {
  const dialog = document.getElementById("keys");
  const list = (pairs, tag) =>
    el(
      "dl",
      {},
      pairs.flatMap(([name, text]) => [el("dt", {}, el(tag, {}, name)), el("dd", {}, text)]),
    );
  dialog.replaceChildren(
    el(
      "div.title",
      {},
      el("h2", { id: "keys-title" }, "Keys and terms"),
      el("span.fill"),
      el("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕"),
    ),
    list(KEYS, "kbd"),
    list(TERMS, "b"),
    el(
      "p.soft",
      {},
      "Drag in a plot to select features; Ranges limits the same numbers by keyboard. Rings mark selected features. " +
        "The address of the page keeps what is shown. For other viewers, the run folder has the same data as Parquet: ",
      el("code", {}, "features/table.parquet"),
      " and ",
      el("code", {}, "contexts/*.parquet"),
      ".",
    ),
  );
  dialog.showModal();
}

function pressed(event) {
  const typing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && typing) {
    event.preventDefault(); // the browser would empty the search, and the table would stay filtered
    event.target.blur();
  }
  if (typing || document.getElementById("keys").open) return;
  const actions = {
    j: () => app.open(app.grid.beside(1)),
    k: () => app.open(app.grid.beside(-1)),
    "/": () => document.getElementById("search").focus(),
    "?": showKeys,
    t: toggleTheme,
    c: () => app.state.open >= 0 && app.change({ pin: app.state.pin === app.state.open ? -1 : app.state.open }),
    d: () => app.state.open >= 0 && app.change({ difference: !app.state.difference }),
    Escape: () => app.state.open >= 0 && app.change({ open: -1, pin: -1 }),
  };
  const moves = { ArrowDown: 1, ArrowUp: -1 };
  if (event.target.classList.contains("frame") && moves[event.key])
    actions[event.key] = () => app.grid.mark(app.grid.beside(moves[event.key]));
  if (event.target.classList.contains("frame") && event.key === "Enter")
    actions.Enter = () => app.grid.current >= 0 && app.open(app.grid.current);
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
}

// Show all features again; what is open and how it is shown stays.
function reset() {
  const { open, pin, model, corners, difference } = app.state;
  app.change({ ...EMPTY, open, pin, model, corners, difference });
}

explorer.started = () => {
  app.state = { ...EMPTY, ...readFragment() };
  app.grid = new Grid(document.getElementById("grid"), gridColumns(), {
    sort: (key) => app.change({ sort: app.state.sort === `-${key}` ? key : app.state.sort === key ? "" : `-${key}` }),
    open: app.open,
    reset,
  });
  buildFilters();
  app.update(null);
  document.getElementById("search").addEventListener("input", (event) => app.change({ query: event.target.value }));
  document.getElementById("reset").addEventListener("click", reset);
  document.getElementById("csv").addEventListener("click", exportTable);
  document.getElementById("theme").addEventListener("click", toggleTheme);
  document.getElementById("help").addEventListener("click", showKeys);
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) === fragmentOf(app.state)) return;
    const before = app.state;
    app.state = { ...EMPTY, ...readFragment() };
    app.update(before);
  });
  document.body.dataset.ready = "yes";
  requestAnimationFrame(() => requestAnimationFrame((now) => (document.body.dataset.painted = now)));
};

startTheme();
