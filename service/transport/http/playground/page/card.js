// The model card: the subset of Markdown that cards use. HTML in a card stays text.

import { make } from "./dom.js";

const renderInline = (parent, text) => {
  for (const part of text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\(https?:[^)\s]+\))/)) {
    const link = /^\[([^\]]+)\]\((.*)\)$/.exec(part);
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) make("code", parent, part.slice(1, -1));
    else if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) make("strong", parent, part.slice(2, -2));
    else if (link) Object.assign(make("a", parent, link[1]), { href: link[2], rel: "noreferrer" });
    else parent.append(part);
  }
};

export const renderMarkdown = (place, text) => {
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
