// Formatting of numbers and text, scales, ticks, and search in sorted lists.

function number(value, digits) {
  if (!Number.isFinite(value)) return "–";
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("en", options);
}

function signed(value, digits) {
  return Number.isFinite(value) ? (value < 0 ? "−" : "+") + number(Math.abs(value), digits) : "–";
}

function counted(count, what) {
  return count ? `${number(count, 0)} ${what}${count === 1 ? "" : "s"}` : "";
}

/** Write a number of any size with four significant digits. */
function precise(value) {
  return Math.abs(value) < 0.001 && value !== 0 ? value.toExponential(3) : value.toPrecision(4);
}

/** Write a number as short as possible, for an axis: 12k, 0.35, 3e-4. */
function compact(value) {
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (Math.abs(value) >= 10_000) return `${Number((value / 1000).toPrecision(4))}k`;
  return String(Number(value.toPrecision(6)));
}

function pValue(p) {
  if (!Number.isFinite(p)) return "–";
  return p < 0.001 ? "< 0.001" : number(p, 3);
}

function extent(values) {
  const widen = ([low, high], v) => [Math.min(low, v), Math.max(high, v)];
  const [low, high] = values.reduce(widen, [Infinity, -Infinity]);
  return low <= high ? [low, high] : [0, 1];
}

function padded([low, high]) {
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - pad, high + pad];
}

/** A linear scale: call it to convert a value to pixels, and its `invert` for the other way. */
function scale(domain, [from, to]) {
  const factor = (to - from) / (domain[1] - domain[0] || 1);
  const toPixels = (value) => from + (value - domain[0]) * factor;
  const invert = (place) => domain[0] + (place - from) / factor;
  return Object.assign(toPixels, { domain, invert });
}

/** About `count` round numbers in the range. */
function ticks([low, high], count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const first = Math.ceil(low / step);
  const length = Math.floor(high / step) - first + 1;
  return Array.from({ length }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** The index of the number in a sorted list that is nearest to `value`. */
function nearest(sorted, value) {
  let [low, high] = [0, sorted.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return high > low && value - sorted[low] > sorted[high] - value ? high : low;
}

function clamp(value, low, high) {
  return Math.max(low, Math.min(high, value));
}

function unique(values) {
  return [...new Set(values)];
}

/** Normalize text for a search that ignores case. */
function folded(text) {
  return text.normalize("NFC").toLowerCase();
}

function shortened(text, letters) {
  const characters = Array.from(text); // whole characters: slicing the text could split an emoji
  if (characters.length <= letters) return text;
  return characters.slice(0, Math.max(1, Math.floor(letters) - 1)).join("") + "…";
}
