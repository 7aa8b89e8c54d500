// The calls as code: curl, Python and grpcurl.

import { by, makeButton } from "./dom.js";
import { answerCall, explainCall, IMAGE, jsonOf } from "./calls.js";
import { Refused } from "./server.js";
import { draft, draftOfExplanation, isOutdated, isSame, state, task } from "./state.js";

const shell = text => `'${text.replaceAll("'", "'\\''")}'`;

/** Write a value as a Python expression. */
const python = value => {
  if (value === IMAGE) return "image";
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${python(name)}: ${python(each)}`).join(", ")}}`;
  return JSON.stringify(value);  // a JSON string is a Python string literal, too
};

/** Write JSON with a picture as a here-document, in which the shell puts the picture's base64. */
const hereDocument = (document_, file) => {
  const mark = "\u0001";
  const text = jsonOf(document_, mark).replace(/[\\$`]/g, "\\$&");
  return `<<END\n${text.replace(/\\\\u0001/, () => `$(base64 -w0 ${shell(file)})`)}\nEND`;
};

const hasImage = document_ => jsonOf(document_, "\u0001").includes("\\u0001");

const WRITE = {
  curl: (call, file) => {
    const url = location.origin + call.path;
    if (call.file) return `curl ${url} --data-binary @${shell(file)}`;
    if (call.text !== undefined) return `curl ${url} \\\n  -d ${shell(call.text)}`;
    if (hasImage(call.document)) return `curl ${url} -d @- ${hereDocument(call.document, file)}`;
    return `curl ${call.stream ? "-N " : ""}${url} \\\n  -d ${shell(jsonOf(call.document))}`;
  },
  Python: (call, file, kind) => {
    const url = JSON.stringify(location.origin + call.path);
    const client = `from huggingface_hub import InferenceClient\n\nclient = InferenceClient(model=${url})\n`;
    if (call.file) return `${client}print(client.image_classification(${JSON.stringify(file)}))`;
    if (call.text !== undefined) return `import httpx\n\nprint(httpx.post(${url}, content=${JSON.stringify(call.text)}).json())`;
    const fields = Object.keys(call.document);
    if (kind === "text-classification" && fields.length === 1 && !call.path.startsWith("/v2/"))
      return `${client}print(client.text_classification(${JSON.stringify(call.document.inputs)}))`;
    const body = `body = ${python(call.document)}\n`;
    if (call.stream)
      return `import httpx\n\n${body}with httpx.stream("POST", ${url}, json=body) as answer:\n    for line in answer.iter_lines():\n        print(line)`;
    const read = hasImage(call.document)
      ? `import base64\n\nimport httpx\n\nwith open(${JSON.stringify(file)}, "rb") as file:\n    image = base64.b64encode(file.read()).decode()\n`
      : "import httpx\n\n";
    return `${read}${body}print(httpx.post(${url}, json=body, timeout=60).json())`;
  },
  grpcurl: (call, file) => {
    const address = `${location.hostname}:${state.grpcPort ?? "PORT"}`, message = call.grpc.message();
    const note = state.grpcPort ? "" : "# PORT: the server chose a free port and printed it\n";
    if (hasImage(message)) return `${note}grpcurl -plaintext -d @ ${address} ${call.grpc.method} ${hereDocument(message, file)}`;
    return `${note}grpcurl -plaintext -d ${shell(jsonOf(message))} \\\n  ${address} ${call.grpc.method}`;
  },
};

const written = (call, asked, ...forms) => {
  if (!forms.every(id => by(id).checkValidity())) return "# a number in the form cannot be sent";
  try {
    return WRITE[state.language](call, asked.picture?.name ?? "picture.jpg", asked.kind);
  } catch (error) {
    return `# ${error instanceof Refused ? error.message : "the request is not JSON yet"}`;
  }
};

/** Write the requests for the answer and for its explanation; the captions say whether they have been sent. */
export const showCode = () => {
  const asked = draft(), isAnswered = state.answered !== null && !isOutdated();
  by("copied").textContent = "";
  by("explain-code").hidden = !task() || asked.kind === "tensors";
  if (!task()) {
    by("snippet").textContent = "# this model is not served";
    by("snippet-about").textContent = "";
    return;
  }
  by("snippet").textContent = written(answerCall(asked), asked, "ask");
  by("snippet-about").textContent = isAnswered ? "This request got the answer on this page."
    : "This is what the form asks; it is not sent yet.";
  if (by("explain-code").hidden) return;
  const call = explainCall(asked, draftOfExplanation(), isAnswered ? state.answered : null);
  by("explain-snippet").textContent = written(call, asked, "ask", "explain");
  by("explain-snippet-about").textContent = isAnswered && state.explained && isSame(state.explained, call)
    ? "This request got the explanation on this page."
    : "This is what the form asks; it is not sent yet. It has the inputs and parameters of the request for the answer.";
};

const copy = async id => {
  try {
    await navigator.clipboard.writeText(by(id).textContent);
    by("copied").textContent = "Copied.";
  } catch {  // not allowed, or no secure context: the text is selected, so that the user can copy it
    getSelection().selectAllChildren(by(id));
    by("copied").textContent = "The browser does not allow this page to copy. The text is selected; copy it with the keyboard.";
  }
};

/** Set up the choice of the language and the buttons that copy. */
export const setUpCode = () => {
  by("copy").addEventListener("click", () => copy("snippet"));
  by("explain-copy").addEventListener("click", () => copy("explain-snippet"));
  for (const language of Object.keys(WRITE)) {
    const button = makeButton(by("languages"), language, () => {
      state.language = language;
      for (const each of by("languages").children) each.setAttribute("aria-pressed", String(each === button));
      showCode();
    });
    button.setAttribute("aria-pressed", String(language === state.language));
  }
};
