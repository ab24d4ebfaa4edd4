// The page of a feature as Markdown.
"use strict";

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
