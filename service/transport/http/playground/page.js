// The page at `/`: sends a request to a model of this server, and shows the answer, its cost and its explanation.
//
// All data come from the server: the models (/v2/models), the explanation methods (/v2 and /openapi.json), the charts
// (/metrics). Texts from the server and from users become text nodes, never markup.

const by = id => document.getElementById(id);
const make = (tag, parent, text = "", cls = "") => {
  const element = document.createElement(tag);
  if (text !== "") element.textContent = text;
  if (cls) element.className = cls;
  if (parent) parent.append(element);
  return element;
};

// --- the server ------------------------------------------------------------------------------------------------------

class Refused extends Error {}  // its text is a sentence for the user

const sentence = text => {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : whole + ".";
};

const REFUSALS = {
  404: "The server has no such model or path",
  413: "The request is too large",
  429: "The server is overloaded",
  501: "The server does not support this",
  503: "The model cannot answer now",
  504: "The deadline passed",
};

/** Fetch a response; throw `Refused` with the server's text if the status is an error. */
const ask = async (path, options = {}) => {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  let text = "";
  try {
    text = (await response.json()).error || "";
  } catch { /* no JSON: the status has to do */ }
  const head = REFUSALS[response.status]
    || (response.status < 500 ? "The server refuses the request" : "The server failed on this request");
  const wait = response.headers.get("retry-after");
  throw new Refused(`${head} (${response.status}). ${text ? sentence(text) : ""}`
    + (wait ? ` Try again in ${wait} s.` : ""));
};

/** Yield the documents of server-sent events (WHATWG HTML, 9.2; the server writes one `data` line per event). */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) yield JSON.parse(event.replace(/^data: /, ""));
  }
}

// --- selection -------------------------------------------------------------------------------------------------------

const EXAMPLES = {
  "text-classification": ["A wonderful film.", "The plot is thin, but the actors are a delight.", "I want my two hours back."],
  translation: ["The dog is asleep.", "A little girl is playing in the garden.", "Where can I buy a ticket?"],
};

const state = { models: [], extensions: [], api: null, grpcPort: null, picture: null, language: "curl", looking: {} };
const refusedMethods = new Map();  // by model: the methods that the server has refused for it

const model = () => state.models.find(known => known.name === by("model").value);
const task = () => model()?.task;
const modelPath = () => {
  const version = by("version").value;
  return `/v2/models/${encodeURIComponent(by("model").value)}${version ? `/versions/${version}` : ""}`;
};

const fillSelect = (select, entries, kept = select.value) => {
  select.replaceChildren();
  for (const [value, text] of entries) make("option", select, text).value = value;
  if (entries.some(([value]) => value === kept)) select.value = kept;
};

const ABOUT = {
  "text-classification": known => `Assigns a text to one of ${known.labels.length} classes: ${known.labels.join(", ")}.`,
  "image-classification": known => `Assigns a picture to one of ${known.labels.length} classes: ${known.labels.join(", ")}.`,
  translation: () => "Translates a text.",
  tensors: () => "A bare graph: takes tensors, gives tensors.",
};

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
const showMethods = () => {
  const refused = refusedMethods.get(by("model").value) ?? new Set();
  const own = model()?.explain;
  const methods = offeredMethods().filter(name => own?.includes(name) ?? true);
  fillSelect(by("method"), [["", "server's choice"],
    ...methods.map(name => [name, refused.has(name) ? `${name} (refused for this model)` : name])]);
  methodChosen();
};

const methodChosen = () => {
  const method = by("method").value;
  state.looking = {};
  by("method-about").textContent = METHODS[method] ?? "";
  by("samples-field").hidden = method === "attention";  // it takes no samples
  by("samples-label").textContent = method === "gradients" ? "Steps" : "Samples";
};

const chosen = async () => {
  const known = model();
  history.replaceState(null, "", `#${encodeURIComponent(known.name)}`);
  fillSelect(by("version"), [["", known.version ? `newest (${known.version})` : "none"],
    ...known.versions.map(version => [version, version])], "");
  by("about").className = known.ready ? "muted" : "error";
  by("about").textContent = known.ready ? ABOUT[known.task](known) : `This model is not served: ${sentence(known.reason)}`;
  const kind = known.task;
  by("text-input").hidden = !(kind === "text-classification" || kind === "translation");
  by("image-input").hidden = kind !== "image-classification";
  by("tensor-input").hidden = kind !== "tensors";
  by("beams-field").hidden = by("beams-help").hidden = kind !== "translation";
  by("send").textContent = { translation: "Translate", tensors: "Infer" }[kind] ?? "Classify";
  by("send").hidden = !kind;
  by("examples").replaceChildren();
  for (const text of EXAMPLES[kind] ?? []) {
    const button = make("button", by("examples"), text, "quiet");
    button.type = "button";
    button.addEventListener("click", () => { by("text").value = text; showSnippet(); by("text").focus(); });
  }
  if (EXAMPLES[kind] && (!by("text").value || Object.values(EXAMPLES).flat().includes(by("text").value)))
    by("text").value = EXAMPLES[kind][0];
  clear(by("answer"), by("stop"));
  clear(by("explanation"), by("explain-stop"));
  by("target-field").hidden = !known.labels.length;
  fillSelect(by("target"), [["", "the answer's"], ...known.labels.map(label => [label, label])], "");
  by("explain").hidden = !kind || kind === "tensors";
  by("explain-about").textContent = by("explain").hidden ? "Only models with a task can be explained."
    : state.extensions.some(name => name.startsWith("explain")) ? "Shows which parts of your input speak for the answer, and which against it."
    : "This server does not list explanations among its extensions; it may refuse to explain.";
  showMethods();
  restartCharts();
  showSnippet();
  await Promise.all([showCard(), kind === "tensors" ? sketchTensors() : null]);
};

const sketchTensors = async () => {
  const known = by("model").value;
  try {
    const metadata = await (await ask(modelPath())).json();
    if (by("model").value !== known) return;
    const inputs = metadata.inputs.map(({ name, datatype, shape }) => {
      const size = shape.map(side => side < 0 ? 1 : side), count = size.reduce((a, b) => a * b, 1);
      const value = datatype === "BYTES" ? "a text" : datatype === "BOOL" ? true : 1;
      return { name, datatype, shape: size, data: Array(Math.min(count, 4096)).fill(value) };
    });
    by("tensors").value = JSON.stringify({ inputs });
    showSnippet();
  } catch (error) {
    showError(by("answer"), error);
  }
};

const showCard = async () => {
  const path = modelPath();
  const card = by("card");
  try {
    const text = await (await ask(`${path}/card`)).text();
    if (path === modelPath()) renderMarkdown(card, text);
  } catch (error) {
    if (path === modelPath()) { card.replaceChildren(); make("p", card, error.message, "muted"); }
  }
};

// --- requests --------------------------------------------------------------------------------------------------------

const textTensor = text => ({ name: "text", shape: [1], datatype: "BYTES", data: [text] });

/** Build the request that the form describes: path, body, and how its answer is read. */
const request = () => {
  const kind = task(), name = encodeURIComponent(by("model").value), text = by("text").value;
  const versioned = by("version").value !== "";
  if (kind === "tensors") return { kind, path: `${modelPath()}/infer`, body: by("tensors").value };
  if (kind === "image-classification")
    return versioned ? { kind, path: `${modelPath()}/infer`, picture: "base64" } : { kind, path: `/models/${name}`, picture: "file" };
  const beams = kind === "translation" ? Number(by("beams").value) : 1;
  const parameters = beams > 1 ? { parameters: { num_beams: beams } } : {};
  if (versioned) return { kind, path: `${modelPath()}/infer`, body: JSON.stringify({ inputs: [textTensor(text)], ...parameters }) };
  const stream = kind === "translation" && beams === 1;
  return { kind, stream, path: `/models/${name}`, body: JSON.stringify({ inputs: text, ...parameters, ...(stream ? { stream } : {}) }) };
};

const base64Of = blob => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Refused("The picture's file cannot be read."));
  reader.readAsDataURL(blob);
});

const needPicture = () => {
  if (!state.picture) throw new Refused("Choose a picture first.");
  return state.picture;
};

const needText = () => {
  if (!by("text").value.trim()) throw new Refused("Write a text first.");
  return by("text").value;
};

const showError = (place, error) => {
  if (error.name === "AbortError") {
    make("p", place, "Stopped.", "muted");
    return;
  }
  const text = error instanceof Refused ? error.message : `The page failed on this answer: ${sentence(String(error.message))}`;
  make("p", place, text, "error").setAttribute("role", "alert");
};

/** Run one piece of work at a time in each place; a later one cancels the earlier one. */
const running = new Map();
const clear = (place, stop) => {
  running.get(place)?.abort();
  running.delete(place);
  place.replaceChildren();
  place.removeAttribute("aria-busy");
  stop.hidden = true;
};
const work = async (place, stop, action) => {
  clear(place, stop);
  const controller = new AbortController();
  running.set(place, controller);
  const current = () => running.get(place) === controller;
  place.setAttribute("aria-busy", "true");
  stop.hidden = false;
  try {
    await action(controller.signal);
  } catch (error) {
    if (current()) showError(place, error);
  } finally {
    if (current()) {
      running.delete(place);
      place.removeAttribute("aria-busy");
      if (document.activeElement === stop) place.parentElement.querySelector("[type=submit]").focus();
      stop.hidden = true;
    }
  }
};

const send = () => work(by("answer"), by("stop"), async signal => {
  const place = by("answer"), asked = request(), started = performance.now(), labels = model().labels;
  clear(by("explanation"), by("explain-stop"));  // it belonged to another answer
  let body = asked.body;
  if (asked.kind === "text-classification" || asked.kind === "translation") needText();
  if (asked.picture === "file") body = needPicture().blob;
  if (asked.picture === "base64") {
    const image = await base64Of(needPicture().blob);
    body = JSON.stringify({ inputs: [{ name: "image", shape: [1], datatype: "BYTES", data: [image] }] });
  }
  const response = await ask(asked.path, { method: "POST", body, signal });
  if (asked.stream) return showStream(place, response, started);
  const answer = await response.json();
  const seconds = (performance.now() - started) / 1000;
  const receipt = answer.parameters ? { ...answer.parameters, model_version: answer.model_version } : receiptOfHeaders(response.headers);
  if (asked.kind === "tensors") {
    make("pre", place, JSON.stringify(answer.outputs, null, 1));
  } else if (asked.kind === "translation") {
    const outputs = outputsOf(answer);
    make("p", place, outputs ? outputs.translation[0] : answer[0].translation_text, "result");
    if (outputs) make("p", place, `Log probability for each token: ${outputs.score[0].toFixed(3)}.`, "muted");
  } else {
    const outputs = outputsOf(answer);
    const scores = outputs ? labels.map((label, number) => ({ label, score: outputs.probabilities[number] }))
      : Array.isArray(answer[0]) ? answer[0] : answer;
    showScores(place, scores.toSorted((a, b) => b.score - a.score));
  }
  showReceipt(place, receipt, seconds);
});

const outputsOf = answer => answer.outputs && Object.fromEntries(answer.outputs.map(({ name, data }) => [name, data]));

const receiptOfHeaders = headers => Object.fromEntries([...headers].filter(([name]) => name.startsWith("x-heed-"))
  .map(([name, value]) => [name.slice("x-heed-".length).replaceAll("-", "_"), value]));

const showStream = async (place, response, started) => {
  const line = make("p", place, "", "result");
  let firstMs = null;
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Refused(sentence(event.error));
    if (event.text !== undefined) {
      firstMs ??= performance.now() - started;
      line.append(event.text);
      continue;
    }
    line.textContent = event.translation_text;
    make("p", place, `Log probability for each token: ${event.score.toFixed(3)}; ${event.num_tokens} tokens, the first`
      + ` after ${firstMs === null ? "no time" : milliseconds(firstMs / 1000)}.`, "muted");
    showReceipt(place, event.receipt, (performance.now() - started) / 1000);
    return;
  }
  throw new Refused("The answer ended before it was complete.");
};

// --- answers ---------------------------------------------------------------------------------------------------------

const percent = share => `${(100 * share).toFixed(1)} %`;
const milliseconds = seconds => `${(1000 * seconds).toPrecision(3).replace(/e\+?(\d+)/, "e$1")} ms`;
const signed = number => `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(3)}`;

const showScores = (place, scores) => {
  make("p", place, `${scores[0].label}, ${percent(scores[0].score)}`, "result");
  const list = make("ol", place, "", "bars");
  for (const { label, score } of scores) {
    const row = make("li", list);
    make("span", row, label, "name").title = label;
    make("div", make("div", row, "", "track"), "", "fill").style.width = percent(Math.max(0, Math.min(1, score))).replace(" ", "");
    make("span", row, percent(score), "share");
  }
};

const showFacts = (place, heading, facts) => {
  make("h3", place, heading);
  const list = make("dl", place, "", facts.some(([, , hint]) => hint) ? "facts hinted" : "facts");
  for (const [name, value, hint] of facts) {
    const fact = make("div", list);
    make("dt", fact, name);
    make("dd", fact, value);
    if (hint) make("dd", fact, hint, "muted");
  }
};

const showReceipt = (place, receipt, seconds) => {
  if (!receipt || receipt.compute_us === undefined) return;
  const time = name => milliseconds(Number(receipt[name]) / 1e6);
  const facts = [
    ["version", receipt.model_version],
    ["queue wait", time("queue_us")],
    ["computed", time("compute_us")],
    ["rows in the batch", receipt.batch_size],
    ["prepared", time("preprocess_us")],
    ["finished", time("postprocess_us")],
    ["tokens in the batch", `${receipt.batch_tokens}, padding ${receipt.padded_tokens}`],
  ];
  if (seconds !== null) facts.push(["whole round trip", milliseconds(seconds)]);
  if (String(receipt.truncated) === "true") facts.push(["input", "was truncated to the model's limit"]);
  showFacts(place, "Receipt", facts);
};

// --- explanations ----------------------------------------------------------------------------------------------------

/** Request an explanation; `focused` is the control in the previous explanation that the user has just changed. */
const explain = (focused = "") => {
  const method = by("method").value, name = by("model").value;
  return work(by("explanation"), by("explain-stop"), async signal => {
    const picture = task() === "image-classification" ? needPicture() : null;
    const text = picture ? null : needText();
    const input = picture ? { name: "image", shape: [1], datatype: "BYTES", data: [await base64Of(picture.blob)] } : textTensor(text);
    const parameters = {};
    if (method) parameters.method = method;
    if (by("target").value) parameters.target = by("target").value;
    if (by("samples").value && method !== "attention") parameters.n_samples = Number(by("samples").value);
    if (by("seed").value) parameters.seed = Number(by("seed").value);
    if (method === "attention") Object.assign(parameters, state.looking);
    const response = await ask(`${modelPath()}/explain`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ inputs: [input], parameters }), signal,
    }).catch(error => {
      if (method && error instanceof Refused && /\(501\)|\(400\).*\bno graph for method\b/i.test(error.message)) {
        refusedMethods.set(name, (refusedMethods.get(name) ?? new Set()).add(method));
        showMethods();
      }
      throw error;
    });
    showExplanation(by("explanation"), await response.json(), text, picture);
    if (focused) by(focused)?.focus();
  });
};

/** Show which attention is displayed, and controls to choose another; layers and heads count from 0, as in requests. */
const showLooking = (place, { part, layers, heads, layer, head }) => {
  const fields = make("div", place, "", "fields");
  const field = (id, name, entries, value, chosen) => {
    const box = make("div", fields, "", "field"), label = make("label", box, name);
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
  const numbered = (count, all) => [["", all], ...Array.from({ length: count }, (_, number) => [String(number), `${number}`])];
  if (task() === "translation")
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

const MOST_TOKENS_SHOWN = 40;  // in a heat map of tokens by tokens

const showExplanation = (place, answer, text, picture) => {
  const score = typeof answer.score === "number" ? `, score ${answer.score.toPrecision(4)}` : "";
  const looked = answer.attention ?? null;
  make("p", place, `${answer.target_tokens ? `“${answer.target}”` : answer.target ?? "This answer"}${score}, by ${answer.method ?? "the server's method"}`, "result");
  if (looked) showLooking(place, looked);
  if (answer.features?.length && !answer.influence) showWords(place, text, answer);
  if (answer.influence?.length) showInfluence(place, text, answer);
  if (answer.tokens?.length) showTokens(place, answer);
  if (picture && (answer.overlay || answer.patches)) showOverlay(place, answer, picture);
  if (answer.fidelity) {
    make("p", place, "Fidelity of the explanation, measured on the model itself:", "muted");
    showFacts(place, "Fidelity", Object.entries(answer.fidelity).map(([name, value]) => {
      const [words, hint] = FIDELITY[name] ?? [name.replaceAll("_", " ")];
      const shown = value === null ? "none promised" : name === "seconds" ? milliseconds(value)
        : typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value);
      return [words, shown, hint];
    }));
  }
  showReceipt(place, answer.receipt, null);
};

/** Map weights to colours and texts; attention is never negative, and never exactly zero. */
const reading = (answer, weights) => {
  const target = answer.target ?? "the answer";
  if (!answer.attention) {
    const most = mostOf(weights);
    return {
      share: weight => weight, most, sign: weight => Math.abs(weight) <= most / 4 ? "" : weight < 0 ? "−" : "+",
      number: signed, tell: weight => `${signed(weight)}, ${weight < 0 ? "against" : "for"} ${target}`,
    };
  }
  const least = Math.min(...weights), most = Math.max(...weights) - least;
  return {
    share: weight => weight - least, most, sign: weight => weight - least > most / 2 ? "+" : "",
    number: weight => weight.toFixed(3), tell: weight => `${weight.toFixed(3)} of the attention`,
  };
};

/** Make many elements one stop of the Tab key: arrow keys move among them, and `tell` describes an element. */
const rove = (elements, columns, tell) => {
  let at = 0;
  elements.forEach((element, number) => {
    element.tabIndex = number ? -1 : 0;
    element.addEventListener("focus", () => { elements[at].tabIndex = -1; at = number; element.tabIndex = 0; tell(number); });
    element.addEventListener("mouseenter", () => tell(number));
    element.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -number, End: elements.length - 1 - number }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      elements[number + step]?.focus();
    });
  });
};

const weigh = (element, weight, most) => {
  element.classList.add("weighed", weight < 0 ? "against" : "for");
  element.style.setProperty("--share", most > 0 ? Math.min(1, Math.abs(weight) / most).toFixed(3) : "0");
};

const mostOf = weights => Math.max(0, ...weights.map(Math.abs));

const showLegend = (place, answer) => {
  const legend = make("p", place, "", "legend words"), target = answer.target ?? "the answer";
  const entries = answer.attention ? [[1, "most attention; the part with the least has no colour"]]
    : [[1, `speaks for ${target}, solid line`], [-1, `speaks against ${target}, dashed line`]];
  for (const [weight, words] of entries) weigh(make("span", legend, words), weight, 1.6);
};

const readoutOf = place => make("p", place, "Point at a part, or reach one with Tab and the arrow keys, to read its weight.", "readout muted");

const showWords = (place, text, answer) => {
  const { features } = answer, read = reading(answer, features.map(feature => feature.weight));
  const characters = Array.from(text ?? "");  // the server counts characters, JavaScript UTF-16 code units
  const line = make("p", place, "", "words");
  line.setAttribute("role", "listbox");
  line.setAttribute("aria-orientation", "horizontal");
  line.setAttribute("aria-label", "Words and their weights");
  let at = 0;
  const words = features.map(({ text: word, start, end, weight }) => {
    const placed = Number.isInteger(start) && start >= at;
    line.append(placed ? characters.slice(at, start).join("") : " ");
    if (Number.isInteger(end)) at = Math.max(at, end);
    const element = make("span", line, word);
    element.setAttribute("role", "option");
    element.setAttribute("aria-label", `${word}: ${read.number(weight)}`);
    weigh(element, read.share(weight), read.most);
    return element;
  });
  line.append(characters.slice(at).join(""));
  const readout = readoutOf(place);
  rove(words, words.length, number => {
    const { text: word, weight } = features[number];
    readout.textContent = `“${word}”: ${read.tell(weight)}`;
    words.forEach((element, other) => element.setAttribute("aria-selected", String(other === number)));
  });
  showLegend(place, answer);
};

/** Draw a table of weights as a heat map: colour by weight, a sign for large weights, the number on focus. */
const showHeat = (place, weights, name, { rows = [], columns = [], tell, read }) => {
  const scroll = make("div", place, "", "scroll");
  const table = make("table", scroll, "", "heat");
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", name);
  if (columns.length) {
    const head = make("tr", make("thead", table));
    if (rows.length) make("td", head);
    for (const column of columns) make("th", head, column).scope = "col";
  }
  const cells = [];
  const body = make("tbody", table);
  weights.forEach((line, row) => {
    const element = make("tr", body);
    if (rows.length) make("th", element, rows[row]).scope = "row";
    line.forEach((weight, column) => {
      const cell = make("td", element);
      cell.setAttribute("aria-label", tell(row, column));
      weigh(cell, read.share(weight), read.most);
      if (read.sign(weight)) make("span", cell, read.sign(weight), "sign");
      cells.push(cell);
    });
  });
  const readout = readoutOf(place);
  const width = weights[0]?.length || 1;
  rove(cells, width, number => { readout.textContent = tell(Math.floor(number / width), number % width); });
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
    make("h3", place, "The tokens' weights");
    const weights = answer.tokens.map(token => token.weight), read = reading(answer, weights);
    showHeat(place, [weights], "Weights of the tokens", { columns: names, read, tell: (_, column) => `“${names[column]}”: ${read.tell(weights[column])}` });
  } else if (view && names.length <= MOST_TOKENS_SHOWN) {
    make("h3", place, "Attention between tokens");
    make("p", place, "Each row is an attending token of your text, each column an attended one. Names in brackets are special tokens.", "muted");
    const read = reading(answer, view.flat());
    showHeat(place, view, "Attention of each token to each token", {
      rows: names, columns: names, read, tell: (row, column) => `“${names[row]}” at “${names[column]}”: ${read.number(view[row][column])}`,
    });
  }
};

const showOverlay = (place, answer, picture) => {
  const target = answer.target ?? "the answer";
  if (answer.overlay) {
    const both = make("div", place, "", "pictures");
    const below = make("img", both);
    below.src = picture.url;
    below.alt = "Your picture";
    below.addEventListener("load", () => { both.style.aspectRatio = `${below.naturalWidth} / ${below.naturalHeight}`; });
    const above = make("img", both);
    above.src = `data:image/png;base64,${answer.overlay}`;
    above.alt = answer.attention ? "Attention of the model" : `Which parts of it speak for ${target}`;
    above.id = "overlay";
    const label = make("label", place, "How much of the explanation lies on the picture");
    const slider = make("input", place);
    Object.assign(slider, { type: "range", min: "0", max: "1", step: "0.05", value: "0.8", id: "opacity" });
    label.htmlFor = "opacity";
    const shown = () => { above.style.opacity = slider.value; };
    slider.addEventListener("input", shown);
    shown();
  }
  const weights = answer.patches?.weights;
  if (!weights?.length) return;
  make("h3", place, "The patches' weights");
  const read = reading(answer, weights.flat());
  showHeat(place, weights, "Weights of the patches", {
    read, tell: (row, column) => `Patch in row ${row + 1}, column ${column + 1}: ${read.tell(weights[row][column])}`,
  });
};

// --- charts ----------------------------------------------------------------------------------------------------------

const CHARTS = {
  throughput: { name: "Answers", show: value => `${value.toFixed(value < 10 ? 1 : 0)} /s` },
  latency: { name: "Mean time", show: value => milliseconds(value) },
  batch: { name: "Mean batch", show: value => `${value.toFixed(1)} rows` },
};
const KEPT = 60;  // samples, one per second
const points = Object.fromEntries(Object.keys(CHARTS).map(name => [name, []]));
let before = null;

const restartCharts = () => {
  before = null;
  for (const name of Object.keys(CHARTS)) points[name].length = 0;
  drawCharts();
};

const drawCharts = () => {
  for (const [name, { name: title, show }] of Object.entries(CHARTS)) {
    const values = points[name], present = values.filter(value => value !== null);
    const box = by(`chart-${name}`) ?? Object.assign(make("div", by("charts"), "", "chart"), { id: `chart-${name}` });
    if (!box.firstChild) {
      make("span", box, title, "muted");
      make("span", box, "", "value");
      const svg = box.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
      svg.setAttribute("viewBox", `0 0 ${KEPT} 40`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("role", "img");
      svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
      make("span", box, "", "most muted");
    }
    const most = Math.max(0, ...present), last = present.at(-1);
    const text = last === undefined ? "none yet" : show(last);
    box.querySelector(".value").textContent = text;
    box.querySelector(".most").textContent = last === undefined ? "" : `most: ${show(most)}`;
    box.querySelector("svg").setAttribute("aria-label", `${title}: last ${text}${last === undefined ? "" : `, most ${show(most)}`}`);
    let line = "", open = false;
    values.forEach((value, number) => {
      if (value === null) { open = false; return; }
      const x = KEPT - values.length + number + .5, y = most ? 37 - 33 * value / most : 37;
      line += `${open ? "L" : "M"}${x} ${y.toFixed(2)}${open ? "" : "h.01"}`;
      open = true;
    });
    box.querySelector("path").setAttribute("d", line);
  }
};

/** Sum all series of the selected model, from Prometheus' text format. */
const readMetrics = (text, name) => {
  const sums = { answers: 0, seconds: 0, requests: 0, rows: 0, calls: 0 };
  const wanted = {
    heed_requests_total: "answers", heed_request_seconds_sum: "seconds", heed_request_seconds_count: "requests",
    heed_batch_rows_sum: "rows", heed_batch_rows_count: "calls",
  };
  for (const line of text.split("\n")) {
    const match = /^(\w+)\{(.*)\} (\S+)$/.exec(line);
    if (!match || !(match[1] in wanted) || !match[2].includes(`model="${name}"`)) continue;
    if (match[1] === "heed_requests_total" && !match[2].includes('outcome="ok"')) continue;
    sums[wanted[match[1]]] += Number(match[3]);
  }
  return sums;
};

const sample = async () => {
  const name = by("model").value;
  if (!name) return;
  const now = { at: performance.now(), name, ...readMetrics(await (await ask("/metrics")).text(), name) };
  if (before?.name === name) {
    const answers = now.answers - before.answers, requests = now.requests - before.requests, calls = now.calls - before.calls;
    points.throughput.push(Math.max(0, answers) / ((now.at - before.at) / 1000));
    points.latency.push(requests > 0 ? (now.seconds - before.seconds) / requests : null);
    points.batch.push(calls > 0 ? (now.rows - before.rows) / calls : null);
    for (const values of Object.values(points)) if (values.length > KEPT) values.shift();
    drawCharts();
  }
  before = now;
};

/** Update the charts once a second while the page is visible. */
let timer = null;
const tick = async () => {
  timer = null;
  if (document.visibilityState !== "visible") return;
  try {
    await sample();
    by("live-about").textContent = "All requests to it in the last minute, from the server's own metrics.";
    if (state.models.some(known => known.reason === "loading")) await loadModels();
  } catch (error) {
    before = null;
    by("live-about").textContent = error.message;
  }
  timer ??= setTimeout(tick, 1000);
};
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  before = null;  // requests in the pause would be counted in one second
  tick();
});

// --- the request as code ---------------------------------------------------------------------------------------------

const shell = text => `'${text.replaceAll("'", "'\\''")}'`;
const literal = text => JSON.stringify(text);  // a JSON string is a Python string literal, too

const WRITE = {
  curl: asked => {
    const url = location.origin + asked.path;
    if (asked.picture === "file") return `curl ${url} --data-binary @${shell(pictureName())}`;
    if (asked.picture) return `curl ${url} -d @- <<END\n${imageJson(`$(base64 -w0 ${shell(pictureName())})`)}\nEND`;
    return `curl ${asked.stream ? "-N " : ""}${url} -d ${shell(asked.body)}`;
  },
  Python: asked => {
    const url = literal(location.origin + asked.path);
    const client = `from huggingface_hub import InferenceClient\n\nclient = InferenceClient(model=${url})\n`;
    if (asked.picture === "file") return `${client}print(client.image_classification(${literal(pictureName())}))`;
    if (asked.picture)
      return `import base64\n\nimport httpx\n\nwith open(${literal(pictureName())}, "rb") as file:\n    image = base64.b64encode(file.read()).decode()\n`
        + `tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}\n`
        + `print(httpx.post(${url}, json={"inputs": [tensor]}).json())`;
    if (asked.stream)
      return `import httpx\n\nbody = {"inputs": ${literal(by("text").value)}, "stream": True}\n`
        + `with httpx.stream("POST", ${url}, json=body) as answer:\n    for line in answer.iter_lines():\n        print(line)`;
    if (asked.path.startsWith("/v2/")) return `import httpx\n\nprint(httpx.post(${url}, content=${literal(asked.body)}).json())`;
    if (asked.kind === "translation")
      return `${client}print(client.translation(${literal(by("text").value)}, generate_parameters={"num_beams": ${by("beams").value}}))`;
    return `${client}print(client.text_classification(${literal(by("text").value)}))`;
  },
  grpcurl: asked => {
    const address = `${location.hostname}:${state.grpcPort ?? "PORT"}`;
    const note = state.grpcPort ? "" : "# PORT: the server chose a free port and printed it\n";
    const version = by("version").value ? { version: by("version").value } : {};
    const base = { model: by("model").value, ...version };
    const call = (method, document_) => `${note}grpcurl -plaintext -d ${shell(JSON.stringify(document_))} \\\n  ${address} ${method}`;
    if (asked.picture) {
      const body = JSON.stringify({ ...base, image: "FILE" }).replace("FILE", `$(base64 -w0 ${shell(pictureName())})`);
      return `${note}grpcurl -plaintext -d @ ${address} heed.v1.Heed/ClassifyImage <<END\n${body}\nEND`;
    }
    if (asked.kind === "tensors") return call("inference.GRPCInferenceService/ModelInfer", typedTensors(base, asked.body));
    const text = { ...base, text: by("text").value };
    if (asked.kind === "translation")
      return asked.stream ? call("heed.v1.Heed/TranslateStream", text)
        : call("heed.v1.Heed/Translate", { ...text, ...(Number(by("beams").value) > 1 ? { num_beams: Number(by("beams").value) } : {}) });
    return call("heed.v1.Heed/ClassifyText", text);
  },
};

const pictureName = () => state.picture?.name ?? "picture.jpg";
const imageJson = data => `{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["${data}"]}]}`;

/** Convert JSON tensors to the protocol's gRPC messages. */
const CONTENTS = {
  BOOL: "bool_contents", INT8: "int_contents", INT16: "int_contents", INT32: "int_contents", INT64: "int64_contents",
  UINT8: "uint_contents", UINT16: "uint_contents", UINT32: "uint_contents", UINT64: "uint64_contents",
  FP32: "fp32_contents", FP64: "fp64_contents", BYTES: "bytes_contents",
};
const bytesBase64 = text => btoa(String.fromCodePoint(...new TextEncoder().encode(text)));
const typedTensors = ({ model: name, version }, body) => {
  const inputs = JSON.parse(body).inputs.map(({ data, ...frame }) => {
    if (!CONTENTS[frame.datatype]) throw new Refused(`${frame.datatype} can be sent over gRPC in raw form only.`);
    const flat = [data].flat(Infinity);
    return { ...frame, contents: { [CONTENTS[frame.datatype]]: frame.datatype === "BYTES" ? flat.map(bytesBase64) : flat } };
  });
  return { model_name: name, ...(version ? { model_version: version } : {}), inputs };
};

const showSnippet = () => {
  let text;
  if (!task()) {
    text = "# this model is not served";
  } else {
    try {
      text = WRITE[state.language](request());
    } catch (error) {
      text = `# ${error instanceof Refused ? error.message : "the request is not JSON yet"}`;
    }
  }
  by("snippet").textContent = text;
  by("copied").textContent = "";
};

const copySnippet = async () => {
  try {
    await navigator.clipboard.writeText(by("snippet").textContent);
    by("copied").textContent = "Copied.";
  } catch {  // not allowed, or no secure context: the text is selected, so that the user can copy it
    getSelection().selectAllChildren(by("snippet"));
    by("copied").textContent = "The browser does not allow this page to copy. The text is selected; copy it with the keyboard.";
  }
};

// --- the model card: the subset of Markdown that cards use -----------------------------------------------------------

const renderInline = (parent, text) => {
  for (const part of text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\(https?:[^)\s]+\))/)) {
    const link = /^\[([^\]]+)\]\((.*)\)$/.exec(part);
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) make("code", parent, part.slice(1, -1));
    else if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) make("strong", parent, part.slice(2, -2));
    else if (link) Object.assign(make("a", parent, link[1]), { href: link[2], rel: "noreferrer" });
    else parent.append(part);
  }
};

const renderMarkdown = (place, text) => {
  place.replaceChildren();
  const cells = line => line.replace(/^\||\|\s*$/g, "").split("|").map(cell => cell.trim());
  const lines = text.split(/\r?\n/);
  for (let at = 0; at < lines.length;) {
    const line = lines[at], heading = /^(#{1,6})\s+(.*)$/.exec(line);
    const take = matches => { const taken = []; while (at < lines.length && matches(lines[at])) taken.push(lines[at++]); return taken; };
    if (line.startsWith("```")) {
      at += 1;
      make("pre", place, take(next => !next.startsWith("```")).join("\n"));
      at += 1;
    } else if (heading) {
      renderInline(make(`h${Math.min(6, heading[1].length + 2)}`, place), heading[2]);
      at += 1;
    } else if (line.startsWith("|")) {
      const [head, , ...rows] = take(next => next.startsWith("|"));
      const scroll = make("div", place, "", "scroll"), table = make("table", scroll), top = make("tr", make("thead", table));
      for (const cell of cells(head)) renderInline(make("th", top), cell);
      const body = make("tbody", table);
      for (const row of rows) { const element = make("tr", body); for (const cell of cells(row)) renderInline(make("td", element), cell); }
    } else if (/^[-*] /.test(line)) {
      const list = make("ul", place);
      for (const item of take(next => /^[-*] /.test(next))) renderInline(make("li", list), item.slice(2));
    } else if (line.trim()) {
      renderInline(make("p", place), take(next => next.trim() && !/^(#|\||```|[-*] )/.test(next)).join(" "));
    } else at += 1;
  }
};

// --- pictures --------------------------------------------------------------------------------------------------------

const takePicture = (blob, name) => {
  if (!blob) return;
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = { blob, name, url: URL.createObjectURL(blob) };
  by("preview").src = state.picture.url;
  by("preview").alt = `Your picture, ${name}`;
  by("preview").hidden = false;
  showSnippet();
  send();
};

/** Draw a ship on the sea as a sample picture. */
const drawShip = () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 256 }), pen = canvas.getContext("2d");
  const fill = (colour, ...corners) => {
    pen.fillStyle = colour;
    pen.beginPath();
    for (const [x, y] of corners) pen.lineTo(x, y);
    pen.fill();
  };
  const box = (colour, x, y, width, height) => fill(colour, [x, y], [x + width, y], [x + width, y + height], [x, y + height]);
  const sky = pen.createLinearGradient(0, 0, 0, 150), sea = pen.createLinearGradient(0, 150, 0, 256);
  sky.addColorStop(0, "#9cc3e6"); sky.addColorStop(1, "#dfeaf2");
  sea.addColorStop(0, "#41698c"); sea.addColorStop(1, "#1f3f5c");
  box(sky, 0, 0, 256, 150);
  box(sea, 0, 150, 256, 106);
  fill("#3a2a2a", [22, 140], [236, 132], [212, 182], [44, 182]);
  fill("#8e2f2a", [36, 168], [218, 166], [212, 182], [44, 182]);
  box("#f2f0ea", 62, 108, 112, 32);
  box("#e4e1d8", 78, 86, 66, 22);
  box("#b9402f", 98, 56, 20, 30);
  box("#2b2b2b", 98, 56, 20, 8);
  for (let x = 70; x < 168; x += 16) box("#37536b", x, 116, 8, 8);
  box("#4c4c4c", 188, 84, 3, 52);
  canvas.toBlob(blob => takePicture(blob, "ship.png"), "image/png");
};

// --- event handlers --------------------------------------------------------------------------------------------------

const loadModels = async () => {
  const [index, metadata, api] = await Promise.all(["/v2/models", "/v2", "/openapi.json"].map(async path => (await ask(path)).json()));
  const shown = model();
  state.models = index.models;
  state.grpcPort = index.grpc_port;
  state.extensions = metadata.extensions;
  state.api = api;
  const first = index.models.find(known => known.task === "text-classification") ?? index.models.find(known => known.ready) ?? index.models[0];
  const wanted = by("model").value || decodeURIComponent(location.hash.slice(1));
  fillSelect(by("model"), index.models.map(known => [known.name, known.ready ? known.name : `${known.name} (not served)`]),
    index.models.some(known => known.name === wanted) ? wanted : first?.name);
  if (!index.models.length) {
    by("about").textContent = "The store of this server has no models.";
    by("send").hidden = true;
  } else if (!shown || shown.ready !== model().ready || shown.reason !== model().reason) await chosen();
};

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

by("ask").addEventListener("submit", event => { event.preventDefault(); send(); });
by("explain").addEventListener("submit", event => { event.preventDefault(); explain(); });
by("stop").addEventListener("click", () => running.get(by("answer"))?.abort());
by("explain-stop").addEventListener("click", () => running.get(by("explanation"))?.abort());
by("model").addEventListener("change", chosen);
by("method").addEventListener("change", methodChosen);
by("version").addEventListener("change", () => { showSnippet(); showCard(); });
for (const id of ["text", "tensors", "beams"]) by(id).addEventListener("input", showSnippet);
for (const id of ["text", "tensors"])
  by(id).addEventListener("keydown", event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); } });
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
by("copy").addEventListener("click", copySnippet);
for (const language of Object.keys(WRITE)) {
  const button = make("button", by("languages"), language, "quiet");
  button.type = "button";
  button.addEventListener("click", () => {
    state.language = language;
    for (const each of by("languages").children) each.setAttribute("aria-pressed", String(each === button));
    showSnippet();
  });
  button.setAttribute("aria-pressed", String(language === state.language));
}
drawCharts();
try {
  await loadModels();
} catch (error) {
  showError(by("answer"), error);
}
tick();
