// The two scatter plots: NRN against density, and the triangle of three models' MAS.
"use strict";

// NRN of one tuned model from left to right, density on a logarithmic scale from below to above.
function nrnPlot(name, controls, brushed) {
  const table = explorer.table;
  const [nrn, density] = [table.values[`nrn_${name}`], table.values.density_joint];
  const least = density.reduce((found, value) => (value > 0 && value < found ? value : found), 0.1);
  const lowest = Math.floor(Math.log10(Math.max(1e-9, least)));
  // A density of 0 stands on the axis.
  const scale = (value) => Math.max(0, (Math.log10(Math.max(value, 1e-12)) - lowest) / -lowest);
  const axes = (context, plot, color) => {
    const box = plot.box;
    context.strokeStyle = color("--line");
    context.fillStyle = color("--soft");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (let power = lowest; power <= 0; power++) {
      const [x, y] = plot.toPixel(0, scale(10 ** power));
      line(context, x, y, x + box.width, y);
      context.fillText(percentOf(power), x - 6, y);
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      const [x, y] = plot.toPixel(tick, 0);
      if (tick === 0.5) line(context, x, y, x, y - box.height);
      context.fillText(String(tick), x, y + 5);
    }
    const ends = `${short(table.base, 14)} only ←   NRN ${short(name, 14)}   → ${short(name, 14)} only`;
    const title = context.measureText(ends).width <= box.width + 24 ? ends : `NRN ${short(name, 30)}`;
    context.fillText(title, box.left + box.width / 2, box.top + box.height + 19);
  };
  const plot = new Plot({
    title: "NRN and density",
    controls,
    x: nrn,
    y: density.map(scale),
    axes,
    brushed: (rect) =>
      brushed(rect && { nrn: [rect[0], rect[2]], density: [rect[1], rect[3]].map((part) => (part > 0 ? 10 ** (lowest - lowest * part) : 0)) }),
    describe: () =>
      `NRN of ${inert(name)} from 0 to 1 against density on a logarithmic scale; ${countText()}. ${medians([
        [`NRN ${inert(name)}`, nrn],
        ["density", density],
      ])} The table has the same values.`,
  });
  plot.scale = scale;
  return plot;
}

// 10 to some power, in percent.
function percentOf(power) {
  return power < -5
    ? `1e${power + 2} %`.replace("-", "−")
    : `${power < -2 ? (100 * 10 ** power).toFixed(-2 - power) : 100 * 10 ** power} %`;
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

const HEIGHT = Math.sqrt(3) / 2;

// The shares of three models: each corner is a feature that only one has.
function ternaryPlot(names, controls, brushed) {
  const mas = names.map((name) => explorer.table.values[`mas_${name}`]);
  const n = mas[0].length;
  const [x, y] = [new Float32Array(n), new Float32Array(n)];
  for (let i = 0; i < n; i++) {
    const sum = mas[0][i] + mas[1][i] + mas[2][i];
    y[i] = mas[1][i] / sum;
    x[i] = (mas[2][i] + mas[1][i] / 2) / sum;
  }
  const axes = (context, plot, color) => {
    context.strokeStyle = color("--line");
    context.lineWidth = 1;
    for (const share of [0, 1 / 3, 2 / 3]) {
      const at = (a, b, c) => plot.toPixel(c + b / 2, b);
      line(context, ...at(share, 0, 1 - share), ...at(share, 1 - share, 0));
      line(context, ...at(0, share, 1 - share), ...at(1 - share, share, 0));
      line(context, ...at(0, 1 - share, share), ...at(1 - share, 0, share));
    }
    context.font = `600 11px ${getComputedStyle(document.body).fontFamily}`;
    context.fillStyle = color("--soft");
    const [left, right, top] = [plot.toPixel(0, 0), plot.toPixel(1, 0), plot.toPixel(0.5, 1)];
    context.textBaseline = "top";
    context.textAlign = "left";
    context.fillText(short(names[0]), left[0], left[1] + 6);
    context.textAlign = "right";
    context.fillText(short(names[2]), right[0], right[1] + 6);
    context.textAlign = "center";
    context.textBaseline = "bottom";
    context.fillText(short(names[1]), top[0], top[1] - 5);
  };
  const plot = new Plot({
    title: "MAS of three models",
    controls,
    x,
    y,
    axes,
    brushed,
    edge: { left: 14, right: 14, top: 24, bottom: 24 },
    describe: () =>
      `MAS as a triangle with the corners ${names.map(inert).join(", ")}; ${countText()}. ${medians(names.map((name, i) => [`MAS ${inert(name)}`, mas[i]]))} The table has the same values.`,
  });
  // The triangle keeps equal sides: the box is as wide as its height allows.
  Object.defineProperty(plot, "box", {
    get() {
      const { left, right, top, bottom } = plot.edge;
      const [width, height] = [plot.canvas.clientWidth - left - right, plot.canvas.clientHeight - top - bottom];
      const side = Math.min(width, height / HEIGHT);
      return { left: left + (width - side) / 2, top: top + (height - side * HEIGHT) / 2, width: side, height: side * HEIGHT };
    },
  });
  return plot;
}

// The medians of the features that are shown, for the text alternatives.
function medians(named) {
  const parts = named.map(([name, values]) => {
    const shown = values.filter((value, i) => app.shown[i] && Number.isFinite(value)).sort();
    return `${name} ${number(shown[Math.floor(shown.length / 2)])}`;
  });
  return `Medians: ${parts.join(", ")}.`;
}

function countText() {
  return document.getElementById("count").textContent;
}
