// The forms of tasks that find, rank or fill in texts: what they take beside the text, their requests, their answers.

import { make } from "./dom.js";
import { percent } from "./numbers.js";

const linesOf = text => text.split("\n").map(line => line.trim()).filter(line => line);
const labelsOf = text => text.split(",").map(label => label.trim()).filter(label => label);
const bytes = (name, text) => ({ name, shape: [1], datatype: "BYTES", data: [text] });

/**
 * By task: `first` and `second` name the fields, `send` the button. `inputs` and `parameters` are those of the task API,
 * `tensors` those of the Open Inference Protocol, for one input. `whole` is the text whose characters an explanation counts.
 */
export const FORMS = {
  "token-classification": {
    send: "Find entities",
    about: ({ labels }) => `Finds entities in a text. Labels of its tokens: ${labels.join(", ")}.`,
    examples: [["Ada Lovelace lived in London."], ["Marie Curie was born in Warsaw and worked in Paris."]],
    inputs: ({ text }) => text, tensors: ({ text }) => [bytes("text", text)],
    read: ({ entities }) => JSON.parse(entities[0]),
  },
  "text-ranking": {
    first: "Query", second: "Texts to rank, one on each line", send: "Rank",
    about: () => "Orders texts by how well they answer a query.",
    examples: [["Where is Berlin?", "A lake in the mountains.\nBerlin is the capital of Germany.\nTickets are sold at the door."]],
    inputs: ({ text, second }) => ({ query: text, texts: linesOf(second) }),
    tensors: ({ text, second }) => [bytes("text", text), bytes("text_pair", linesOf(second)[0] ?? "")],
    whole: ({ text, second }) => `${text}\n${linesOf(second)[0] ?? ""}`,
    read: ({ score }) => [{ index: 0, score: score[0] }],
    explained: "Explains the score of the first text.",
  },
  "question-answering": {
    first: "Question", second: "Context, which has the answer", send: "Answer", isNeverCut: true,
    about: () => "Finds the answer to a question in a context of any length.",
    examples: [["Who lived in London?", "Ada Lovelace lived in London. Marie Curie worked in Paris."]],
    inputs: ({ text, second }) => ({ question: text, context: second }),
    tensors: ({ text, second }) => [bytes("question", text), bytes("context", second)],
    whole: ({ text, second }) => `${text}\n${second}`,
    read: ({ answer, score, start, end }) => ({ answer: answer[0], score: score[0], start: start[0], end: end[0] }),
  },
  "zero-shot-classification": {
    second: "Labels, with commas between them", send: "Classify", explainsLabel: true,
    about: () => "Scores labels of your own for a text.",
    examples: [["My phone does not charge any more.", "repair, holiday, invoice"]],
    inputs: ({ text }) => text, parameters: ({ second }) => ({ candidate_labels: labelsOf(second) }),
    tensors: ({ text, second }) => [bytes("text", text), bytes("candidate_labels", JSON.stringify(labelsOf(second)))],
    read: ({ scores }) => JSON.parse(scores[0]),
  },
  "fill-mask": {
    send: "Fill in",
    about: () => "Says what may stand in the gap of a text. The mark of the gap is the model's own: [MASK] or <mask>.",
    examples: [["Paris is the [MASK] of France."], ["Paris is the <mask> of France."]],
    inputs: ({ text }) => text, tensors: ({ text }) => [bytes("text", text)],
    read: ({ fillings }) => JSON.parse(fillings[0]),
  },
};

/** Mark parts of a text; offsets count characters, which may be two units in JavaScript. */
const showMarked = (sheet, text, parts) => {
  const characters = Array.from(text), line = make("p", sheet, "", "result marked");
  let place = 0;
  for (const { start, end, name } of parts) {
    line.append(characters.slice(place, start).join(""));
    const mark = make("mark", line, characters.slice(start, end).join(""));
    if (name) make("small", mark, ` ${name}`);
    place = end;
  }
  line.append(characters.slice(place).join(""));
};

const SHOW = {
  "token-classification": (sheet, { text }, entities) => {
    showMarked(sheet, text, entities.map(({ start, end, entity_group, score }) => ({ start, end, name: `${entity_group} ${percent(score)}` })));
    if (!entities.length) make("p", sheet, "No entity was found.", "muted");
    return entities.map(each => `${each.word} (${each.entity_group})`).join(", ");
  },
  "text-ranking": (sheet, { second }, ranked, showScores) => {
    const lines = linesOf(second);
    return showScores(sheet, ranked.map(({ index, score }) => ({ label: lines[index], score })));
  },
  "question-answering": (sheet, { second }, answer) => {
    make("p", sheet, `${answer.answer || "No answer"}, ${percent(answer.score)}`, "result");
    showMarked(sheet, second, [answer]);
    return answer.answer;
  },
  "zero-shot-classification": (sheet, asked, scores, showScores) => showScores(sheet, scores),
  "fill-mask": (sheet, asked, fillings, showScores) => {
    const gaps = Array.isArray(fillings[0]) ? fillings : [fillings];
    return gaps.map(gap => showScores(sheet, gap.map(({ token_str, score }) => ({ label: token_str, score }))))[0];
  },
};

/** Show the answer of a task of `FORMS`, and return it in words. */
export const showForm = (sheet, asked, answer, outputs, showScores) =>
  SHOW[asked.kind](sheet, asked, outputs ? FORMS[asked.kind].read(outputs) : answer, showScores);
