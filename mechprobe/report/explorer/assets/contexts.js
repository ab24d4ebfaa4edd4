// Contexts of a feature: one line per read-out with the activation of every token as a shade, or its difference from base.
"use strict";

// All contexts, the top ones first, then random ones from the highest quantile to the lowest.
function contextSections(feature, difference) {
  const parts = new Map();
  for (const context of feature.contexts) {
    if (!parts.has(context.part)) parts.set(context.part, []);
    parts.get(context.part).push(context);
  }
  return [...parts.keys()]
    .sort((a, b) => (a < 0 ? -1 : b < 0 ? 1 : b - a))
    .map((part) =>
      el(
        "section.part",
        {},
        el("h4", {}, partTitle(part, parts.get(part)[0])),
        parts.get(part).map((context) => contextBlock(context, difference)),
      ),
    );
}

function partTitle(part, { range: [low, high, smallest, largest] }) {
  if (part < 0) return "Highest activations";
  return `Random: ${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)} % of active tokens, ${number(smallest)} to ${number(largest)}`;
}

function contextBlock(context, difference) {
  const { base, models } = explorer.table;
  const largest = Math.max(...Object.values(context.values).flatMap((values) => Array.from(values)));
  const lines = [contextLine("joint", context, context.values.joint, largest, { peak: true })];
  const same = [];
  for (const name of models) {
    const values = context.values[name];
    if (!values) continue;
    if (difference) {
      if (name !== base)
        lines.push(
          contextLine(
            differenceName(name),
            context,
            values.map((value, i) => value - context.values[base][i]),
            largest,
            { difference: true },
          ),
        );
    } else if (values.every((value, i) => value === context.values.joint[i])) same.push(name);
    else lines.push(contextLine(name, context, values, largest, {}));
  }
  return el(
    "div.context",
    {},
    el(
      "div.lines",
      {
        tabindex: 0,
        role: "group",
        "aria-label": `Context of sample ${context.sample}, token ${inert(context.tokens[context.peak])}`,
      },
      lines,
    ),
    el(
      "p.soft.about",
      {},
      `sample ${context.sample}, row ${context.row}`,
      same.length ? ` · same as joint: ${same.map(inert).join(", ")}` : "",
    ),
  );
}

function contextLine(name, context, values, largest, { peak = false, difference = false }) {
  const runs = [];
  let plain = "";
  const flush = () => {
    if (plain) runs.push(plain);
    plain = "";
  };
  context.tokens.forEach((token, i) => {
    const [value, isPeak] = [values[i], peak && i === context.peak];
    const begins = context.response[i] && !(i > 0 && context.response[i - 1]);
    if (!value && !isPeak && !begins) {
      plain += visible(token);
      return;
    }
    flush();
    const classes = ["t", value > 0 && "hot", value < 0 && "cold", isPeak && "peak", begins && "response"].filter(Boolean);
    const title = [value ? (difference ? signed(value) : number(value)) : "", begins ? "the response begins" : ""]
      .filter(Boolean)
      .join(", ");
    const share = largest ? Math.min(1, Math.abs(value) / largest) : 0;
    runs.push(el(`span.${classes.join(".")}`, { title, "--a": value ? (0.14 + 0.5 * share).toFixed(2) : 0 }, visible(token)));
  });
  flush();
  const end = difference ? extreme(values) : Math.max(...values);
  return el(
    "div.line",
    {},
    el("span.who", { title: inert(name) }, inert(name)),
    el("span.tokens", {}, runs),
    el("span.soft.end", {}, difference ? signed(end) : number(end)),
  );
}

// The name of a model's difference from base, in the 13 letters that have room before a line.
function differenceName(name) {
  const full = `${name} − ${explorer.table.base}`;
  return full.length > 13 ? `Δ ${short(name, 11)}` : full;
}

// Scroll each context that is wider than its place so that its peak is in view.
function showPeaks(holder) {
  const boxes = Array.from(holder.querySelectorAll(".lines"), (box) => {
    const peak = box.querySelector(".peak");
    return [box, peak && box.scrollWidth > box.clientWidth ? peak.offsetLeft + peak.offsetWidth - 0.75 * box.clientWidth : 0];
  });
  for (const [box, left] of boxes) if (left > 0) box.scrollLeft = left;
}

// The value that is farthest from 0.
function extreme(values) {
  return values.reduce((found, value) => (Math.abs(value) > Math.abs(found) ? value : found), 0);
}

// Promoted and suppressed tokens by model. A token that base has not is underlined.
function promotedTable(feature) {
  const base = feature.promoted.find(({ model }) => model === explorer.table.base);
  const known = (end) => new Set((base ? base[end] : []).map(({ text }) => text));
  const cell = (model, end, tokens) => {
    const others = known(end);
    return el(
      "td",
      {},
      tokens.map(({ text, value }) => {
        const fresh = base && model !== base.model && !others.has(text);
        return el(
          `span.chip${fresh ? ".fresh" : ""}`,
          { title: `${signed(value)}${fresh ? `, not among those of ${inert(base.model)}` : ""}` },
          visible(text),
        );
      }),
    );
  };
  return scrolled(
    "Promoted tokens",
    el(
      "table",
      {},
      headRow("model", "promoted", "suppressed"),
      el(
        "tbody",
        {},
        feature.promoted.map(({ model, promoted, suppressed }) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, inert(model)),
            cell(model, "promoted", promoted),
            cell(model, "suppressed", suppressed),
          ),
        ),
      ),
    ),
  );
}

function scrolled(label, table) {
  return el("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, table);
}

function headRow(...titles) {
  return el(
    "thead",
    {},
    el(
      "tr",
      {},
      titles.map((title) => (title instanceof Node ? title : el("th", { scope: "col" }, inert(title)))),
    ),
  );
}
