// What is said in words: the title of a jet, captions, the legend, and the particle in focus.

import { select } from "d3-selection";
import { isWrong, predicted } from "./list.js";
import { QUANTITIES, layerName, partners } from "./views.js";

const LISTED = 7;

export const number = (value) => {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
};

export function title(facts, jet) {
  const parts = [`Jet ${jet.index}`];
  if (jet.label !== null) parts.push(facts.classes[jet.label].name);
  const best = predicted(jet);
  const name = facts.classes[best].name;
  parts.push(
    `${isWrong(jet) ? "tagged wrongly as" : "tagged as"} ${name}, ${jet.scores[best].toFixed(3)}`,
  );
  parts.push(`${jet.layout.n} particles`);
  return parts.join(" · ");
}

export function describeParticle(facts, jet, i) {
  const type = jet.types[i] < 0 ? "particle" : facts.types[jet.types[i]].name;
  return `${i + 1} · ${type} · ${number(jet.pt[i])} GeV`;
}

/** What the view is of, as "mean over heads, layer 3". */
export function viewName(jet, state) {
  const head =
    { mean: "mean over heads", rollout: "rollout" }[state.head] ?? `head ${state.head + 1}`;
  const upTo = state.head === "rollout" ? "after " : "";
  return `${head}, ${upTo}${layerName(jet.layout, state.layer)}`;
}

export function captions(jet, state, table, focus, widest) {
  const { name, symbol } = QUANTITIES[state.show];
  const view = viewName(jet, state);
  let plane = "No lines: the jet has too few particles.";
  if (widest !== null) {
    const what = table.isClass
      ? "What the class token attends to"
      : focus
        ? `Particle ${focus.particle + 1}`
        : "The larger of both directions";
    plane = `${what}: ${view}; widest line: ${number(widest)}.`;
  }
  return { plane, matrix: `${name[0].toUpperCase()}${name.slice(1)} ${symbol}: ${view}.` };
}

export function drawLegend(element, facts, jet, symbols, isClass) {
  const types = [...new Set(jet.types)].sort();
  const items = types.map((type) => ({
    path: symbols.path(type, 70),
    rotation: symbols.rotation(type),
    color: facts.neutral,
    text: type < 0 ? "particle (type unknown)" : facts.types[type].name,
  }));
  for (const s of [...new Set(jet.subjets ?? [])].filter((s) => s >= 0).sort())
    items.push({ square: true, color: symbols.color(s), text: `kT subjet ${s + 1}` });
  if (isClass) items.push({ star: true, text: "class token" });
  items.push({
    path: symbols.path(-1, 70),
    color: facts.neutral,
    faint: true,
    text: "fainter, smaller: lower pT",
  });
  const entry = select(element).selectAll("li").data(items).join("li").text(null);
  const svg = entry
    .append("svg")
    .attr("width", 14)
    .attr("height", 14)
    .attr("viewBox", "-7 -7 14 14");
  svg
    .filter((d) => !d.star)
    .append("path")
    .attr("d", (d) => (d.square ? "M-5,-5h10v10h-10z" : d.path))
    .attr("transform", (d) => `rotate(${d.rotation ?? 0})`)
    .style("fill", (d) => symbols.fill(d.color))
    .attr("fill-opacity", (d) => (d.faint ? 0.35 : 1));
  svg
    .filter((d) => d.star)
    .append("text")
    .attr("text-anchor", "middle")
    .attr("y", 5)
    .text("☆");
  entry.append("span").text((d) => d.text);
}

/** Words on the particle in focus, or on how to choose one. */
export function drawDetails(element, facts, jet, state, table, focus) {
  const root = select(element);
  root.selectAll("*").remove();
  if (!table) return;
  if (table.isClass) {
    const column = root.append("div");
    const shares = partnersOfToken(table);
    ranking(column, "given", "The class token attends to", shares, facts, jet);
    if (focus) aboutParticle(root.append("div"), facts, jet, focus.particle);
    return;
  }
  if (!focus) {
    root
      .append("p")
      .text("Point at a particle, or tap it, to see what it attends to and what attends to it.");
    return;
  }
  const { given, received } = partners(table, focus.particle);
  aboutParticle(root.append("div"), facts, jet, focus.particle);
  const verb = {
    weights: ["Attends to", "Is attended to by"],
    scores: ["Scores given", "Scores received"],
    bias: ["Bias given", "Bias received"],
  }[state.show];
  ranking(root.append("div"), "given", verb[0], given, facts, jet);
  ranking(root.append("div"), "received", verb[1], received, facts, jet);
}

function partnersOfToken(table) {
  const row = table.values.subarray(table.row * table.columns, (table.row + 1) * table.columns);
  return Array.from(row, (value, k) => ({ other: k - 1, value })).sort((a, b) => b.value - a.value);
}

function aboutParticle(root, facts, jet, i) {
  root.append("h3").text(`Particle ${i + 1}`);
  const lines = [
    jet.types[i] < 0 ? null : facts.types[jet.types[i]].name,
    `pT ${number(jet.pt[i])} GeV`,
    `Δη ${number(jet.eta[i])}, Δφ ${number(jet.phi[i])}`,
    jet.subjets && jet.subjets[i] >= 0 ? `kT subjet ${jet.subjets[i] + 1}` : null,
  ];
  for (const line of lines.filter(Boolean)) root.append("p").text(line);
}

function ranking(root, kind, text, list, facts, jet) {
  root.append("h3").attr("class", kind).text(text);
  const rows = root.append("div").attr("class", `ranking ${kind}`);
  const shown = list.slice(0, LISTED);
  // Bars of scores and biases begin at the smallest of all, which may be negative.
  const low = Math.min(0, list.at(-1)?.value ?? 0);
  const width = Math.max((shown[0]?.value ?? 0) - low, 1e-9);
  for (const { other, value } of shown) {
    rows.append("span").text(other < 0 ? "class token" : describeParticle(facts, jet, other));
    rows.append("i").style("width", `${(100 * (value - low)) / width}%`);
    rows.append("span").attr("class", "value").text(number(value));
  }
}
