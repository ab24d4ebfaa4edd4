// Scatter plots of all live features on a canvas, with a brush, and the triangle of three models' MAS.
"use strict";

const EDGE = { left: 58, right: 12, top: 10, bottom: 34 };
const NEAR = 9;

class Plot {
  // x, y: positions in the unit square, NaN for none; axes(context, box): draws the frame; describe(): the text alternative.
  constructor({ title, x, y, axes, describe, brushed, edge = EDGE, controls = [] }) {
    Object.assign(this, { x, y, axes, describe, brushed, edge, shown: null, rect: null, drag: null, layer: null });
    this.canvas = el("canvas", { role: "img" });
    this.clearing = el(
      "button.small",
      { type: "button", title: "Clear the brush", hidden: true, onclick: () => this.brushed(null) },
      "Clear",
    );
    this.node = el(
      "figure.plot",
      {},
      el("figcaption", {}, el("b", {}, title), ...controls, el("span.fill"), this.clearing),
      this.canvas,
    );
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", (event) => this.end(event));
    this.canvas.addEventListener("pointerleave", () => hideTip());
    new ResizeObserver(() => this.refresh()).observe(this.canvas);
  }

  // Marks the features in `shown` (1 by place), a brushed rectangle of the unit square, and one open feature.
  show(shown, rect, open) {
    if (shown !== this.shown) this.layer = null;
    Object.assign(this, { shown, rect, open });
    this.clearing.hidden = !rect;
    this.draw();
    // The text alternative counts and sorts, so it follows when the reader rests.
    const describe = () => this.canvas.setAttribute("aria-label", this.describe());
    clearTimeout(this.describing);
    if (this.canvas.hasAttribute("aria-label")) this.describing = setTimeout(describe, 250);
    else describe();
  }

  get box() {
    const { left, right, top, bottom } = this.edge;
    return { left, top, width: this.canvas.clientWidth - left - right, height: this.canvas.clientHeight - top - bottom };
  }

  toPixel(x, y) {
    const box = this.box;
    return [box.left + x * box.width, box.top + (1 - y) * box.height];
  }

  toUnit(event) {
    const [box, bounds] = [this.box, this.canvas.getBoundingClientRect()];
    return [(event.clientX - bounds.left - box.left) / box.width, 1 - (event.clientY - bounds.top - box.top) / box.height];
  }

  // Draw everything again: the features that are shown, the size, or the colors have changed.
  refresh() {
    this.layer = null;
    this.draw();
  }

  // Axes and points are kept as a picture, so that a brush or an opened feature costs no more than copying it.
  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.shown || !width) return;
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const begin = (canvas) => {
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      return context;
    };
    if (!this.layer) {
      this.layer = document.createElement("canvas");
      const context = begin(this.layer);
      context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
      this.axes(context, this, color);
      this.points(context, color("--faint"));
    }
    const context = begin(this.canvas);
    context.drawImage(this.layer, 0, 0, width, height);
    if (this.rect) this.frame(context, this.rect, color("--blue"));
    if (this.open >= 0 && Number.isFinite(this.x[this.open] + this.y[this.open])) {
      const [x, y] = this.toPixel(this.x[this.open], this.y[this.open]);
      context.strokeStyle = color("--ink");
      context.lineWidth = 1.5;
      context.beginPath();
      context.arc(x, y, 6, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  points(context, faint) {
    const { left, top, width, height } = this.box;
    const table = explorer.table;
    const size = table.feature.length > 8000 ? 2 : 3;
    const paint = (fill, alpha, wanted) => {
      context.fillStyle = fill;
      context.globalAlpha = alpha;
      for (let i = 0; i < this.x.length; i++) {
        if (wanted(i))
          context.fillRect(left + this.x[i] * width - size / 2, top + (1 - this.y[i]) * height - size / 2, size, size);
      }
    };
    paint(faint, 1, (i) => !this.shown[i]);
    table.classes.forEach((name, number) =>
      paint(classColor(name), name === "shared" ? 0.6 : 0.95, (i) => this.shown[i] && table.class[i] === number),
    );
    context.globalAlpha = 1;
  }

  frame(context, [x0, y0, x1, y1], stroke) {
    const [left, bottom] = this.toPixel(x0, y0);
    const [right, top] = this.toPixel(x1, y1);
    context.strokeStyle = stroke;
    context.lineWidth = 1.5;
    context.strokeRect(left, top, right - left, bottom - top);
    context.fillStyle = stroke;
    context.globalAlpha = 0.08;
    context.fillRect(left, top, right - left, bottom - top);
    context.globalAlpha = 1;
  }

  begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = this.toUnit(event);
    hideTip();
  }

  rectangle(event) {
    const limit = (value) => Math.min(1.02, Math.max(-0.02, value));
    const [x, y] = this.toUnit(event).map(limit);
    const [x0, y0] = this.drag.map(limit);
    return [Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)];
  }

  move(event) {
    if (this.drag) {
      this.rect = this.rectangle(event);
      this.draw();
      return;
    }
    const place = this.nearest(event);
    this.canvas.style.cursor = place >= 0 ? "pointer" : "crosshair";
    if (place < 0) hideTip();
    else showTip(event, place);
  }

  end(event) {
    if (!this.drag) return;
    const rect = this.rectangle(event);
    this.drag = null;
    const { width, height } = this.box;
    if ((rect[2] - rect[0]) * width > 4 && (rect[3] - rect[1]) * height > 4) {
      this.brushed(rect);
      return;
    }
    const place = this.nearest(event);
    if (place >= 0) app.open(place);
    else this.brushed(null);
  }

  nearest(event) {
    const [bounds, { left, top, width, height }] = [this.canvas.getBoundingClientRect(), this.box];
    const [px, py] = [event.clientX - bounds.left, event.clientY - bounds.top];
    let [best, found] = [NEAR * NEAR, -1];
    for (let i = 0; i < this.x.length; i++) {
      if (!this.shown[i]) continue;
      const distance = (left + this.x[i] * width - px) ** 2 + (top + (1 - this.y[i]) * height - py) ** 2;
      if (distance < best) [best, found] = [distance, i];
    }
    return found;
  }
}

function showTip(event, place) {
  const tip = document.getElementById("tip");
  const table = explorer.table;
  const lines = table.columns
    .slice(0, table.tuned.length + 1)
    .map(({ key, title }) => `${title} ${number(table.values[key][place])}`);
  tip.replaceChildren(
    el("b", {}, `Feature ${table.feature[place]}`),
    el("div", {}, inert(table.classes[table.class[place]])),
    ...lines.map((line) => el("div", {}, inert(line))),
  );
  tip.hidden = false;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, event.clientY - height - 10)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// NRN of one tuned model from left to right, density on a logarithmic scale from below to above.
function nrnPlot(name, controls, brushed) {
  const table = explorer.table;
  const [nrn, density] = [table.values[`nrn_${name}`], table.values.density_joint];
  const lowest = Math.floor(
    Math.log10(
      Math.max(
        1e-9,
        density.reduce((least, value) => (value > 0 && value < least ? value : least), 1),
      ),
    ),
  );
  const scale = (value) => (Math.log10(Math.max(value, 1e-12)) - lowest) / -lowest;
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
    context.fillText(
      inert(`${table.base} only ←   NRN ${name}   → ${name} only`),
      box.left + box.width / 2,
      box.top + box.height + 19,
    );
  };
  const plot = new Plot({
    title: "NRN and density",
    controls,
    x: nrn,
    y: density.map(scale),
    axes,
    brushed: (rect) =>
      brushed(rect && { nrn: [rect[0], rect[2]], density: [rect[1], rect[3]].map((part) => 10 ** (lowest - lowest * part)) }),
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
    const short = (name) => inert(name.length > 18 ? `${name.slice(0, 8)}…${name.slice(-8)}` : name);
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
