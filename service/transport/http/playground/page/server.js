// The server: requests, their refusals as sentences, and streams of events.

/** An error whose text is a sentence for the user; `status` is the response's, if there was one. */
export class Refused extends Error {
  constructor(text, status = 0) {
    super(text);
    this.status = status;
  }
}

export const sentence = text => {
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
export const ask = async (path, options = {}) => {
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
    + (wait ? ` Try again in ${wait} s.` : ""), response.status);
};

/** Yield the documents of server-sent events (WHATWG HTML, 9.2; the server writes one `data` line per event). */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").find(line => line.startsWith("data:"));
      if (data) yield JSON.parse(data.slice("data:".length));
    }
  }
}
