// Explanations: each is of the answer on the screen, with the same inputs, parameters and version.

import { by, fillSelect, make, makeFold, showFacts } from "./dom.js";
import { answerToForm, describe, showReceipt } from "./answers.js";
import { bodyOf, explainCall } from "./calls.js";
import { showCode } from "./code.js";
import { FORMS } from "./forms.js";
import { EXPLANATION, unlessAborted, work } from "./jobs.js";
import { count, duration, fixed, percent } from "./numbers.js";
import { ask, Refused } from "./server.js";
import { draftOfExplanation, model, state } from "./state.js";
import { reading, showHeat, showLegend, showWords } from "./weights.js";

const refusedMethods = new Map();  // by model: the methods that the server has refused for it

/** List the server's explanation methods: extensions `explain:<method>`, else the methods in /openapi.json. */
const offeredMethods = () => {
  const named = state.extensions.filter(name => name.startsWith("explain:")).map(name => name.slice("explain:".length));
  if (named.length) return named;
  const schemas = state.api?.components?.schemas ?? {};
  const found = new Set();
  const search = (schema, depth) => {
    if (!schema || depth > 8) return;
    if (schema.$ref) return search(schemas[schema.$ref.split("/").pop()], depth + 1);
    const method = schema.properties?.method;
    for (const choice of method ? [method, ...(method.anyOf ?? [])] : [])
      for (const value of choice.enum ?? []) if (typeof value === "string") found.add(value);
    for (const inner of [...Object.values(schema.properties ?? {}), ...(schema.anyOf ?? []), schema.items]) search(inner, depth + 1);
  };
  search(state.api?.paths?.["/v2/models/{model}/explain"]?.post?.requestBody?.content?.["application/json"]?.schema, 0);
  return [...found];
};

const METHODS = {
  occlusion: "Removes each part alone and measures how the score changes.",
  lime: "Fits a linear model to the scores of random subsets of the parts.",
  shap: "Shapley values: the average contribution of each part, over all subsets of the others. They sum to the difference between the score of the whole input and of the empty one.",
  attention: "The model's attention weights; choose a layer and a head below the answer. Attention does not prove which parts the answer depends on.",
  gradients: "Integrated gradients: the contribution of each part to the model's raw score on the path from an empty input to yours.",
};

/** Show the methods that the server lists and the model supports; the model index has each model's list. */
export const showMethods = () => {
  const refused = refusedMethods.get(by("model").value) ?? new Set();
  const own = model()?.explain;
  const methods = offeredMethods().filter(name => own?.includes(name) ?? true);
  fillSelect(by("method"), [["", "server's choice"],
    ...methods.map(name => [name, refused.has(name) ? `${name} (refused for this model)` : name])]);
  methodChosen();
};

export const methodChosen = () => {
  const method = by("method").value;
  state.looking = {};
  by("method-about").textContent = METHODS[method] ?? "";
  by("samples-field").hidden = method === "attention";  // it takes no samples
  by("samples-label").textContent = method === "gradients" ? "Steps" : "Samples";
  showCode();
};

/** Request an explanation; `focused` is the control in the previous explanation that the user has just changed. */
export const explain = (focused = "") => {
  if (by("ask").reportValidity() && by("explain").reportValidity()) explainAnswer(focused);
};

const explainAnswer = focused => work(EXPLANATION, async (sheet, signal) => {
  const how = draftOfExplanation(), waiting = make("p", sheet, "Waits for the answer.", "muted");
  state.explained = null;
  const answered = await unlessAborted(answerToForm(), signal);
  if (!answered) throw new Refused("There is no answer to explain: see above.");
  waiting.textContent = "Computes the explanation, at low priority: other requests come first.";
  const { asked } = answered, call = explainCall(asked, how, answered);
  const body = await bodyOf(call, asked.picture);
  const response = await ask(call.path, { method: "POST", headers: { "content-type": "application/json" }, body, signal }).catch(error => {
    if (how.method && error instanceof Refused && /\(501\)|\(400\).*\bno graph for method\b/i.test(error.message)) {
      refusedMethods.set(asked.model, (refusedMethods.get(asked.model) ?? new Set()).add(how.method));
      showMethods();
    }
    throw error;
  });
  const explanation = await response.json();
  if (signal.aborted) throw new DOMException("stopped", "AbortError");
  waiting.remove();
  showExplanation(sheet, explanation, answered, how);
  state.explained = call;
  showCode();
  if (focused) by(focused)?.focus();
}, (sheet, error) => {
  sheet.replaceChildren();
  make("p", sheet, error.name === "AbortError" ? "Stopped."
    : error instanceof Refused ? error.message : `The page failed on this explanation: ${error.message}`,
  error.name === "AbortError" ? "muted" : "error").setAttribute("role", error.name === "AbortError" ? "status" : "alert");
});

/** Show which attention is displayed, and controls to choose another; layers and heads count from 0, as in requests. */
const showLooking = (place, { part, layers, heads, layer, head }, asked) => {
  const fields = make("div", place, "", "fields");
  const field = (id, name, entries, value, chosen) => {
    const box = make("div", fields, "", "field broad"), label = make("label", box, name);
    const select = Object.assign(make("select", box), { id });
    label.htmlFor = id;
    fillSelect(select, entries, value === null ? "" : String(value));
    select.addEventListener("change", () => { chosen(select.value); explain(id); });
    return select;
  };
  const set = (name, value) => {
    if (value === "") delete state.looking[name];
    else state.looking[name] = name === "part" ? value : Number(value);
  };
  const numbered = (number, all) => [["", all], ...Array.from({ length: number }, (_, each) => [String(each), `${each}`])];
  if (asked.kind === "translation")
    field("part", "Attention", [["cross", "translation to text"], ["encoder", "text to itself"]], part,
      value => { state.looking = {}; set("part", value); });
  field("layer", "Layer", numbered(layers, part === "cross" ? "all, their mean" : "all, as rollout"), layer,
    value => { set("layer", value); if (value === "") set("head", ""); });
  field("head", "Head", numbered(heads, "all, their mean"), head, value => set("head", value)).disabled = layer === null;
};

const FIDELITY = {
  deletion_area: ["deletion area", "Mean score while parts are removed in order of their weights: lower is better"],
  insertion_area: ["insertion area", "Mean score while parts are put back in order of their weights: higher is better"],
  completeness_gap: ["completeness gap", "Difference between the sum of the weights and the score that they explain: 0 is exact; only for shap and gradients"],
  evaluations: ["evaluations", "Number of inputs that the model computed"],
  seed: ["seed", "The same seed gives the same explanation"],
  seconds: ["time"],
};

const showFidelity = (place, fidelity) => {
  const fold = makeFold(place, "Fidelity and cost of the explanation");
  make("p", fold, "Measured on the model itself:", "muted");
  showFacts(fold, Object.entries(fidelity).map(([name, value]) => {
    const [words, hint] = FIDELITY[name] ?? [name.replaceAll("_", " ")];
    const shown = value === null ? "none promised" : name === "seconds" ? duration(value) : name === "seed" ? String(value)
      : typeof value !== "number" ? String(value) : name.endsWith("_area") || name.endsWith("_gap") ? fixed(value) : count(value);
    return [words, shown, hint];
  }));
};

const showExplanation = (place, answer, answered, how) => {
  const { asked } = answered, isTranslation = asked.kind === "translation";
  const hasScore = typeof answer.score === "number";
  make("p", place, isTranslation ? `“${answer.target}”` : `${answer.target ?? "This answer"}${hasScore ? `, ${percent(answer.score)}` : ""}`, "explained");
  make("p", place, `Explained by ${answer.method ?? "the server's method"}, for the answer of ${describe(asked, answered.version)}.`
    + (isTranslation && hasScore ? ` Log probability of the whole translation: ${fixed(answer.score)}.` : ""), "muted by");
  if (isTranslation && answer.target !== undefined && answer.target !== answered.label)
    make("p", place, `The server translated the text differently for the explanation than for the answer above (“${answered.label}”): the weights belong to the translation that is quoted here.`, "note");
  else if (how.target && how.target !== answered.label)
    make("p", place, `You chose to explain ${how.target}; the answer is ${answered.label}.`, "note");
  if (FORMS[asked.kind]?.explained) make("p", place, FORMS[asked.kind].explained, "muted");
  if (answer.attention) showLooking(place, answer.attention, asked);
  if (answer.features?.length && !answer.influence) showWords(place, FORMS[asked.kind]?.whole?.(asked) ?? asked.text, answer, answered.isCut);
  if (answer.influence?.length) showInfluence(place, asked.text, answer);
  if (answer.tokens?.length) showTokens(place, answer);
  if (asked.picture && (answer.overlay || answer.patches)) showOverlay(place, answer, asked.picture);
  if (answer.fidelity) showFidelity(place, answer.fidelity);
  showReceipt(place, answer.receipt, null);
};

const showInfluence = (place, text, answer) => {
  const characters = Array.from(text ?? "");
  const rows = answer.features?.map(feature => feature.text || characters.slice(feature.start, feature.end).join("")) ?? [];
  const columns = (answer.target_tokens ?? []).map(token => token.replaceAll("Ġ", "␣"));
  const read = reading(answer, answer.influence.flat()), aligned = Boolean(answer.attention);
  make("p", place, "Each row is a word of your text, each column a piece of the translation: how much the piece "
    + (aligned ? "attends to the word when it is decoded." : "depends on the word."), "muted");
  showHeat(place, answer.influence, aligned ? "Alignment of each piece of the translation with each word" : "Influence of each word on each piece of the translation", {
    rows, columns, read,
    tell: (row, column) => {
      const word = `“${rows[row] ?? row + 1}”`, piece = `“${columns[column] ?? column + 1}”`;
      return `${aligned ? `${piece} at ${word}` : `${word} on ${piece}`}: ${read.number(answer.influence[row][column])}`;
    },
  });
};

/** Show the model's tokens: for attention, the weights between tokens; for gradients, one row of weights. */
const showTokens = (place, answer) => {
  const names = answer.tokens.map(token => token.text.trim() || "␣"), view = answer.attention?.weights;
  if (answer.attention && answer.influence) return;  // the alignment shows it already
  if (!answer.attention) {
    const fold = makeFold(place, "The tokens' weights");
    fold.open = true;
    const weights = answer.tokens.map(token => token.weight), read = reading(answer, weights);
    showHeat(fold, [weights], "Weights of the tokens", { columns: names, read, tell: (_, column) => `“${names[column]}”: ${read.tell(weights[column])}` });
  } else if (view) {
    const fold = makeFold(place, "Attention between tokens");
    fold.open = true;
    make("p", fold, "Each row is an attending token of your text, each column an attended one. Names in brackets are special tokens.", "muted");
    const read = reading(answer, view.flat());
    showHeat(fold, view, "Attention of each token to each token", {
      rows: names, columns: names, read, tell: (row, column) => `“${names[row]}” at “${names[column]}”: ${read.number(view[row][column])}`,
    });
  }
};

const showOverlay = (place, answer, picture) => {
  const target = answer.target ?? "the answer", weights = answer.patches?.weights;
  const both = make("div", place, "", "beside");
  if (answer.overlay) {
    const side = make("figure", both), pictures = make("div", side, "", "pictures"), below = make("img", pictures);
    below.src = picture.url;
    below.alt = "Your picture";
    below.addEventListener("load", () => { pictures.style.aspectRatio = `${below.naturalWidth} / ${below.naturalHeight}`; });
    const above = make("img", pictures);
    above.src = `data:image/png;base64,${answer.overlay}`;
    above.alt = answer.attention ? "Attention of the model" : `Which parts of it speak for ${target}`;
    above.id = "overlay";
    const label = make("label", side, "How much of the explanation lies on the picture"), slider = make("input", side);
    Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.05", value: "0.8", id: "opacity" });
    label.htmlFor = "opacity";
    const shown = () => { above.style.opacity = slider.value; };
    slider.addEventListener("input", shown);
    shown();
    if (!weights?.length) return showLegend(side, reading(answer, [1]), "none");
  }
  if (!weights?.length) return;
  const side = make("figure", both);
  make("figcaption", side, "The same weights, patch by patch");
  const read = reading(answer, weights.flat());
  showHeat(side, weights, "Weights of the patches", {
    read, tell: (row, column) => `Patch in row ${row + 1}, column ${column + 1}: ${read.tell(weights[row][column])}`,
  });
};
