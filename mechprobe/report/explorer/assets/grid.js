// The table: rows are made for what is in view only, so that its length does not matter.
"use strict";

const ROW = 30;
const SPARE_ROWS = 8;

class Grid {
  // columns: [{key, title, help, width, text(place), node?(place)}]; handlers: sort(key), open(place), reset().
  constructor(holder, columns, handlers) {
    Object.assign(this, { columns, handlers, order: new Uint32Array(0), current: -1, sort: "", rows: new Map() });
    this.head = el(
      "div.row.head",
      { role: "row", "aria-rowindex": 1 },
      columns.map((column, index) => this.header(column, index)),
    );
    this.body = el("div.body", { role: "rowgroup" });
    this.frame = el(
      "div.frame",
      {
        role: "grid",
        tabindex: 0,
        "aria-label": "Features",
        "aria-colcount": columns.length,
        "--columns": columns.map((c) => `${c.width}px`).join(" "),
        "--first": `${columns[0].width}px`,
      },
      el("div", { role: "rowgroup", class: "heads" }, this.head),
      this.body,
    );
    this.empty = el(
      "p.empty",
      { hidden: true },
      "No feature matches. ",
      el("button", { type: "button", onclick: () => this.handlers.reset() }, "Show all"),
    );
    this.head.addEventListener("keydown", (event) => this.moved(event));
    this.frame.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(this.frame);
    holder.replaceChildren(this.frame, this.empty);
  }

  header(column, index) {
    const button = el(
      "button",
      {
        type: "button",
        title: `${inert(column.title)}: ${column.help}`,
        tabindex: index ? -1 : 0,
        onclick: () => this.handlers.sort(column.key),
      },
      inert(column.title),
      el("span.arrow", { "aria-hidden": "true" }),
    );
    return el(
      `div.cell${index ? "" : ".first"}${column.text_column ? ".left" : ""}`,
      { role: "columnheader", "aria-colindex": index + 1, "aria-sort": "none", "data-key": column.key },
      button,
    );
  }

  // One heading can be reached by the Tab key, the others from it by the arrow keys.
  moved(event) {
    const buttons = Array.from(this.head.querySelectorAll("button"));
    const place = buttons.indexOf(document.activeElement);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (place < 0 || !buttons[next]) return;
    event.preventDefault();
    buttons.forEach((button, index) => (button.tabIndex = index === next ? 0 : -1));
    buttons[next].focus();
  }

  show(order, sort) {
    this.order = order;
    this.frame.setAttribute("aria-rowcount", order.length + 1);
    this.body.style.height = `${order.length * ROW}px`;
    this.empty.hidden = order.length > 0;
    for (const cell of this.head.children) {
      const key = cell.dataset.key;
      const state = sort === key ? "ascending" : sort === `-${key}` ? "descending" : "none";
      cell.setAttribute("aria-sort", state);
      cell.querySelector(".arrow").textContent = { ascending: "▲", descending: "▼", none: "" }[state];
    }
    this.clear();
    this.draw();
  }

  clear() {
    this.rows.clear();
    this.body.replaceChildren();
  }

  draw() {
    const height = this.frame.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.frame.scrollTop / ROW) - SPARE_ROWS);
    const stop = Math.min(this.order.length, Math.ceil((this.frame.scrollTop + height) / ROW) + SPARE_ROWS);
    for (const [index, row] of this.rows) {
      if (index < first || index >= stop) {
        row.remove();
        this.rows.delete(index);
      }
    }
    const made = document.createDocumentFragment();
    for (let index = first; index < stop; index++) {
      if (!this.rows.has(index)) made.append(this.row(index));
    }
    this.body.append(made);
    this.point();
  }

  row(index) {
    const place = this.order[index];
    const cells = this.columns.map((column, number) =>
      el(
        `div.cell${number ? "" : ".first"}${column.text_column ? ".left" : ""}`,
        { role: "gridcell", "aria-colindex": number + 1 },
        column.node ? column.node(place) : column.text(place),
      ),
    );
    const row = el(
      "div.row",
      {
        role: "row",
        id: `row-${place}`,
        "aria-rowindex": index + 2,
        "aria-selected": place === this.current ? "true" : "false",
        onclick: () => this.handlers.open(place),
      },
      cells,
    );
    row.style.transform = `translateY(${index * ROW}px)`;
    this.rows.set(index, row);
    return row;
  }

  // Tell assistive software which row is marked; it can only be told of a row that is drawn.
  point() {
    if (this.rows.has(this.order.indexOf(this.current))) this.frame.setAttribute("aria-activedescendant", `row-${this.current}`);
    else this.frame.removeAttribute("aria-activedescendant");
  }

  // Mark a feature, and scroll to it where it is out of view.
  mark(place) {
    this.current = place;
    for (const [index, row] of this.rows) row.setAttribute("aria-selected", this.order[index] === place ? "true" : "false");
    const index = this.order.indexOf(place);
    if (index < 0) return this.point();
    const [top, height] = [index * ROW, this.frame.clientHeight - ROW];
    if (top < this.frame.scrollTop) this.frame.scrollTop = top;
    else if (top + ROW > this.frame.scrollTop + height) this.frame.scrollTop = top + ROW - height;
    this.draw();
  }

  // The feature some rows on from the marked one; the first one where none is marked.
  beside(step) {
    if (!this.order.length) return -1;
    const index = this.order.indexOf(this.current);
    return this.order[index < 0 ? 0 : Math.min(this.order.length - 1, Math.max(0, index + step))];
  }
}
