// Numbers as a person reads them, scales and ticks, and what little there is to know about words.

function number(value, digits) {
  if (!Number.isFinite(value)) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function signed(value, digits) {
  return Number.isFinite(value) ? (value < 0 ? "−" : "+") + number(Math.abs(value), digits) : "–";
}

function counted(count, what) {
  return count ? `${number(count, 0)} ${what}${count === 1 ? "" : "s"}` : "";
}

/** Four digits of a number of any size. */
function precise(value) {
  return Math.abs(value) < 0.001 && value !== 0 ? value.toExponential(3) : value.toPrecision(4);
}

/** As short as an axis wants it: 12k, 0.35, 3e-4. */
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
  const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  return low <= high ? [low, high] : [0, 1];
}

function padded([low, high]) {
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low - pad, high + pad];
}

/** A linear scale: call it with a value, or its `invert` with a place. */
function scale(domain, [from, to]) {
  const factor = (to - from) / (domain[1] - domain[0] || 1);
  return Object.assign((value) => from + (value - domain[0]) * factor, { domain, invert: (place) => domain[0] + (place - from) / factor });
}

/** About `count` round numbers. */
function ticks([low, high], count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Where in a rising list the value next to this one stands. */
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

/** As a search compares text. */
function folded(text) {
  return text.normalize("NFC").toLowerCase();
}

function shortened(text, letters) {
  const signs = Array.from(text); // whole characters, where slicing the text would cut an emoji in two
  return signs.length > letters ? signs.slice(0, Math.max(1, Math.floor(letters) - 1)).join("") + "…" : text;
}
