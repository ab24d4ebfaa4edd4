// Before the page is drawn: the theme that the reader chose, else that of the system.
(function () {
  let kept = null;
  try {
    kept = localStorage.getItem("mechprobe-theme");
  } catch {
    // Some browsers keep nothing for pages of the file system.
  }
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  document.documentElement.classList.add("scripted");
})();
