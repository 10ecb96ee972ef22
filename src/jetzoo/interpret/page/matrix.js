// The table of a view as a picture, linked with the plane, and the scale of its colours.

import { axisBottom, axisLeft } from "d3-axis";
import { scaleLinear, scalePow } from "d3-scale";
import { rgb } from "d3-color";
import { interpolateViridis } from "d3-scale-chromatic";
import { pointer, select } from "d3-selection";
import { isNumber } from "./state.js";
import { QUANTITIES, place } from "./views.js";

const SIZE = 560;
const MARGIN = { left: 52, right: 8, top: 8, bottom: 42 };
const WEIGHT_TICKS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1];
const COLORS = Array.from({ length: 256 }, (_, k) => rgb(interpolateViridis(k / 255)));

export function createMatrix(element, scaleElement, { onPoint, onPick }) {
  const canvas = element.querySelector("canvas");
  const svg = select(element).select("svg").attr("viewBox", `0 0 ${SIZE} ${SIZE}`);
  const percent = (x) => `${(100 * x) / SIZE}%`;
  Object.assign(canvas.style, {
    left: percent(MARGIN.left),
    top: percent(MARGIN.top),
    width: percent(SIZE - MARGIN.left - MARGIN.right),
    height: percent(SIZE - MARGIN.top - MARGIN.bottom),
  });
  const x = scaleLinear([MARGIN.left, SIZE - MARGIN.right]);
  const y = scaleLinear([MARGIN.top, SIZE - MARGIN.bottom]);
  const [xAxis, yAxis, guides] = ["x", "y", "guides"].map((c) => svg.append("g").attr("class", c));
  const text = () => svg.append("text").attr("text-anchor", "middle");
  const xLabel = text()
    .attr("x", (SIZE + MARGIN.left) / 2)
    .attr("y", SIZE - 6);
  const yLabel = text().attr(
    "transform",
    `translate(13,${(SIZE - MARGIN.bottom) / 2}) rotate(-90)`,
  );

  let table = null;
  const cell = (event) => {
    if (!table) return null;
    const at = pointer(event, svg.node());
    const [column, row] = [Math.floor(x.invert(at[0])), Math.floor(y.invert(at[1]))];
    const inside = row >= 0 && row < table.rows && column >= 0 && column < table.columns;
    return inside ? { row, column } : null;
  };
  svg
    .on("pointermove pointerdown", (event) => onPoint(cell(event), event))
    .on("pointerleave", () => onPoint(null))
    .on("click", (event) => onPick(cell(event)));

  return function draw(shown, focus) {
    table = shown?.columns ? shown : null;
    canvas.hidden = !table;
    guides.selectAll("*").remove();
    if (!table) return;
    paint(canvas, table);
    x.domain([0, table.columns]);
    y.domain([0, table.rows]);
    const ranks = (count) => scaleLinear([1, count], [0, 1]).ticks(6).filter(isWhole);
    xAxis
      .attr("transform", `translate(0,${SIZE - MARGIN.bottom})`)
      .call(axisOf(axisBottom(x), ranks(table.columns - table.first), table.first));
    const rows = table.names
      ? axisLeft(y)
          .tickValues(table.names.map((_, i) => i + 0.5))
          .tickFormat((_, i) => table.names[i])
      : axisOf(axisLeft(y), ranks(table.rows), 0);
    yAxis.attr("transform", `translate(${MARGIN.left},0)`).call(rows);
    xLabel.text(`particle attended to (rank in pT${table.first ? "; first: class token" : ""})`);
    yLabel.text(table.isClass ? "head" : "particle that attends (rank in pT)");
    drawGuides(guides, table, focus, x, y);
    drawScale(scaleElement, table);
  };
}

const isWhole = (rank) => Number.isInteger(rank) && rank >= 1;

// Ticks in the middle of cells, ranks counted from 1.
function axisOf(axis, ranks, first) {
  return axis.tickValues(ranks.map((r) => r - 0.5 + first)).tickFormat((_, i) => ranks[i]);
}

function paint(canvas, table) {
  const { rows, columns, values } = table;
  Object.assign(canvas, { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  values.forEach((value, k) => {
    const { r, g, b } = COLORS[Math.round(255 * place(table, value))];
    image.data.set([r, g, b, 255], 4 * k);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawGuides(group, table, focus, x, y) {
  const bands = [];
  if (table.isClass) bands.push({ kind: "given", row: table.row });
  if (focus && isNumber(focus.particle)) {
    if (!table.isClass) bands.push({ kind: "given", row: focus.particle });
    bands.push({ kind: "received", column: focus.particle + table.first });
  }
  if (focus && isNumber(focus.partner))
    bands.push({ kind: "cell", row: focus.particle, column: focus.partner });
  group
    .selectAll("rect")
    .data(bands)
    .join("rect")
    .attr("class", (d) => `guide ${d.kind}`)
    .attr("x", (d) => x(d.column ?? 0))
    .attr("y", (d) => y(d.row ?? 0))
    .attr("width", (d) => x(d.column === undefined ? table.columns : 1) - x(0))
    .attr("height", (d) => y(d.row === undefined ? table.rows : 1) - y(0));
}

function drawScale(element, table) {
  const canvas = element.querySelector("canvas");
  const [left, right] = [MARGIN.left / SIZE, 1 - MARGIN.right / SIZE];
  Object.assign(canvas.style, { left: `${100 * left}%`, width: `${100 * (right - left)}%` });
  Object.assign(canvas, { width: 256, height: 1 });
  const image = new ImageData(256, 1);
  COLORS.forEach(({ r, g, b }, k) => image.data.set([r, g, b, 255], 4 * k));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const width = element.clientWidth || SIZE;
  const isWeight = table.show === "weights";
  const scale = scalePow([table.low, table.high], [left * width, right * width]).exponent(
    isWeight ? 0.5 : 1,
  );
  const axis = axisBottom(scale).tickSize(4);
  // The end of the weights is named, and so are those of the round ones that leave room for it.
  const round = WEIGHT_TICKS.filter((tick) => tick < 0.8 * table.high);
  if (isWeight) axis.tickValues([...round, table.high]).tickFormat((x) => `${+x.toPrecision(2)}`);
  else axis.ticks(6);
  select(element)
    .select("svg")
    .selectAll("g")
    .data([0])
    .join("g")
    .attr("transform", "translate(0,9)")
    .call(axis);
  element.setAttribute("aria-label", `Colours of the ${QUANTITIES[table.show].name}`);
}
