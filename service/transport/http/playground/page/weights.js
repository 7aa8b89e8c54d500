// The colour code of weights, the same in every view: red for, blue against, no colour for none.
//
// Red and blue of this kind can be told apart by colour-blind readers. The code also has a solid and a dashed line in
// texts, and + and − in tables. The overlay that the server draws on pictures has the same two colours.

import { make, rove } from "./dom.js";
import { counted, decimalsFor, fixed, signed } from "./numbers.js";

const MOST_CELLS = 10_000;  // of a table; more make the browser slow
const MARKED = { signed: 1 / 4, attention: 1 / 2 };  // shares of the largest weight above which a cell has a sign

const mostOf = weights => weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0);

/** Return what the weights of an explanation measure. */
const unitOf = answer => {
  if (answer.attention) return "share of the attention";
  if (answer.method === "gradients") return answer.target_tokens ? "log probability of the translation" : `logit of ${answer.target}`;
  return answer.target_tokens || answer.influence ? "log probability of the translation" : `probability of ${answer.target ?? "the answer"}`;
};

/**
 * Map weights to colours and texts. Attention is never negative, and never exactly zero: the least weight has no colour.
 *
 * `share` is the part of `most` that is coloured, `number` writes a weight, `tell` a weight with its meaning.
 */
export const reading = (answer, weights) => {
  const target = answer.target_tokens ? "the translation" : answer.target ?? "the answer", unit = unitOf(answer);
  if (!answer.attention) {
    const most = mostOf(weights), decimals = decimalsFor(most), number = weight => signed(weight, decimals);
    const is = weight => weight < 0 ? `against ${target}` : weight > 0 ? `for ${target}` : "neither for nor against";
    return {
      share: weight => weight, most, number, unit, target, tell: weight => `${number(weight)}, ${is(weight)}`,
      sign: weight => Math.abs(weight) <= most * MARKED.signed ? "" : weight < 0 ? "−" : "+",
    };
  }
  const least = weights.reduce((lower, weight) => Math.min(lower, weight), Infinity), largest = mostOf(weights);
  const number = weight => fixed(weight, decimalsFor(largest));
  return {
    share: weight => weight - least, most: largest - least, number, unit, least, largest,
    tell: weight => `${number(weight)} of the attention`,
    sign: weight => weight - least > (largest - least) * MARKED.attention ? "+" : "",
  };
};

/** Colour an element by a weight: how much of the colour, and of the line below it. */
const weigh = (element, weight, most) => {
  element.classList.add("weighed", weight < 0 ? "against" : "for");
  element.style.setProperty("--share", most > 0 ? Math.min(1, Math.abs(weight) / most).toFixed(3) : "0");
};

/** Explain the colours of one view, with the scale of its weights. `marks` says what else than colour has the sign. */
export const showLegend = (place, read, marks) => {
  const legend = make("div", place, "", "legend"), isAttention = read.least !== undefined;
  legend.setAttribute("role", "group");
  legend.setAttribute("aria-label", "Legend of the colours");
  make("div", legend, "", isAttention ? "scale one-sided" : "scale").setAttribute("aria-hidden", "true");
  const ends = make("div", legend, "", "scale-ends");
  const numbers = isAttention ? [read.number(read.least), read.number(read.largest)]
    : [read.number(-read.most), "0", read.number(read.most)];
  for (const text of numbers) make("span", ends, text);
  const signs = {
    line: ["solid line", "dashed line"], sign: ["+ above a quarter of the largest weight", "− above a quarter"], none: ["", ""],
  }[marks];
  const aside = text => text ? ` (${text})` : "";
  const words = isAttention ? ["Red: much attention; the part with the least has no colour."]
    : [`Red${aside(signs[0])}: speaks for ${read.target}.`, `Blue${aside(signs[1])}: speaks against it.`];
  if (isAttention && marks === "sign") words.push("+ marks more than half of the scale.");
  make("p", legend, `${words.join(" ")} A weight is a ${isAttention ? read.unit : `change of the ${read.unit}`}.`);
};

const readoutOf = place => make("p", place, "Point at a part, or reach one with Tab and the arrow keys, to read its weight.", "readout muted");

/** Show a text with its words coloured; what the model did not read, because the text was cut, is grey. */
export const showWords = (place, text, answer, isCut) => {
  const { features } = answer, read = reading(answer, features.map(feature => feature.weight));
  const characters = Array.from(text ?? "");  // the server counts characters, JavaScript UTF-16 code units
  const line = make("p", place, "", "words");
  line.setAttribute("role", "listbox");
  line.setAttribute("aria-orientation", "horizontal");
  line.setAttribute("aria-label", "Words and their weights");
  const addRest = part => isCut && part.trim() ? make("span", line, part, "unread") : line.append(part);
  let at = 0;
  const words = features.map(({ text: word, start, end, weight }, number) => {
    const placed = Number.isInteger(start) && start >= at, between = placed ? characters.slice(at, start).join("") : " ";
    if (number) line.append(between);
    else addRest(between);
    if (Number.isInteger(end)) at = Math.max(at, end);
    const element = make("span", line, word);
    element.setAttribute("role", "option");
    element.setAttribute("aria-label", `${word}: ${read.number(weight)}`);
    weigh(element, read.share(weight), read.most);
    return element;
  });
  addRest(characters.slice(at).join(""));
  if (isCut) make("p", place, "The text was cut to the model's limit: grey parts were not read, and have no weight.", "muted");
  const readout = readoutOf(place);
  rove(words, words.length, number => {
    const { text: word, weight } = features[number];
    readout.textContent = `“${word}”: ${read.tell(weight)}`;
    words.forEach((element, other) => element.setAttribute("aria-selected", String(other === number)));
  });
  showLegend(place, read, "line");
};

/** Draw a table of weights as a heat map: colour by weight, a sign for large weights, the number on focus. */
export const showHeat = (place, weights, name, { rows = [], columns = [], tell, read }) => {
  const width = weights[0]?.length || 1;
  if (weights.length * width > MOST_CELLS) {
    make("p", place, `${name}: ${weights.length} × ${width} weights. This page draws at most ${counted(MOST_CELLS, "weight")}; the response has them all.`, "muted");
    return;
  }
  const scroll = make("div", place, "", "scroll"), table = make("table", scroll, "", "heat");
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", name);
  if (columns.length) {
    const head = make("tr", make("thead", table));
    if (rows.length) make("td", head);
    for (const column of columns) {
      const cell = make("th", head);
      cell.scope = "col";
      make("span", cell, column);
    }
  }
  const cells = [], body = make("tbody", table);
  weights.forEach((line, row) => {
    const element = make("tr", body);
    if (rows.length) {
      const head = make("th", element);
      head.scope = "row";
      make("span", head, rows[row]);
    }
    line.forEach((weight, column) => {
      const cell = make("td", element);
      cell.setAttribute("aria-label", tell(row, column));
      weigh(cell, read.share(weight), read.most);
      if (read.sign(weight)) make("span", cell, read.sign(weight), "sign");
      cells.push(cell);
    });
  });
  const readout = readoutOf(place);
  rove(cells, width, number => { readout.textContent = tell(Math.floor(number / width), number % width); });
  showLegend(place, read, "sign");
};
