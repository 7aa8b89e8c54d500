// The form: which models there are, and what the chosen one takes.

import { forget, showWhetherOutdated } from "./answers.js";
import { renderMarkdown } from "./card.js";
import { restartCharts } from "./charts.js";
import { showCode } from "./code.js";
import { by, fillSelect, make, makeButton } from "./dom.js";
import { showMethods } from "./explanations.js";
import { FORMS } from "./forms.js";
import { showError } from "./jobs.js";
import { ask, sentence } from "./server.js";
import { isCuttable, isText, model, modelPath, state, task } from "./state.js";

const EXAMPLES = {
  "text-classification": ["A wonderful film.", "The plot is thin, but the actors are a delight.", "I want my two hours back."],
  translation: ["The dog is asleep.", "A little girl is playing in the garden.", "Where can I buy a ticket?"],
};

const classes = ({ labels }) => labels.length <= 20 ? `${labels.length} classes: ${labels.join(", ")}`
  : `${labels.length} classes: ${labels.slice(0, 20).join(", ")} and others`;

const ABOUT = {
  "text-classification": known => `Assigns a text to one of ${classes(known)}.`,
  "image-classification": known => `Assigns a picture to one of ${classes(known)}.`,
  translation: () => "Translates a text.",
  tensors: () => "A bare graph: takes tensors, gives tensors.",
};

/** Show what has changed after an edit of the form. */
export const formChanged = () => {
  showWhetherOutdated();
  showCode();
};

const showFormExamples = kind => {
  const { examples } = FORMS[kind], show = ([text, second = ""]) => { by("text").value = text; by("second").value = second; };
  for (const example of examples)
    makeButton(by("examples"), example[0], () => { show(example); formChanged(); by("text").focus(); });
  show(examples[0]);
};

const showExamples = kind => {
  by("examples").replaceChildren();
  if (FORMS[kind]) {
    showFormExamples(kind);
    return;
  }
  for (const text of EXAMPLES[kind] ?? [])
    makeButton(by("examples"), text, () => { by("text").value = text; formChanged(); by("text").focus(); });
  if (EXAMPLES[kind] && (!by("text").value || Object.values(EXAMPLES).flat().includes(by("text").value)))
    by("text").value = EXAMPLES[kind][0];
};

/** Show the form of the chosen model; what another model answered is taken off the page. */
export const modelChosen = async () => {
  const known = model(), kind = task();
  history.replaceState(null, "", `#${encodeURIComponent(known.name)}`);
  fillSelect(by("version"), [["", known.version ? `newest (${known.version})` : "none"],
    ...known.versions.map(version => [version, version])], "");
  by("about").className = known.ready ? "muted" : "error";
  by("about").textContent = known.ready ? ((ABOUT[known.task] ?? FORMS[known.task]?.about)?.(known) ?? `Task: ${known.task}. This page has no form for it; it takes tensors.`) : `This model is not served: ${sentence(known.reason)}`;
  by("text-input").hidden = !isText(kind);
  by("truncate-field").hidden = !isCuttable(kind);
  by("second-input").hidden = !FORMS[kind]?.second;
  by("text-label").textContent = FORMS[kind]?.first ?? "Text";
  by("second-label").textContent = FORMS[kind]?.second ?? "";
  by("image-input").hidden = kind !== "image-classification";
  by("tensor-input").hidden = kind !== "tensors";
  by("search").hidden = by("beams-help").hidden = kind !== "translation";
  by("send").textContent = { translation: "Translate", tensors: "Infer" }[kind] ?? FORMS[kind]?.send ?? "Classify";
  by("send").hidden = !kind;
  showExamples(kind);
  forget();
  by("target-field").hidden = !known.labels.length;
  fillSelect(by("target"), [["", "the answer's"], ...known.labels.map(label => [label, label])], "");
  by("explain").hidden = !kind || kind === "tensors";
  by("explain-about").textContent = by("explain").hidden ? "Only models with a task can be explained."
    : state.extensions.some(name => name.startsWith("explain")) ? "Shows which parts of your input speak for the answer above, and which against it."
    : "This server does not list explanations among its extensions; it may refuse to explain.";
  showMethods();
  restartCharts();
  showCode();
  await Promise.all([showCard(), kind === "tensors" ? sketchTensors() : null]);
};

const sketchTensors = async () => {
  const name = by("model").value;
  try {
    const metadata = await (await ask(modelPath())).json();
    if (by("model").value !== name) return;
    const inputs = metadata.inputs.map(({ name: input, datatype, shape }) => {
      const size = shape.map(side => side < 0 ? 1 : side), elements = size.reduce((a, b) => a * b, 1);
      const value = datatype === "BYTES" ? "a text" : datatype === "BOOL" ? true : 1;
      return { name: input, datatype, shape: size, data: Array(Math.min(elements, 4096)).fill(value) };
    });
    by("tensors").value = JSON.stringify({ inputs });
    formChanged();
  } catch (error) {
    if (by("model").value === name) showError(by("answer"), error);
  }
};

/** Show the card of the chosen model and version. */
export const showCard = async () => {
  const path = modelPath(), card = by("card");
  try {
    const text = await (await ask(`${path}/card`)).text();
    if (path === modelPath()) renderMarkdown(card, text);
  } catch (error) {
    if (path === modelPath()) { card.replaceChildren(); make("p", card, error.message, "muted"); }
  }
};

/** Read what the server has, and show the form again if the chosen model has changed. */
export const loadModels = async () => {
  const [index, metadata, api] = await Promise.all(["/v2/models", "/v2", "/openapi.json"].map(async path => (await ask(path)).json()));
  const before = model();
  Object.assign(state, { models: index.models, grpcPort: index.grpc_port, extensions: metadata.extensions, api });
  const first = index.models.find(known => known.task === "text-classification") ?? index.models.find(known => known.ready) ?? index.models[0];
  const wanted = by("model").value || decodeURIComponent(location.hash.slice(1));
  fillSelect(by("model"), index.models.map(known => [known.name, known.ready ? known.name : `${known.name} (not served)`]),
    index.models.some(known => known.name === wanted) ? wanted : first?.name);
  if (!index.models.length) {
    by("about").textContent = "The store of this server has no models.";
    by("send").hidden = true;
  } else if (!before || before.ready !== model().ready || before.reason !== model().reason) await modelChosen();
};
