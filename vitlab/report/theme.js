"use strict";
(() => {
const button = document.getElementById("theme");
const dark = () => document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
function themed(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  button.textContent = dark() ? "☀ light" : "☾ dark";
  button.setAttribute("aria-label", dark() ? "use light colours" : "use dark colours");
}
button.addEventListener("click", () => {
  themed(dark() ? "light" : "dark");
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch {}
});
let kept = null;
try { kept = localStorage.getItem("theme"); } catch {}
themed(["light", "dark"].includes(kept) ? kept : null);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themed());
})();
