// The page of one feature, and the same as Markdown.
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
  const widest = Math.max(...models.map((name) => feature.details[`norm_l1_${name}`]));
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
            ? el("span.bar", { "--share": found / widest, "--dot": modelColor(name), "aria-hidden": "true" })
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

const NO_MATCH = "No feature of the dictionaries over checkpoints has a decoder in base like this one's.";

// Decoder norms of the matched feature of the dictionary over checkpoints, and its cosine to base's decoder.
function courseSection({ arm, matched, cosine, progress, models, norms, cosines }) {
  const [width, height, left, top] = [330, 130, 44, 12];
  const chart = (values, lowest, highest, name, color) => {
    const x = (i) => left + (width - left - 14) * progress[i];
    const y = (value) => top + (height - top - 26) * (1 - (value - lowest) / (highest - lowest));
    const drawn = svg("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      class: "chart",
      "aria-label": `${name} by checkpoint: ${models.map((model, i) => `${inert(model)} ${number(values[i])}`).join(", ")}`,
    });
    for (const tick of [lowest, (lowest + highest) / 2, highest]) {
      drawn.append(svg("line", { x1: left, x2: width - 14, y1: y(tick), y2: y(tick), class: "rule" }));
      const text = svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" });
      text.textContent = number(tick);
      drawn.append(text);
    }
    drawn.append(
      svg("polyline", { points: values.map((value, i) => `${x(i)},${y(value)}`).join(" "), class: "course", stroke: color }),
    );
    values.forEach((value, i) => {
      const title = svg("title");
      title.textContent = `${inert(models[i])}: ${number(value)}`;
      drawn.append(svg("circle", { cx: x(i), cy: y(value), r: 3.5, fill: color }, title));
    });
    for (const [i, anchor] of [
      [0, "start"],
      [models.length - 1, "end"],
    ]) {
      const text = svg("text", { x: x(i), y: height - 6, "text-anchor": anchor });
      text.textContent = inert(models[i]);
      drawn.append(text);
    }
    return el("figure", {}, el("figcaption.soft", {}, name), drawn);
  };
  const color = modelColor(arm);
  return el(
    "div.charts",
    {},
    el(
      "p.soft",
      {},
      `Arm ${inert(arm)}: feature ${matched} of the dictionary over checkpoints, whose decoder in base has the cosine ${number(cosine)} with this feature's.`,
    ),
    chart(norms, 0, Math.max(...norms) * 1.05, "decoder norm (L1)", color),
    chart(cosines, cosines.some((value) => value < 0) ? -1 : 0, 1, "cosine to base's decoder", color),
  );
}

function section(title, note, ...content) {
  return el("section", {}, el("h3", {}, title), note ? el("p.soft", {}, note) : null, content);
}

function factsLine(feature) {
  const { selection } = explorer.table;
  const facts = [el("span.class", {}, el("i.dot", { "--dot": classColor(feature.class) }), inert(feature.class))];
  if (feature.rank >= 0) facts.push(el("span", {}, `selected, ${feature.rank + 1} of ${selection.n}`));
  facts.push(el("span", {}, `active on ${percent(feature.details.density_joint)} of tokens`));
  return el("p.facts", {}, facts);
}

function featurePage(feature, { difference, pinned, actions }) {
  const table = explorer.table;
  const edits = editsOf(feature);
  const toggle = (name, on) =>
    el("button", { type: "button", "aria-pressed": String(difference === on), onclick: () => actions.difference(on) }, name);
  return el(
    "article.feature",
    { "aria-label": `Feature ${feature.id}`, tabindex: -1 },
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
    feature.label
      ? el("p.label", {}, inert(feature.label), el("span.soft", {}, ` label by ${inert(table.labeler)}, not verified`))
      : null,
    factsLine(feature),
    section("Models", null, modelTable(feature)),
    table.arms.length
      ? section("Checkpoints", feature.courses.length ? null : NO_MATCH, feature.courses.map(courseSection))
      : null,
    feature.promoted.length
      ? section(
          "Promoted tokens",
          "The decoder through each model's unembedding. Later blocks are skipped. Underlined tokens are not among those of base.",
          promotedTable(feature),
        )
      : null,
    table.tasks.length
      ? section(
          "Attribution per task",
          "Over the samples that base gets wrong and the tuned model gets right. Bars compare the tasks of a column.",
          attributionTable(feature),
        )
      : null,
    edits.length
      ? section(
          "Edits",
          null,
          el(
            "details",
            {},
            el("summary", {}, `${edits.length} edits of sets that contain this feature`),
            el("p.soft", {}, "Changes of accuracy in points, with 95 % intervals."),
            editTable(edits),
          ),
        )
      : null,
    el(
      "section",
      {},
      el(
        "div.title",
        {},
        el("h3", {}, "Contexts"),
        el("span.fill"),
        feature.contexts.length
          ? el(
              "div.choice",
              { role: "group", "aria-label": "Contexts show" },
              toggle("Activation", false),
              toggle(`Difference from ${inert(table.base)}`, true),
            )
          : null,
      ),
      feature.contexts.length
        ? el(
            "p.soft",
            {},
            difference
              ? "Blue tokens are more active than in base, orange ones less. "
              : "The shade is the activation as a share of the largest in the context. ",
            `Read-out of single models: ${inert(table.readout)}. A bar marks where a response begins.`,
          )
        : el(
            "p.soft",
            {},
            "No contexts were kept. ",
            el("code", {}, "mechprobe features"),
            " with the models writes them; then make the report again.",
          ),
      contextSections(feature, difference),
    ),
  );
}

function tableMarkdown(titles, rows) {
  const written = (cells) => `| ${cells.join(" | ")} |`;
  return [written(titles), written(titles.map(() => "---")), ...rows.map(written)].join("\n");
}

function markdownOf(feature) {
  const table = explorer.table;
  const columns = modelColumns(feature.details);
  const names = Object.keys(table.rankings);
  const parts = [
    `## Feature ${feature.id}${feature.label ? `: ${escaped(feature.label)}` : ""}`,
    `Run ${escaped(table.run)}; class ${escaped(feature.class)}; ${feature.rank >= 0 ? `selected, ${feature.rank + 1} of ${table.selection.n}` : "not selected"}; active on ${percent(feature.details.density_joint)} of tokens.`,
    tableMarkdown(
      ["model", ...columns.map(([title]) => title)],
      table.models.map((name) => [escaped(name), ...columns.map(([, , value, write]) => write(value(name)))]),
    ),
  ];
  if (table.tasks.length)
    parts.push(
      tableMarkdown(
        ["task", ...names.map((name) => table.rankings[name])],
        table.tasks.map((task) => [escaped(task), ...names.map((name) => number(feature.details[`${name}.${task}`]))]),
      ),
    );
  const edits = editsOf(feature);
  if (edits.length)
    parts.push(
      tableMarkdown(
        ["edit", "set", "pooled change in points"],
        edits.map((edit) => [escaped(edit.title), escaped(setOf(edit)), edit.pooled]),
      ),
    );
  for (const { model, promoted, suppressed } of feature.promoted) {
    parts.push(
      `- ${escaped(model)} promotes ${promoted.map(({ text }) => code(text)).join(" ")}; suppresses ${suppressed.map(({ text }) => code(text)).join(" ")}`,
    );
  }
  for (const context of feature.contexts) {
    const peak = Math.max(...context.values.joint);
    parts.push(
      `- ${context.part < 0 ? "top" : `quantile ${context.part + 1}`}, ${number(peak)}: ${code(context.tokens.map((token, i) => (i === context.peak ? `⟦${token}⟧` : token)).join(""))}`,
    );
  }
  return `${parts
    .join("\n\n")
    .replace(/\n\n- /g, "\n- ")
    .replace(/\n- /, "\n\n- ")}\n`;
}
