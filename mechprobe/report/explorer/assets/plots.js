// Scatter plots of all live features on a canvas, with a brush.
"use strict";

const EDGE = { left: 58, right: 12, top: 10, bottom: 34 };
const NEAR = 9;
const TURNS = 8;

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
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.lineWidth = 2.5;
      context.stroke();
    }
  }

  points(context, faint) {
    const { left, top, width, height } = this.box;
    const table = explorer.table;
    const many = table.feature.length > 8000;
    const size = many ? 2 : 3;
    const paint = (fill, alpha, wanted, first = 0, step = 1) => {
      context.fillStyle = fill;
      context.globalAlpha = alpha;
      for (let i = first; i < this.x.length; i += step) {
        if (wanted(i))
          context.fillRect(left + this.x[i] * width - size / 2, top + (1 - this.y[i]) * height - size / 2, size, size);
      }
    };
    paint(faint, 1, (i) => !this.shown[i]);
    const shared = table.classes.indexOf("shared");
    paint(classColor("shared"), many ? 0.3 : 0.6, (i) => this.shown[i] && table.class[i] === shared);
    // The other classes by turns, so that none hides another.
    for (let turn = 0; turn < TURNS; turn++)
      table.classes.forEach((name, number) => {
        const wanted = (i) => this.shown[i] && table.class[i] === number;
        if (number !== shared) paint(classColor(name), many ? 0.75 : 0.95, wanted, turn, TURNS);
      });
    context.globalAlpha = 1;
    this.rings(context);
  }

  // Rings around the selected features.
  rings(context) {
    const { rank } = explorer.table;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.lineWidth = 1;
    for (let i = 0; i < rank.length; i++) {
      if (rank[i] < 0 || !this.shown[i] || !Number.isFinite(this.x[i] + this.y[i])) continue;
      context.beginPath();
      context.arc(...this.toPixel(this.x[i], this.y[i]), 3.5, 0, 2 * Math.PI);
      context.stroke();
    }
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
    el("div", {}, short(table.classes[table.class[place]], 40)),
    table.rank[place] < 0 ? "" : el("div", {}, `selected, ${table.rank[place] + 1} of ${table.selection.n}`),
    table.labels[table.feature[place]] ? el("div", {}, short(table.labels[table.feature[place]], 80)) : "",
    ...lines.map((line) => el("div", {}, short(line, 60))),
  );
  tip.hidden = false;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${Math.max(4, event.clientY - height - 10)}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}
