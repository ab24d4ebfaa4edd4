// The table's columns, the filters above it, and the plots.
"use strict";

function firstTokens(place) {
  const { texts, peaks } = explorer.table.tokens;
  return Array.from(
    peaks.token.subarray(peaks.start[place], Math.min(peaks.start[place] + 4, peaks.start[place + 1])),
    (token) => texts[token],
  );
}

function gridColumns() {
  const table = explorer.table;
  const text = (key, title, width, read, help) => ({ key, title, help, width, text_column: true, text: read, node: null });
  const columns = [
    { key: "feature", title: "feature", help: "Feature number", width: 84, text: (place) => String(table.feature[place]) },
    {
      ...text(
        "class",
        "class",
        132,
        (place) => inert(table.classes[table.class[place]]),
        "Models that have the feature, confirmed by latent scaling",
      ),
      node: (place) =>
        el(
          "span",
          {},
          el("i.dot", { "--dot": classColor(table.classes[table.class[place]]) }),
          inert(table.classes[table.class[place]]),
        ),
    },
  ];
  if (table.selection.n)
    columns.push({
      key: "rank",
      title: "selected",
      help: `Place in the selection ${inert(table.selection.rule)}`,
      width: 88,
      text: (place) => (table.rank[place] < 0 ? "" : String(table.rank[place] + 1)),
    });
  if (table.has_contexts)
    columns.push({
      ...text("tokens", "active at", 190, () => "", "First tokens of the contexts"),
      node: (place) =>
        el(
          "span.tokens",
          {},
          firstTokens(place).map((token) => el("span.chip", {}, visible(token))),
        ),
    });
  if (Object.keys(table.labels).length)
    columns.push(
      text("label", "label", 180, (place) => inert(table.labels[table.feature[place]] || ""), "Labels are not verified"),
    );
  for (const { key, title, help } of table.columns)
    columns.push({
      key,
      title,
      help: inert(help),
      width: Math.min(190, Math.max(86, 28 + 8.5 * inert(title).length)),
      text: (place) => inColumn(key, table.values[key][place]),
    });
  return columns;
}

// A number of the table: shares of norms and latent scaling have two decimals, densities and attribution three.
function inColumn(key, value) {
  if (key.startsWith("density")) return Number.isFinite(value) ? `${fixed(100 * value, 3)} %` : "–";
  return fixed(value, /^(nrn|mas|nu)_/.test(key) ? 2 : 3);
}

function buildFilters() {
  const table = explorer.table;
  const counts = table.classes.map((_, number) => table.class.reduce((n, found) => n + (found === number), 0));
  const chips = table.classes.map(
    (name, number) =>
      counts[number] &&
      el(
        "button.chip.class",
        {
          type: "button",
          "aria-pressed": "false",
          "data-class": name,
          onclick: () =>
            app.change({
              classes: app.state.classes.includes(name)
                ? app.state.classes.filter((other) => other !== name)
                : [...app.state.classes, name],
            }),
        },
        el("i.dot", { "--dot": classColor(name) }),
        el("span.text", { title: inert(name) }, inert(name)),
        " ",
        el("span.soft", {}, thousands(counts[number])),
      ),
  );
  const selected = table.selection.n
    ? el(
        "button.chip",
        { type: "button", id: "selected", "aria-pressed": "false", onclick: () => app.change({ selected: !app.state.selected }) },
        el("i.dot.ring"),
        "selected ",
        el("span.soft", {}, thousands(table.selection.n)),
      )
    : 0;
  const limits = table.columns.map(({ key, title, help }) => {
    const input = (end, name) =>
      el("input", {
        type: "number",
        step: "any",
        "data-key": key,
        "data-end": end,
        "aria-label": `${inert(title)}, ${name}`,
        placeholder: name,
        onchange: (event) => setLimit(key, end, event.target.value),
      });
    return el("div.limit", { title: inert(help) }, el("span", {}, inert(title)), input(0, "least"), input(1, "most"));
  });
  const box = document.getElementById("filters");
  const wasOpen = box.querySelector("details")?.open;
  box.replaceChildren(
    el(
      "div.chips",
      { role: "group", "aria-label": "Classes and selection" },
      [...chips, selected].filter((chip) => chip),
    ),
    el(
      "details",
      { open: wasOpen },
      el("summary", {}, "Ranges ", el("span.set", { id: "ranges" })),
      el("div.limits", {}, limits),
    ),
  );
}

function setLimit(key, end, text) {
  const range = [...(app.state.ranges[key] || [NaN, NaN])];
  range[end] = text === "" ? NaN : Number(text);
  const { [key]: _, ...others } = app.state.ranges;
  app.change({ ranges: range.some(Number.isFinite) ? { ...others, [key]: range } : others });
}

function chooser(label, names, value, chosen) {
  return el(
    "select",
    { "aria-label": label, onchange: (event) => chosen(event.target.value) },
    names.map((name) => el("option", { value: name, selected: name === value }, short(name, 30))),
  );
}

function buildPlots() {
  const { tuned, models } = explorer.table;
  const { model, corners } = app.state;
  app.plots = [];
  if (models.length >= 3) {
    const names = corners.length ? corners : [models[0], models[1], models[models.length - 1]];
    const controls =
      models.length > 3
        ? names.map((name, i) =>
            chooser(`Corner ${i + 1}`, models, name, (chosen) =>
              app.change({ corners: names.map((old, k) => (k === i ? chosen : old)), ternary: null }),
            ),
          )
        : [];
    const plot = ternaryPlot(names, controls, (rect) => app.change({ ternary: rect }));
    plot.kind = "ternary";
    app.plots.push(plot);
  }
  if (!tuned.length) return showPlots();
  const name = model || tuned[tuned.length - 1];
  const key = `nrn_${name}`;
  const controls = tuned.length > 1 ? [chooser("Tuned model", tuned, name, (chosen) => app.change({ model: chosen }))] : [];
  const plot = nrnPlot(name, controls, (found) => {
    const { [key]: _, density_joint: __, ...others } = app.state.ranges;
    app.change({
      ranges: found
        ? { ...others, [key]: found.nrn.map((v) => +v.toFixed(4)), density_joint: found.density.map((v) => +v.toPrecision(4)) }
        : others,
    });
  });
  plot.kind = "nrn";
  plot.key = key;
  app.plots.push(plot);
  showPlots();
}

function showPlots() {
  const holder = document.getElementById("plots");
  keepingFocus(holder, () => holder.replaceChildren(...app.plots.map(({ node }) => node)));
}

function brushOf(plot) {
  if (plot.kind === "ternary") return app.state.ternary;
  const [nrn, density] = [app.state.ranges[plot.key], app.state.ranges.density_joint];
  if (!nrn && !density) return null;
  const end = (range, side, missing) => (range && Number.isFinite(range[side]) ? range[side] : missing);
  const [low, high] = [plot.scale(end(density, 0, 0)), plot.scale(end(density, 1, 1))];
  return [end(nrn, 0, 0), Math.max(0, low), end(nrn, 1, 1), high];
}

function showFilters(state) {
  for (const chip of document.querySelectorAll("[data-class]"))
    chip.setAttribute("aria-pressed", String(state.classes.includes(chip.dataset.class)));
  document.getElementById("selected")?.setAttribute("aria-pressed", String(state.selected));
  const search = document.getElementById("search");
  if (search.value !== state.query) search.value = state.query;
  const set = Object.keys(state.ranges).length;
  document.getElementById("ranges").textContent = set ? `(${set} set)` : "";
  for (const input of document.querySelectorAll("[data-end]")) {
    const value = state.ranges[input.dataset.key]?.[Number(input.dataset.end)];
    input.value = Number.isFinite(value) ? value : "";
  }
}
