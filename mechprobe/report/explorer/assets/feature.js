// The page of one feature.
"use strict";

const pairOf = (details, kind, a, b) => details[`${kind}_${a}_${b}`] ?? details[`${kind}_${b}_${a}`];

// Columns of the table of models: title, explanation, and the value of a model (or of "joint").
function modelColumns(details) {
  const { base } = explorer.table;
  return [
    ["decoder norm", "L1 norm of the decoder, in the model's own units", (m) => details[`norm_l1_${m}`], number],
    ["MAS", "Share of the model in the sum of decoder norms", (m) => details[`mas_${m}`], number],
    ["NRN", `Decoder norm over the sum with that of ${inert(base)}`, (m) => details[`nrn_${m}`], number],
    [
      "cosine",
      `Cosine of the decoder with that of ${inert(base)}`,
      (m) => (m === base ? 1 : pairOf(details, "cosine", base, m)),
      number,
    ],
    ["shift", `Length of the decoder's change from ${inert(base)}`, (m) => details[`shift_${m}`], number],
    ["ν error", "Latent scaling on the error: base over the model", (m) => details[`nu_error_${m}`], number],
    [
      "ν reconstr.",
      "Latent scaling on the reconstruction: base over the model",
      (m) => details[`nu_reconstruction_${m}`],
      number,
    ],
    [
      "density",
      "Share of tokens on which the feature is active, in the model's own read-out",
      (m) => details[`density_${m}`],
      percent,
    ],
    ["mean", "Mean activation where it is active", (m) => details[`mean_active_${m}`], number],
    ["max", "Largest activation", (m) => details[`max_${m}`], number],
  ];
}

function modelTable(feature) {
  const { models } = explorer.table;
  const columns = modelColumns(feature.details);
  const widest = Math.max(...models.map((name) => feature.details[`norm_l1_${name}`] || 0));
  const head = headRow("model", ...columns.map(([title, help]) => el("th", { scope: "col", title: help }, title)));
  const rows = ["joint", ...models].map((name) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name === "joint" ? name : [el("i.dot", { "--dot": modelColor(name) }), inert(name)]),
      columns.map(([title, , value, write], index) => {
        const found = name === "joint" && index < 7 ? NaN : value(name);
        const bar =
          title === "decoder norm" && name !== "joint"
            ? el("span.bar", { "--share": found / widest || 0, "--dot": modelColor(name), "aria-hidden": "true" })
            : null;
        return el("td", {}, name === "joint" && index < 7 ? "" : write(found), bar);
      }),
    ),
  );
  return scrolled("Models", el("table.numbers", {}, head, el("tbody", {}, rows)));
}

function attributionTable(feature) {
  const { tasks, rankings } = explorer.table;
  const names = Object.keys(rankings);
  const largest = Object.fromEntries(
    names.map((name) => [name, Math.max(...tasks.map((task) => Math.abs(feature.details[`${name}.${task}`]) || 0))]),
  );
  const rows = tasks.map((task) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, inert(task)),
      names.map((name) => {
        const value = feature.details[`${name}.${task}`];
        return el(
          "td",
          {},
          number(value),
          el("span.bar", {
            "--share": largest[name] ? Math.max(0, value) / largest[name] : 0,
            "--dot": "var(--blue)",
            "aria-hidden": "true",
          }),
        );
      }),
    ),
  );
  return scrolled(
    "Attribution per task",
    el("table.numbers", {}, headRow("task", ...names.map((name) => rankings[name])), el("tbody", {}, rows)),
  );
}

// Edits of sets that contain the feature; a set of size 1 is the feature alone.
function editsOf(feature) {
  const rank = explorer.table.edited.indexOf(feature.id);
  return rank < 0 ? [] : explorer.table.edits.filter(({ size }) => rank < size).sort((a, b) => a.size - b.size);
}

function setOf({ set, size }) {
  return size === 1 ? "this feature alone" : set.endsWith(String(size)) ? inert(set) : `${inert(set)} (${size} features)`;
}

function editTable(edits) {
  const { tasks } = explorer.table;
  const named = tasks.filter((task) => edits.some((edit) => edit.tasks[task]));
  const rows = edits.map((edit) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, inert(edit.title)),
      el("td", {}, setOf(edit)),
      el("td", {}, edit.pooled.replaceAll("-", "−"), edit.n ? el("span.soft", {}, ` n = ${edit.n}`) : ""),
      named.map((task) => el("td", {}, (edit.tasks[task] || "–").replaceAll("-", "−"))),
    ),
  );
  return scrolled("Edits", el("table.numbers", {}, headRow("edit", "set", "pooled", ...named), el("tbody", {}, rows)));
}

// Sections have fixed rows, so that those of two features stand beside each other.
function section(kind, title, note, ...content) {
  const heading = title instanceof Node ? title : el("h3", { tabindex: -1 }, title);
  return el(`section.${kind}`, {}, heading, note ? el("p.soft", {}, note) : null, content);
}

function factsLine(feature) {
  const { selection } = explorer.table;
  const facts = [el("span.class", {}, el("i.dot", { "--dot": classColor(feature.class) }), inert(feature.class))];
  if (feature.rank >= 0) facts.push(el("span", {}, `selected, ${feature.rank + 1} of ${selection.n}`));
  facts.push(el("span", {}, `active on ${percent(feature.details.density_joint)} of tokens`));
  return el("p.facts", {}, facts);
}

function featurePage(feature, { difference, pinned, actions }) {
  const page = el(
    "article.feature",
    { "aria-label": `Feature ${feature.id}`, tabindex: -1 },
    feature.label
      ? el("p.label", {}, inert(feature.label), el("span.soft", {}, ` label by ${inert(explorer.table.labeler)}, not verified`))
      : null,
    factsLine(feature),
    featureSections(feature, difference, actions),
  );
  page.prepend(featureTitle(feature, page, pinned, actions));
  return page;
}

// Stays in view, with a button for every section.
function featureTitle(feature, page, pinned, actions) {
  const jumps = Array.from(page.querySelectorAll("h3"), (heading) =>
    el(
      "button",
      {
        type: "button",
        onclick: () => {
          heading.scrollIntoView({ block: "start" });
          heading.focus({ preventScroll: true });
        },
      },
      heading.textContent,
    ),
  );
  return el(
    "div.bar-top",
    {},
    el(
      "div.title",
      {},
      el("h2", {}, `Feature ${feature.id}`),
      el("span.fill"),
      el(
        "button",
        {
          type: "button",
          title: "Put another feature beside this one (c)",
          "aria-pressed": String(pinned),
          onclick: () => actions.pin(feature.place),
        },
        "Compare",
      ),
      el("button", { type: "button", title: "Copy as Markdown", onclick: () => copy(markdownOf(feature)) }, "Copy"),
      el(
        "button",
        { type: "button", "aria-label": "Close feature", title: "Close (Escape)", onclick: () => actions.close(feature.place) },
        "✕",
      ),
    ),
    jumps.length > 2 ? el("nav.jumps", { "aria-label": `Sections of feature ${feature.id}` }, jumps) : null,
  );
}

function featureSections(feature, difference, actions) {
  const table = explorer.table;
  const edits = editsOf(feature);
  return [
    section("models", "Models", null, modelTable(feature)),
    table.arms.length
      ? section(
          "courses",
          "Checkpoints",
          feature.courses.length ? null : NO_MATCH,
          feature.courses.length ? courseCharts(feature.courses) : null,
        )
      : null,
    feature.promoted.length
      ? section(
          "promotes",
          "Promoted tokens",
          "The decoder through each model's unembedding. Later blocks are skipped. Underlined tokens are not among those of base.",
          promotedTable(feature),
        )
      : null,
    table.tasks.length
      ? section(
          "attribution",
          "Attribution",
          "Per task, over the samples that base gets wrong and the tuned model gets right. Bars compare the tasks of a column.",
          attributionTable(feature),
        )
      : null,
    edits.length ? section("edits", "Edits", editNote(edits), editDetails(edits)) : null,
    section("contexts", contextTitle(feature, difference, actions), contextNote(feature, difference), contextSections(feature, difference)),
  ];
}

function editNote(edits) {
  const change = (edit) => `${inert(edit.title)} ${edit.pooled.replaceAll("-", "−")}`;
  const alone = edits.filter(({ size }) => size === 1);
  const text = "Changes of accuracy in points, with 95 % intervals.";
  return alone.length ? `${text} This feature alone: ${alone.map(change).join("; ")}.` : text;
}

function editDetails(edits) {
  return el(
    "details",
    { open: app.editsOpen, ontoggle: (event) => (app.editsOpen = event.target.open) },
    el("summary", {}, `${edits.length} edits of sets that contain this feature`),
    editTable(edits),
  );
}

function contextTitle(feature, difference, actions) {
  const toggle = (name, on) =>
    el("button", { type: "button", "aria-pressed": String(difference === on), onclick: () => actions.difference(on) }, name);
  const choice = el(
    "div.choice",
    { role: "group", "aria-label": "Contexts show" },
    toggle("Activation", false),
    toggle(`Difference from ${short(explorer.table.base)}`, true),
  );
  return el("div.title", {}, el("h3", { tabindex: -1 }, "Contexts"), el("span.fill"), feature.contexts.length ? choice : null);
}

function contextNote(feature, difference) {
  const { readout, has_contexts: kept } = explorer.table;
  if (feature.contexts.length) {
    const shade = difference
      ? "Blue tokens are more active than in base, orange ones less."
      : "The shade is the activation as a share of the largest in the context.";
    return `${shade} Read-out of single models: ${inert(readout)}. A bar marks where a response begins.`;
  }
  if (kept) return "This feature has no contexts: it is active at no token of the rows that contexts are drawn from.";
  return [
    "No contexts were kept. ",
    el("code", {}, "mechprobe features"),
    " with the models writes them; then make the report again.",
  ];
}
