// Numbers as people read them: three significant digits, a fitting unit, never an exponent.

const MINUS = "−";

/** Write a number with so many significant digits, and a comma between thousands. */
const significant = (value, digits = 3) => {
  const rounded = Number(value.toPrecision(digits));
  const decimals = rounded === 0 ? 0 : Math.min(20, Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(rounded)))));
  return rounded.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
};

/** Write a time: 0.25 ms, 12.6 ms, 1.26 s, 2 min 5 s, 1 h 3 min. */
export const duration = seconds => {
  if (!Number.isFinite(seconds)) return "unknown";
  const milliseconds = 1000 * seconds;
  if (milliseconds <= 0) return "0 ms";
  if (milliseconds < .01) return "under 0.01 ms";
  if (milliseconds < 1) return `${milliseconds.toFixed(2)} ms`;
  if (Number(milliseconds.toPrecision(3)) < 1000) return `${significant(milliseconds)} ms`;
  if (Number(seconds.toPrecision(3)) < 60) return `${significant(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(seconds / 60);
  return `${count(Math.floor(minutes / 60))} h ${minutes % 60} min`;
};

/** Write a whole number as it is, a mean with one decimal. */
export const count = value => {
  const number = Number(value);
  return Number.isFinite(number) ? number.toLocaleString("en", { maximumFractionDigits: 1 }) : String(value);
};

/** Write a number of things with the noun that fits. */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${Number(value) === 1 ? one : many}`;

/** Write a rate: one decimal below ten, none above. */
export const rate = value => `${value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en")} /s`;

/** Write a share of 1; what is neither none nor all is not rounded to either. */
export const percent = share => {
  if (share > 0 && share < .0005) return "< 0.1 %";
  if (share < 1 && share >= .9995) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
};

/** Write the size of a file. */
export const bytes = size => {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0, value = size;
  while (unit < units.length - 1 && Number(value.toPrecision(3)) >= 1000) { value /= 1000; unit += 1; }
  return unit ? `${significant(value)} ${units[unit]}` : counted(size, "byte");
};

/** Return the decimals that show three digits of the largest of some weights. */
export const decimalsFor = most => most > 0 ? Math.min(9, Math.max(0, 2 - Math.floor(Math.log10(most)))) : 3;

/** Write a number with a true minus sign; a number that rounds to zero has no sign. */
export const fixed = (value, decimals = 3) => {
  const text = Math.abs(value).toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  return value < 0 && /[1-9]/.test(text) ? MINUS + text : text;
};

/** Write a weight with its sign. */
export const signed = (value, decimals = 3) => {
  const text = fixed(value, decimals);
  return value > 0 && /[1-9]/.test(text) ? `+${text}` : text;
};
