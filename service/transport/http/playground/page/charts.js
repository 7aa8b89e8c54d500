// Charts of the selected model, from the server's metrics; read once a second while they are seen.

import { by, make } from "./dom.js";
import { duration, rate } from "./numbers.js";
import { ask } from "./server.js";

const CHARTS = {
  throughput: { name: "Answers", show: rate },
  latency: { name: "Mean time", show: duration },
  batch: { name: "Mean batch", show: value => `${value.toFixed(1)} rows` },
};
const KEPT = 60;  // samples, one per second
const points = Object.fromEntries(Object.keys(CHARTS).map(name => [name, []]));
let before = null;

/** Begin anew after a pause, whose requests would be counted in one second. */
export const pauseCharts = () => { before = null; };

/** Forget the charts of another model. */
export const restartCharts = () => {
  before = null;
  for (const name of Object.keys(CHARTS)) points[name].length = 0;
  drawCharts();
};

export const drawCharts = () => {
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

/** Read the metrics, and draw the charts with one more point. */
export const sampleCharts = async () => {
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
