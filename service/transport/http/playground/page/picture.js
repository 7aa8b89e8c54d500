// Pictures: chosen, dropped, pasted or drawn.

import { send } from "./answers.js";
import { by } from "./dom.js";
import { bytes } from "./numbers.js";
import { state } from "./state.js";

let taken = 0;

/** Take a picture in place of the one before it, and ask the model about it. */
export const takePicture = (blob, name) => {
  if (!blob) return;
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  taken += 1;
  state.picture = Object.freeze({ id: taken, blob, name: name || "picture", url: URL.createObjectURL(blob) });
  by("preview").src = state.picture.url;
  by("preview").alt = `Your picture, ${state.picture.name}`;
  by("preview").hidden = false;
  by("picture-about").textContent = `${state.picture.name}, ${bytes(blob.size)}`;
  send();
};

/** Draw a ship on the sea as a sample picture. */
export const drawShip = () => {
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
