// The blocks of jetzoo/interpret/encoding.py, unpacked: the attention of one jet as numbers.

const WEIGHT_STEPS = 127;
const SCORE_STEPS = 31;
const BIAS_STEPS = 255;

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/**
 * Unpack one jet.
 *
 * Returns tables by layer and head, each a Float32Array: weights and scores [layer][head] (n, n),
 * cls [layer][head] (1 + n), bias [index][head] (n, n).
 */
export async function unpack(base64, layout) {
  const buffer = await inflate(base64);
  const { n, layers, heads, clsLayers, clsHeads } = layout;
  const numScores = layout.scores ? layers : 0;
  const numBiases = Math.max(-1, ...layout.bias) + 1;
  const count = heads * (layers + numScores + numBiases) + clsHeads * clsLayers;
  const ranges = new Float32Array(buffer, 0, 2 * count);
  let range = 0;
  let at = ranges.byteLength;

  // The next matrix; its rows are stored as differences to the row above, modulo 256.
  const next = (rows, columns, steps) => {
    const q = new Uint8Array(buffer, at, rows * columns);
    at += q.length;
    for (let k = columns; k < q.length; k++) q[k] += q[k - columns];
    const [low, high] = ranges.subarray(range, (range += 2));
    return Float32Array.from(q, (x) => low + (x * (high - low)) / steps);
  };
  const square = (roots) => roots.map((x) => x * x);
  const tables = (count, width, read) =>
    Array.from({ length: count }, () => Array.from({ length: width }, read));
  return {
    n,
    weights: tables(layers, heads, () => square(next(n, n, WEIGHT_STEPS))),
    cls: tables(clsLayers, clsHeads, () => square(next(1, n + 1, WEIGHT_STEPS))),
    scores: tables(numScores, heads, () => next(n, n, SCORE_STEPS)),
    bias: tables(numBiases, heads, () => next(n, n, BIAS_STEPS)),
    biasOfLayer: layout.bias,
  };
}

/** The mean of some tables of one size. */
export function mean(tables) {
  const sum = new Float32Array(tables[0].length);
  for (const table of tables)
    for (let k = 0; k < sum.length; k++) sum[k] += table[k] / tables.length;
  return sum;
}

/** Rollout after each layer: the product of (mean over heads + 1) / 2, as measures.rollout. */
export function rollouts(attention) {
  const { n } = attention;
  const found = [];
  for (const heads of attention.weights) {
    const mixed = mean(heads);
    for (let k = 0; k < mixed.length; k++) mixed[k] /= 2;
    for (let i = 0; i < n; i++) mixed[i * n + i] += 0.5;
    found.push(found.length ? product(mixed, found.at(-1), n) : mixed);
  }
  return found;
}

function product(a, b, n) {
  const out = new Float32Array(n * n);
  for (let i = 0; i < n; i++)
    for (let k = 0; k < n; k++) {
      const factor = a[i * n + k];
      if (factor) for (let j = 0; j < n; j++) out[i * n + j] += factor * b[k * n + j];
    }
  return out;
}

/** What the class token looks at, followed down through the particle layers; (1 + n), 0 first. */
export function classRollout(attention, rolled) {
  const { n } = attention;
  const seen = mean(attention.cls.map(mean)).slice(1);
  const total = seen.reduce((sum, x) => sum + x, 0) || 1;
  const share = seen.map((x) => x / total);
  const flow = follow(share, rolled.at(-1), n);
  return Float32Array.from([0, ...flow]);
}

function follow(row, matrix, n) {
  const out = new Float32Array(n);
  for (let k = 0; k < n; k++) for (let j = 0; j < n; j++) out[j] += row[k] * matrix[k * n + j];
  return out;
}
