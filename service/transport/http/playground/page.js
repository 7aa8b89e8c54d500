// The page at `/`: sends a request to a model of this server, and shows the answer, its explanation and its cost.
//
// All data come from the server: the models (/v2/models), the explanation methods (/v2 and /openapi.json), the charts
// (/metrics). This module connects the elements of page.html with the modules in page/.

import { send } from "./page/answers.js";
import { drawCharts, pauseCharts, sampleCharts } from "./page/charts.js";
import { setUpCode, showCode } from "./page/code.js";
import { by } from "./page/dom.js";
import { explain, methodChosen } from "./page/explanations.js";
import { formChanged, loadModels, modelChosen, showCard } from "./page/form.js";
import { ANSWER, EXPLANATION, showError, stop } from "./page/jobs.js";
import { drawShip, takePicture } from "./page/picture.js";
import { state, task } from "./page/state.js";

// --- light and dark --------------------------------------------------------------------------------------------------

const THEMES = { "": "automatic", light: "light", dark: "dark" };
const setTheme = theme => {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  by("theme").textContent = `Colours: ${THEMES[theme]}`;
  try { localStorage.setItem("theme", theme); } catch { /* a browser that keeps nothing */ }
};
by("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length]);
});
try {
  const kept = localStorage.getItem("theme");
  if (kept in THEMES) setTheme(kept);
} catch { /* the same */ }

// --- the form --------------------------------------------------------------------------------------------------------

by("ask").addEventListener("submit", event => { event.preventDefault(); send(); });
by("explain").addEventListener("submit", event => { event.preventDefault(); explain(); });
by("resend").addEventListener("click", () => { by("ask").requestSubmit(); by("send").focus(); });
by("stop").addEventListener("click", () => stop(ANSWER));
by("explain-stop").addEventListener("click", () => stop(EXPLANATION));
by("model").addEventListener("change", modelChosen);
by("method").addEventListener("change", methodChosen);
by("version").addEventListener("change", () => { formChanged(); showCard(); });
for (const id of ["text", "second", "tensors", "beams", "max-new-tokens", "truncate"]) by(id).addEventListener("input", formChanged);
for (const id of ["target", "samples", "seed"]) by(id).addEventListener("input", showCode);
for (const id of ["text", "second", "tensors"])
  by(id).addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); by("ask").requestSubmit(); } });

by("file").addEventListener("change", event => { const file = event.target.files[0]; takePicture(file, file?.name); });
by("draw").addEventListener("click", drawShip);
by("drop").addEventListener("dragover", event => { event.preventDefault(); by("drop").classList.add("over"); });
by("drop").addEventListener("dragleave", () => by("drop").classList.remove("over"));
// A file that is dropped outside of the frame must not make the browser leave the page.
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => {
  event.preventDefault();
  by("drop").classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (task() === "image-classification") takePicture(file, file?.name);
});
addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(each => each.type.startsWith("image/"));
  if (file && task() === "image-classification") takePicture(file, file.name);
});

// --- what is done once a second while the page is seen ---------------------------------------------------------------

let timer = null;
const tick = async () => {
  timer = null;
  const isLoading = state.models.some(known => known.reason === "loading");
  if (document.visibilityState !== "visible" || !(by("live").open || isLoading)) return;
  try {
    if (by("live").open) await sampleCharts();
    by("live-about").textContent = "All requests to this model in the last minute, from the server's own metrics.";
    if (isLoading) await loadModels();
  } catch (error) {
    pauseCharts();
    by("live-about").textContent = error.message;
  }
  timer ??= setTimeout(tick, 1000);
};
const restart = () => {
  clearTimeout(timer);
  pauseCharts();
  tick();
};
document.addEventListener("visibilitychange", restart);
by("live").addEventListener("toggle", restart);

setUpCode();
drawCharts();
try {
  await loadModels();
} catch (error) {
  showError(by("answer"), error);
}
tick();
