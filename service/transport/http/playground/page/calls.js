// The calls of the server's interfaces that ask for an answer, and for its explanation.
//
// The page sends these calls, and writes the same objects as code: {path, document, grpc} and, where they apply,
// `stream`, `file` (the body is the picture's file) and `text` (the body as the user wrote it). IMAGE stands for the
// picture's base64.

import { FORMS } from "./forms.js";
import { Refused } from "./server.js";
import { isText, modelPath } from "./state.js";

export const IMAGE = Symbol("image");
const TYPED = { "text-classification": "ClassifyText", "image-classification": "ClassifyImage", translation: "Translate" };

const tensorsOf = asked => FORMS[asked.kind]?.tensors(asked) ?? [inputOf(asked)];
const inputOf = asked => isText(asked.kind) ? { name: "text", shape: [1], datatype: "BYTES", data: [asked.text] }
  : { name: "image", shape: [1], datatype: "BYTES", data: [IMAGE] };

/** Return the parameters that were given, by the names of the Open Inference Protocol and of the typed calls. */
const parametersOf = asked => ({
  ...(asked.beams ? { num_beams: asked.beams } : {}),
  ...(asked.maxNewTokens ? { max_new_tokens: asked.maxNewTokens } : {}),
  ...(asked.truncate ? { truncate: true } : {}),
});

const withParameters = (document_, parameters) => Object.keys(parameters).length ? { ...document_, parameters } : document_;

const messageOf = (asked, version = asked.version) => ({
  model: asked.model,
  ...(version ? { version } : {}),
  ...(isText(asked.kind) ? { text: asked.text } : { image: IMAGE }),
  ...parametersOf(asked),
});

/** Return the call that asks for an answer. */
export const answerCall = asked => {
  const path = `/models/${encodeURIComponent(asked.model)}`, infer = `${modelPath(asked.model, asked.version)}/infer`;
  if (asked.kind === "tensors")
    return { path: infer, text: asked.tensors, grpc: { method: "inference.GRPCInferenceService/ModelInfer", message: () => typedTensors(asked) } };
  if (FORMS[asked.kind]) return formCall(asked, path, infer);
  // Only the newest version streams and takes files; the task API's path names no version.
  const stream = asked.kind === "translation" && asked.beams === 1 && !asked.version;
  const grpc = { method: `heed.v1.Heed/${TYPED[asked.kind]}${stream ? "Stream" : ""}`, message: () => messageOf(asked) };
  if (asked.version) return { path: infer, document: withParameters({ inputs: [inputOf(asked)] }, parametersOf(asked)), grpc };
  if (asked.kind === "image-classification") return { path, file: true, grpc };
  const { truncate, ...parameters } = parametersOf(asked);
  const document_ = withParameters({ inputs: asked.text }, { ...parameters, ...(truncate ? { truncation: true } : {}) });
  return { path, document: stream ? { ...document_, stream } : document_, stream, grpc };
};

/** Return the call of a task without a typed call: the task API, or tensors where a version is chosen. */
const formCall = (asked, path, infer) => {
  const form = FORMS[asked.kind], document_ = withParameters({ inputs: tensorsOf(asked) }, parametersOf(asked));
  const grpc = { method: "inference.GRPCInferenceService/ModelInfer", message: () => typedTensors({ ...asked, tensors: jsonOf(document_) }) };
  if (asked.version) return { path: infer, document: document_, grpc };
  const parameters = { ...(form.parameters?.(asked) ?? {}), ...(asked.truncate ? { truncation: true } : {}) };
  return { path, document: withParameters({ inputs: form.inputs(asked) }, parameters), grpc };
};

const onlyHttp = () => { throw new Refused("explanations of this task are offered over HTTP"); };

/**
 * Return the call that explains an answer: the same inputs and parameters, and the version that answered.
 *
 * `answered` has the version and the label; without it the call explains whatever the answer to `asked` will be.
 */
export const explainCall = (asked, how, answered = null) => {
  const version = answered?.version ?? asked.version;
  const target = how.target || (asked.kind === "translation" || (FORMS[asked.kind] && !FORMS[asked.kind].explainsLabel) ? "" : answered?.label);
  const explaining = {
    ...(how.method ? { method: how.method } : {}),
    ...(target ? { target } : {}),
    ...(how.samples === null ? {} : { n_samples: how.samples }),
    ...(how.seed === null ? {} : { seed: how.seed }),
    ...how.looking,
  };
  return {
    path: `${modelPath(asked.model, version)}/explain`,
    document: withParameters({ inputs: tensorsOf(asked) }, { ...parametersOf(asked), ...explaining }),
    grpc: { method: "heed.v1.Heed/Explain", message: FORMS[asked.kind] ? onlyHttp : () => ({ ...messageOf(asked, version), ...explaining }) },
  };
};

const base64Of = blob => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Refused("The picture's file cannot be read."));
  reader.readAsDataURL(blob);
});

/** Write a document or message as JSON with spaces, so that long lines can be wrapped; `image` is the picture's base64. */
export const jsonOf = (value, image = "") => {
  if (value === IMAGE) return JSON.stringify(image);
  if (Array.isArray(value)) return `[${value.map(each => jsonOf(each, image)).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${jsonOf(each, image)}`).join(", ")}}`;
};

/** Check that a request has its input. */
export const checkInput = asked => {
  if (isText(asked.kind) && !asked.text.trim()) throw new Refused("Write a text first.");
  if (asked.second !== undefined && !asked.second.trim()) throw new Refused(`This is empty: ${FORMS[asked.kind].second}.`);
  if (asked.kind === "image-classification" && !asked.picture) throw new Refused("Choose a picture first.");
};

/** Return the body of a call. */
export const bodyOf = async (call, picture) => {
  if (call.file) return picture.blob;
  return call.text ?? jsonOf(call.document, picture ? await base64Of(picture.blob) : "");
};

// Names of the fields of gRPC's typed contents.
const CONTENTS = {
  BOOL: "bool_contents", INT8: "int_contents", INT16: "int_contents", INT32: "int_contents", INT64: "int64_contents",
  UINT8: "uint_contents", UINT16: "uint_contents", UINT32: "uint_contents", UINT64: "uint64_contents",
  FP32: "fp32_contents", FP64: "fp64_contents", BYTES: "bytes_contents",
};
const bytesBase64 = text => btoa(String.fromCodePoint(...new TextEncoder().encode(text)));

/** Convert a JSON request to the protocol's gRPC message. */
const typedTensors = ({ model: name, version, tensors }) => {
  const inputs = JSON.parse(tensors).inputs.map(({ data, ...frame }) => {
    if (!CONTENTS[frame.datatype]) throw new Refused(`${frame.datatype} can be sent over gRPC in raw form only.`);
    const flat = [data].flat(Infinity);
    return { ...frame, contents: { [CONTENTS[frame.datatype]]: frame.datatype === "BYTES" ? flat.map(bytesBase64) : flat } };
  });
  return { model_name: name, ...(version ? { model_version: version } : {}), inputs };
};
