// Answers: asks for them, and shows them with what they cost. The answer comes first, its receipt is folded.

import { by, make, makeButton, makeFold, showFacts } from "./dom.js";
import { answerCall, bodyOf, checkInput } from "./calls.js";
import { showCode } from "./code.js";
import { FORMS, showForm } from "./forms.js";
import { ANSWER, clear, EXPLANATION, showError, work } from "./jobs.js";
import { count, counted, duration, fixed, percent } from "./numbers.js";
import { ask, eventsOf, Refused, sentence } from "./server.js";
import { draft, isCuttable, isOutdated, isSame, state } from "./state.js";

const MOST_CLASSES = 10;  // further classes are folded
const MOST_QUOTED = 200;  // characters

/** Forget what is on the screen. */
export const forget = () => {
  state.shown = state.answered = state.explained = state.pending = null;
  clear(ANSWER);
  clear(EXPLANATION);
  showWhetherOutdated();
};

/** Say whether the form has been changed since the answer on the screen was asked for. */
export const showWhetherOutdated = () => {
  const outdated = isOutdated(), notice = by("outdated"), text = state.shown?.text;
  for (const id of ["answer", "explanation"]) by(id).classList.toggle("outdated", outdated);
  notice.hidden = !outdated;
  by("explain-outdated").hidden = !outdated;
  const quoted = text?.length > MOST_QUOTED ? `${text.slice(0, MOST_QUOTED)}…` : text;
  const said = outdated ? `Out of date: you have changed the request since. Below is what came of the request to ${describe(state.shown)}${quoted ? `: “${quoted}”` : "."}` : "";
  if (by("outdated-text").textContent !== said) by("outdated-text").textContent = said;
};

/** Name a request by its model and parameters. */
export const describe = (asked, version = asked.version) => [
  `${asked.model}${version ? `, version ${version}` : ""}`,
  ...(asked.beams ? [counted(asked.beams, "beam")] : []),
  ...(asked.maxNewTokens ? [`at most ${counted(asked.maxNewTokens, "new token")}`] : []),
  ...(asked.truncate ? ["truncation allowed"] : []),
  ...(asked.picture ? [asked.picture.name] : []),
].join(", ");

/**
 * Send what the form asks, and show the answer.
 *
 * Returns the answer {asked, version, label, isCut}, or null if there is none. `isForExplanation` keeps the
 * explanation's place, because the explanation waits for this answer.
 */
export const send = (isForExplanation = false) => {
  if (!isForExplanation) clear(EXPLANATION);
  const asked = draft();
  Object.assign(state, { shown: asked, answered: null, explained: null });
  const promise = work(ANSWER, async (sheet, signal) => {
    checkInput(asked);
    const call = answerCall(asked), body = await bodyOf(call, asked.picture), started = performance.now();
    const response = await ask(call.path, { method: "POST", body, signal });
    const answered = await (call.stream ? showStream : showWhole)(sheet, response, asked, started);
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    state.answered = answered;
    return answered;
  }, (sheet, error) => {
    showError(sheet, error, sheet.querySelector(".result") !== null);
    offerTruncation(sheet, error, asked);
  }).finally(() => {
    if (state.pending?.promise === promise) state.pending = null;
    showWhetherOutdated();
    showCode();
  });
  state.pending = { asked, promise };
  showWhetherOutdated();
  return promise;
};

/** Return the answer to what the form asks: that on the screen, that on its way, or a new one. */
export const answerToForm = () => {
  if (state.answered && !isOutdated()) return Promise.resolve(state.answered);
  if (state.pending && isSame(state.pending.asked, draft())) return state.pending.promise;
  return send(true);
};

const offerTruncation = (sheet, error, asked) => {
  if (!isCuttable(asked.kind) || asked.truncate || error.status !== 400 || !/truncat/i.test(error.message)) return;
  makeButton(sheet, "Answer with the text cut to the model's limit", () => {
    by("truncate").checked = true;
    by("ask").requestSubmit();
    by("text").focus();
  }).id = "retry-truncated";
};

const outputsOf = answer => answer.outputs && Object.fromEntries(answer.outputs.map(({ name, data }) => [name, data]));

const receiptOfHeaders = headers => Object.fromEntries([...headers].filter(([name]) => name.startsWith("x-heed-"))
  .map(([name, value]) => [name.slice("x-heed-".length).replaceAll("-", "_"), value]));

const answeredWith = (asked, receipt, label) =>
  Object.freeze({ asked, version: receipt.model_version || asked.version, label, isCut: String(receipt.truncated) === "true" });

const showWhole = async (sheet, response, asked, started) => {
  const answer = await response.json(), seconds = (performance.now() - started) / 1000, outputs = outputsOf(answer);
  const receipt = answer.parameters ? { ...answer.parameters, model_version: answer.model_version } : receiptOfHeaders(response.headers);
  let label = "";
  if (asked.kind === "translation") {
    label = outputs ? outputs.translation[0] : answer[0].translation_text;
    make("p", sheet, label, "result");
    if (outputs) make("p", sheet, `Log probability for each token: ${fixed(outputs.score[0])}.`, "muted");
  } else if (FORMS[asked.kind]) {
    label = showForm(sheet, asked, answer, outputs, showScores);
  } else if (outputs && asked.kind.endsWith("-classification")) {
    label = showScores(sheet, asked.labels.map((name, number) => ({ label: name, score: outputs.probabilities[number] })));
  } else if (asked.kind.endsWith("-classification")) {
    label = showScores(sheet, Array.isArray(answer[0]) ? answer[0] : answer);
  } else {
    make("pre", sheet, JSON.stringify(answer.outputs ?? answer, null, 1)).tabIndex = 0;
  }
  const answered = answeredWith(asked, receipt, label);
  showReceipt(sheet, receipt, seconds, answered);
  return answered;
};

const showStream = async (sheet, response, asked, started) => {
  const line = make("p", sheet, "", "result");
  let firstMs = null;
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Refused(sentence(event.error));
    if (event.text !== undefined) {
      firstMs ??= performance.now() - started;
      line.append(event.text);
      continue;
    }
    line.textContent = event.translation_text;
    make("p", sheet, `Log probability for each token: ${fixed(event.score)}. ${counted(event.num_tokens, "token")}, the first`
      + ` after ${firstMs === null ? "no time" : duration(firstMs / 1000)}.`, "muted");
    const answered = answeredWith(asked, event.receipt, event.translation_text);
    showReceipt(sheet, event.receipt, (performance.now() - started) / 1000, answered);
    return answered;
  }
  throw new Refused("The answer ended before it was complete.");
};

/** Show the classes by their scores, and return the likeliest one. */
const showScores = (sheet, given) => {
  const scores = given.toSorted((a, b) => b.score - a.score);
  make("p", sheet, `${scores[0].label}, ${percent(scores[0].score)}`, "result");
  const showBars = (place, some) => {
    const list = make("ol", place, "", "bars");
    for (const { label, score } of some) {
      const row = make("li", list);
      make("span", row, label, "name");
      make("div", make("div", row, "", "track"), "", "fill").style.width = `${(100 * Math.max(0, Math.min(1, score))).toFixed(1)}%`;
      make("span", row, percent(score), "share");
    }
  };
  showBars(sheet, scores.slice(0, MOST_CLASSES));
  if (scores.length > MOST_CLASSES) showBars(makeFold(sheet, counted(scores.length - MOST_CLASSES, "further class", "further classes")), scores.slice(MOST_CLASSES));
  return scores[0].label;
};

/** Show the receipt, folded; `seconds` is the whole round trip, null where it is not measured. */
export const showReceipt = (sheet, receipt, seconds, answered = null) => {
  if (answered?.isCut) make("p", sheet, "The text was cut to the model's limit: a part of it was not read.", "note");
  if (answered) make("p", sheet, `Answered by ${describe(answered.asked, answered.version)}.`, "muted by");
  if (!receipt || receipt.compute_us === undefined) return;
  const time = name => duration(Number(receipt[name]) / 1e6);
  const facts = [
    ["version", receipt.model_version],
    ["queue wait", time("queue_us")],
    ["computed", time("compute_us")],
    ["rows in the batch", count(receipt.batch_size)],
    ["prepared", time("preprocess_us")],
    ["finished", time("postprocess_us")],
    ["tokens in the batch", `${count(receipt.batch_tokens)}, padding ${count(receipt.padded_tokens)}`],
  ];
  if (seconds !== null) facts.push(["whole round trip", duration(seconds)]);
  if (String(receipt.truncated) === "true") facts.push(["input", "was truncated to the model's limit"]);
  showFacts(makeFold(sheet, `Receipt: computed in ${time("compute_us")}${seconds === null ? "" : `, answered in ${duration(seconds)}`}`), facts);
};
