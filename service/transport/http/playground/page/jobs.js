// Jobs: one piece of work at a time for each place of the page.
//
// Each job writes into a sheet of its own. A later job takes the sheet off the page, so that whatever an earlier one
// still writes is not seen.

import { by, make } from "./dom.js";
import { Refused, sentence } from "./server.js";

const running = new Map();

/** A place for results, and the button that stops the work for it. */
export const ANSWER = { id: "answer", stop: "stop" };
export const EXPLANATION = { id: "explanation", stop: "explain-stop" };

/** Show an error as a sentence; `cut` says that a part of an answer stands above it. */
export const showError = (sheet, error, cut = false) => {
  if (error.name === "AbortError") {
    make("p", sheet, cut ? "Stopped before the answer was complete." : "Stopped.", "muted");
    return;
  }
  const text = error instanceof Refused ? error.message : `The page failed on this answer: ${sentence(String(error.message))}`;
  make("p", sheet, text, "error").setAttribute("role", "alert");
  if (cut) make("p", sheet, "The text above is not the whole answer.", "muted");
};

/** Cancel the work for a place and empty it. */
export const clear = ({ id, stop }) => {
  running.get(id)?.abort();
  running.delete(id);
  by(id).replaceChildren();
  by(id).removeAttribute("aria-busy");
  by(stop).hidden = true;
};

export const stop = ({ id }) => running.get(id)?.abort();

/**
 * Run a job for a place, after cancelling the one before it.
 *
 * `action` gets the sheet and a signal; `failed` shows its error. The value is that of `action`, or null if the job
 * failed, was stopped, or another one took its place.
 */
export const work = async (place, action, failed = showError) => {
  clear(place);
  const controller = new AbortController(), element = by(place.id), stopping = by(place.stop);
  const sheet = make("div", element, "", "sheet");
  running.set(place.id, controller);
  const isCurrent = () => running.get(place.id) === controller;
  element.setAttribute("aria-busy", "true");
  stopping.hidden = false;
  try {
    const value = await action(sheet, controller.signal);
    return isCurrent() ? value : null;
  } catch (error) {
    if (isCurrent()) failed(sheet, error);
    return null;
  } finally {
    if (isCurrent()) {
      running.delete(place.id);
      element.removeAttribute("aria-busy");
      if (document.activeElement === stopping) stopping.parentElement.querySelector("[type=submit]").focus();
      stopping.hidden = true;
    }
  }
};

/** Wait for a promise, at most until the signal is aborted. */
export const unlessAborted = (promise, signal) => new Promise((resolve, reject) => {
  const abort = () => reject(new DOMException("stopped", "AbortError"));
  if (signal.aborted) abort();
  signal.addEventListener("abort", abort, { once: true });
  promise.then(resolve, reject);
});
