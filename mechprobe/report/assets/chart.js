// Hovers and series of the figures. A figure is an SVG whose marks have their text as <title>, and whose parts name their series.
(() => {
  "use strict";
  const REACH = 16; // pixels from a mark within which a hand takes hold of it
  const tip = document.createElement("div");
  tip.id = "chart-tip";
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let shown = null;

  function hide() {
    shown?.classList.remove("on");
    shown = null;
    tip.textContent = "";
  }

  function show(mark) {
    if (mark === shown) return;
    hide();
    shown = mark;
    mark.classList.add("on");
    tip.textContent = mark.dataset.text;
    const at = mark.getBoundingClientRect();
    const left = Math.min(Math.max(4, at.left + at.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 4);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.transform = `translate(${Math.round(Math.max(4, left))}px, ${Math.round(above > 4 ? above : at.bottom + 6)}px)`;
  }

  function nearest(marks, x, y) {
    let found = null;
    let least = REACH;
    for (const mark of marks) {
      const at = mark.getBoundingClientRect();
      const distance = Math.hypot(at.left + at.width / 2 - x, at.top + at.height / 2 - y);
      if (at.width && distance < least) [found, least] = [mark, distance];
    }
    return found;
  }

  function hovers(svg, frame) {
    const marks = [...svg.querySelectorAll(".marks circle")];
    for (const mark of marks) {
      // The text moves from the title, which the browser would show as a second hover.
      const title = mark.querySelector("title");
      mark.dataset.text = title.textContent;
      title.remove();
    }
    if (!marks.length) return;
    let reached = null; // by keyboard
    const point = (event) => {
      const mark = nearest(marks, event.clientX, event.clientY);
      if (mark) show(mark);
      else hide();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    frame.addEventListener("blur", () => {
      reached = null;
      hide();
    });
    frame.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
      const there = marks.filter((mark) => !mark.classList.contains("off"));
      if (!step || !there.length || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const now = there.indexOf(shown || reached);
      const next = now < 0 && Math.abs(step) === 1 ? (step > 0 ? 0 : there.length - 1) : Math.min(Math.max(now + step, 0), there.length - 1);
      reached = there[next];
      reached.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      // The scrolling hides what is shown, just before the next frame.
      requestAnimationFrame(() => show(reached));
    });
  }

  function series(svg, frame) {
    const told = JSON.parse(svg.dataset.series);
    const parts = [...svg.querySelectorAll("[data-in]")].map((part) => [part, part.dataset.in.split(" ").map(Number)]);
    const used = new Set(parts.flatMap(([, within]) => within));
    if (used.size < 2) return;
    const hidden = new Set();
    const panel = document.createElement("div");
    panel.className = "series";
    const groups = new Map();
    told.forEach(([kind, name], number) => {
      if (!used.has(number)) return;
      if (!groups.has(kind)) {
        const group = document.createElement("div");
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", kind ? `Shown in the figure, by ${kind}` : "Shown in the figure");
        groups.set(kind, group);
        panel.append(group);
      }
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const off = !hidden.delete(number);
        if (off) hidden.add(number);
        button.setAttribute("aria-pressed", String(!off));
        for (const [part, within] of parts) part.classList.toggle("off", within.some((one) => hidden.has(one)));
        hide();
      });
      groups.get(kind).append(button);
    });
    frame.after(panel);
  }

  for (const svg of document.querySelectorAll("svg.chart")) {
    const frame = svg.closest(".frame");
    hovers(svg, frame);
    series(svg, frame);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  addEventListener("scroll", hide, { passive: true, capture: true });
})();
