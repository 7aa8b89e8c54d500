// What the page knows: the models of the server, what the form asks, and what is on the screen.

import { by } from "./dom.js";
import { FORMS } from "./forms.js";

/**
 * `shown` is the request whose outcome is on the screen, `answered` its answer if there is a whole one, `explained` the
 * call whose explanation is on the screen. `pending` is the request that is being answered.
 */
export const state = {
  models: [], extensions: [], api: null, grpcPort: null, picture: null, language: "curl", looking: {},
  pending: null, shown: null, answered: null, explained: null,
};

export const model = () => state.models.find(known => known.name === by("model").value);

/** Return how the chosen model is asked: by a form of its task, else as tensors. */
export const task = () => {
  const name = model()?.task;
  return !name || isText(name) || name === "image-classification" ? name : "tensors";
};
export const modelPath = (name = by("model").value, version = by("version").value) =>
  `/v2/models/${encodeURIComponent(name)}${version ? `/versions/${encodeURIComponent(version)}` : ""}`;

export const isText = kind => kind === "text-classification" || kind === "translation" || Object.hasOwn(FORMS, kind);

/** Whether the form offers to cut a text that is too long. */
export const isCuttable = kind => isText(kind) && !FORMS[kind]?.isNeverCut;

/** Copy what the form asks for: inputs and parameters. What is edited later does not change the copy. */
export const draft = () => {
  const kind = task(), asked = { kind, model: by("model").value, version: by("version").value, labels: model()?.labels ?? [] };
  if (kind === "tensors") asked.tensors = by("tensors").value;
  if (kind === "image-classification") asked.picture = state.picture;
  if (isText(kind)) Object.assign(asked, { text: by("text").value, truncate: isCuttable(kind) && by("truncate").checked });
  if (FORMS[kind]?.second) asked.second = by("second").value;
  if (kind === "translation") {
    asked.beams = Number(by("beams").value);
    asked.maxNewTokens = by("max-new-tokens").value === "" ? null : Number(by("max-new-tokens").value);
  }
  return Object.freeze(asked);
};

/** Copy how the form asks for an explanation. */
export const draftOfExplanation = () => {
  const method = by("method").value, whole = id => by(id).value === "" ? null : Number(by(id).value);
  return Object.freeze({
    method, target: by("target").value, samples: method === "attention" ? null : whole("samples"), seed: whole("seed"),
    looking: method === "attention" ? { ...state.looking } : {},
  });
};

/** Whether two requests ask the same. */
export const isSame = (one, other) => keyOf(one) === keyOf(other);
const keyOf = asked => JSON.stringify(asked, (name, value) => name === "picture" ? value?.id : name === "labels" ? undefined : value);

/** Whether the form asks for something else than what is on the screen. */
export const isOutdated = () => state.shown !== null && !isSame(state.shown, draft());
