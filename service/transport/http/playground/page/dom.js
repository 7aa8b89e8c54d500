// Elements of the page: found, made, filled and moved among by keyboard. Texts become text nodes, never markup.

export const by = id => document.getElementById(id);

export const make = (tag, parent, text = "", cls = "") => {
  const element = document.createElement(tag);
  if (text !== "") element.textContent = text;
  if (cls) element.className = cls;
  if (parent) parent.append(element);
  return element;
};

/** Make a button that submits nothing. */
export const makeButton = (parent, text, press, cls = "quiet") => {
  const button = make("button", parent, text, cls);
  button.type = "button";
  button.addEventListener("click", press);
  return button;
};

/** Make folded details with a summary. */
export const makeFold = (parent, summary) => {
  const fold = make("details", parent, "", "fold");
  make("summary", fold, summary);
  return fold;
};

export const fillSelect = (select, entries, kept = select.value) => {
  select.replaceChildren();
  for (const [value, text] of entries) make("option", select, text).value = value;
  if (entries.some(([value]) => value === kept)) select.value = kept;
};

/** Show names and values; an entry is [name, value] or [name, value, hint]. */
export const showFacts = (place, facts) => {
  const list = make("dl", place, "", facts.some(([, , hint]) => hint) ? "facts hinted" : "facts");
  for (const [name, value, hint] of facts) {
    const fact = make("div", list);
    make("dt", fact, name);
    make("dd", fact, value);
    if (hint) make("dd", fact, hint, "muted");
  }
};

/** Make many elements one stop of the Tab key: arrow keys move among them, and `tell` describes an element. */
export const rove = (elements, columns, tell) => {
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
