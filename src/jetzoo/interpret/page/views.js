// Which numbers a view shows: a table of rows and columns, made from the attention and the state.

import { classRollout, mean, rollouts } from "./data.js";

export const QUANTITIES = {
  weights: { letter: "w", name: "attention weight", symbol: "W", label: "attention W" },
  scores: { letter: "a", name: "score", symbol: "A", label: "scores A" },
  bias: { letter: "u", name: "pair bias", symbol: "U", label: "pair bias U" },
};

/** Whether a layer, counted through particle and class layers, is one of the class token. */
export const isClassLayer = (layout, layer) => layer >= layout.layers;

export const layerName = (layout, layer) =>
  isClassLayer(layout, layer) ? `class layer ${layer - layout.layers + 1}` : `layer ${layer + 1}`;

/** What there is to choose in a layer: quantities, and heads as "mean", "rollout" or a number. */
export function choices(layout, layer) {
  const isClass = isClassLayer(layout, layer);
  const quantities = ["weights"];
  if (!isClass && layout.scores) quantities.push("scores");
  if (!isClass && layout.bias[layer] >= 0) quantities.push("bias");
  const count = isClass ? layout.clsHeads : layout.heads;
  const heads = ["mean", ...Array(count).keys()];
  if (layout.layers) heads.push("rollout");
  return { quantities, heads };
}

/**
 * The table of a view.
 *
 * `values` (rows, columns); particles are columns from `first` on, and rows unless `isClass`, where
 * rows are heads and `row` is the chosen one. `low` and `high` are the ends of the colours.
 */
export function table(attention, layout, state) {
  const { layer, head, show } = state;
  attention.rolled ??= rollouts(attention);
  if (isClassLayer(layout, layer)) return classTable(attention, layout, layer, head);
  const n = attention.n;
  const heads =
    show === "bias" ? attention.bias[attention.biasOfLayer[layer]] : attention[show][layer];
  let values = heads[head];
  if (head === "rollout") values = attention.rolled[layer];
  if (head === "mean") values = mean(heads);
  // The colours of weights end at the largest of the layer, so that heads can be compared.
  const [low, high] =
    show === "weights"
      ? [0, largest(head === "rollout" ? [values] : heads)]
      : ends(values, show === "bias");
  return { values, rows: n, columns: n, first: 0, isClass: false, show, low, high };
}

function classTable(attention, layout, layer, head) {
  const heads = attention.cls[layer - layout.layers];
  const lines = [...heads, mean(heads)];
  const names = [...heads.map((_, h) => `${h + 1}`), "mean"];
  let row = head === "mean" ? heads.length : head;
  if (layout.layers) {
    lines.push(classRollout(attention, attention.rolled));
    names.push("rollout");
    if (head === "rollout") row = lines.length - 1;
  }
  const columns = attention.n + 1;
  const values = new Float32Array(lines.length * columns);
  lines.forEach((line, i) => values.set(line, i * columns));
  return {
    values,
    rows: lines.length,
    columns,
    first: 1,
    isClass: true,
    show: "weights",
    row,
    names,
    low: 0,
    high: largest([values]),
  };
}

const largest = (tables) =>
  tables.reduce((most, t) => t.reduce((a, b) => Math.max(a, b), most), 1e-9);

// The pair bias has a few extreme values: its colours end at 98% of them, as in the static figures.
function ends(values, trimmed) {
  if (!values.length) return [0, 1];
  const sorted = values.slice().sort();
  const high = sorted[trimmed ? Math.floor(0.98 * (sorted.length - 1)) : sorted.length - 1];
  return [sorted[0], Math.max(high, sorted[0] + 1e-9)];
}

/** Place of a value between the ends of the colours, 0 to 1; small weights are to be seen, too. */
export function place(table, value) {
  const share = Math.min(Math.max((value - table.low) / (table.high - table.low), 0), 1);
  return table.show === "weights" ? Math.sqrt(share) : share;
}

/** What particle `i` gives to the others and gets from them: [{ other, value }], largest first. */
export function partners(table, i) {
  const { values, columns, first, isClass } = table;
  if (isClass)
    return { given: [], received: [{ other: -1, value: values[table.row * columns + 1 + i] }] };
  const others = Array.from({ length: columns - first }, (_, j) => j);
  const byValue = (a, b) => b.value - a.value;
  return {
    given: others.map((j) => ({ other: j, value: values[i * columns + j] })).sort(byValue),
    received: others.map((j) => ({ other: j, value: values[j * columns + i] })).sort(byValue),
  };
}
