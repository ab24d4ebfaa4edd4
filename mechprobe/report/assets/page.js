// The page works without this: theme, current section, definitions on hover, folded parts for fragments and for print.
(function () {
  "use strict";
  const root = document.documentElement;

  function dark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  const button = document.getElementById("theme");
  function nameTheme() {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Light theme" : "Dark theme");
  }
  button.hidden = false;
  nameTheme();
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    nameTheme();
    try {
      localStorage.setItem("mechprobe-theme", root.dataset.theme);
    } catch {
      // Some browsers keep nothing for pages of the file system.
    }
  });

  // ---- current section

  const links = new Map();
  for (const link of document.querySelectorAll("nav.side a")) links.set(link.hash.slice(1), link);
  const sections = Array.from(document.querySelectorAll("main > section[id]"));
  const TOP = 120; // pixels; a section that begins above is the current one, however short those before it are
  function mark() {
    let current = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top < TOP) current = section;
    if (innerHeight + scrollY >= root.scrollHeight - 2) current = sections[sections.length - 1];
    for (const [name, link] of links) {
      if (current && name === current.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();

  const menu = document.querySelector(".menu");
  if (menu) menu.addEventListener("click", (event) => { if (event.target.closest("a")) menu.open = false; });

  // ---- folded parts: a fragment inside one opens it, and print opens all

  function openTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", openTarget);
  openTarget();

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details.fold:not([open])"));
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of closed) part.open = false; });

  // ---- definitions of terms

  let shown = null;
  function hide() {
    if (shown && shown.matches(":popover-open")) shown.hidePopover();
    shown = null;
  }
  function show(term) {
    const tip = document.getElementById(term.getAttribute("popovertarget"));
    if (!tip || !tip.showPopover || tip === shown) return;
    hide();
    if (!tip.matches(":popover-open")) tip.showPopover();
    shown = tip;
    const at = term.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.margin = "0";
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${at.bottom + size.height + 10 < innerHeight ? at.bottom + 6 : Math.max(8, at.top - size.height - 6)}px`;
  }
  for (const term of document.querySelectorAll(".term")) {
    term.addEventListener("mouseenter", () => show(term));
    term.addEventListener("mouseleave", hide);
    term.addEventListener("focus", () => show(term));
    term.addEventListener("blur", hide);
    term.addEventListener("click", (event) => { event.preventDefault(); show(term); });
  }
  addEventListener("scroll", hide, { passive: true, capture: true });
})();
