// The jet in the eta-phi plane: particles, the attention between them as lines, the one pointed at.

import { axisBottom, axisLeft } from "d3-axis";
import { Delaunay } from "d3-delaunay";
import { scaleLinear } from "d3-scale";
import { pointer, select } from "d3-selection";
import { looks, window as windowOf } from "./symbols.js";
import { partners } from "./views.js";

const SIZE = 560;
const MARGIN = { left: 52, right: 8, top: 8, bottom: 42 };
const WIDEST = 5; // of lines, in units of the picture
const FAINTEST = 0.15; // of the strongest; lines of less are left out
const MOST = { all: 150, one: 14 }; // lines between all particles, and of one with the others
const NEAR = 45; // to what a pointer still belongs

export function createPlane(element, symbols, { onPoint, onPick }) {
  const svg = select(element).attr("viewBox", `0 0 ${SIZE} ${SIZE}`);
  const x = scaleLinear([MARGIN.left, SIZE - MARGIN.right]);
  const y = scaleLinear([SIZE - MARGIN.bottom, MARGIN.top]);
  const [xAxis, yAxis, edges, particles, rings] = ["x", "y", "edges", "particles", "rings"].map(
    (name) => svg.append("g").attr("class", name),
  );
  svg
    .append("rect")
    .attr("class", "frame")
    .attr("x", MARGIN.left)
    .attr("y", MARGIN.top)
    .attr("width", SIZE - MARGIN.left - MARGIN.right)
    .attr("height", SIZE - MARGIN.top - MARGIN.bottom);
  label(svg, "Δη to the jet axis")
    .attr("x", (SIZE + MARGIN.left) / 2)
    .attr("y", SIZE - 6);
  label(svg, "Δφ to the jet axis [rad]").attr(
    "transform",
    `translate(13,${(SIZE - MARGIN.bottom) / 2}) rotate(-90)`,
  );

  let places = [];
  let cells = null;
  const nearest = (event) => {
    if (!places.length) return null;
    const at = pointer(event, element);
    const i = cells.find(...at);
    return Math.hypot(at[0] - places[i].x, at[1] - places[i].y) < NEAR ? i : null;
  };
  svg
    .on("pointermove pointerdown", (event) => onPoint(nearest(event), event))
    .on("pointerleave", () => onPoint(null))
    .on("click", (event) => onPick(nearest(event)));

  return function draw(jet, table, focus) {
    const frame = windowOf(jet);
    x.domain([frame.eta - frame.reach, frame.eta + frame.reach]);
    y.domain([frame.phi - frame.reach, frame.phi + frame.reach]);
    places = looks(jet, symbols).map((p) => ({ ...p, x: x(p.eta), y: y(p.phi) }));
    cells = places.length
      ? Delaunay.from(
          places,
          (p) => p.x,
          (p) => p.y,
        )
      : null;
    xAxis.attr("transform", `translate(0,${SIZE - MARGIN.bottom})`).call(axisBottom(x).ticks(6));
    yAxis.attr("transform", `translate(${MARGIN.left},0)`).call(axisLeft(y).ticks(6));
    drawParticles(particles, places, symbols, table, [x(0), y(0)]);
    drawRings(rings, places, focus);
    const lines = table ? linesOf(table, places, focus, [x(0), y(0)]) : [];
    drawLines(edges, lines);
    return lines.length ? lines[0].value : null;
  };
}

function label(svg, text) {
  return svg.append("text").attr("text-anchor", "middle").text(text);
}

function drawParticles(group, places, symbols, table, center) {
  group
    .selectAll(".particle")
    .data(places)
    .join("path")
    .attr("class", "particle")
    .attr("data-particle", (p) => p.i + 1)
    .attr("d", (p) => symbols.path(p.type, 190 * p.size ** 2))
    .attr("transform", (p) => `translate(${p.x},${p.y}) rotate(${symbols.rotation(p.type)})`)
    .style("fill", (p) => symbols.fill(p.color))
    .attr("fill-opacity", (p) => p.opacity);
  const arms = Array.from({ length: 10 }, (_, k) => {
    const angle = (k * Math.PI) / 5;
    const r = k % 2 ? 4.5 : 11;
    return [center[0] + r * Math.sin(angle), center[1] - r * Math.cos(angle)].join(",");
  });
  group
    .selectAll(".token")
    .data(table?.isClass ? [arms.join(" ")] : [])
    .join("polygon")
    .attr("class", "token")
    .attr("points", (points) => points);
}

function drawRings(group, places, focus) {
  const marked = [focus?.particle, focus?.partner]
    .map((i, k) => ({ ...places[i], partner: k > 0 }))
    .filter((p) => p.x !== undefined);
  group
    .selectAll("circle")
    .data(marked)
    .join("circle")
    .attr("class", (p) => (p.partner ? "ring partner" : "ring"))
    .attr("cx", (p) => p.x)
    .attr("cy", (p) => p.y)
    .attr("r", (p) => 8 + 5 * p.size);
}

// Lines that are to be drawn, the strongest first, with a strength relative to it.
function linesOf(table, places, focus, center) {
  const token = { x: center[0], y: center[1] };
  let lines = [];
  let most = MOST.all;
  if (table.isClass) {
    lines = places.map((to, i) => ({
      from: token,
      to,
      kind: "given",
      isRay: true,
      value: table.values[table.row * table.columns + 1 + i],
    }));
  } else if (focus) {
    const { given, received } = partners(table, focus.particle);
    const here = places[focus.particle];
    const others = (list) => list.filter((p) => p.other !== focus.particle).slice(0, MOST.one);
    lines = [
      ...others(given).map((p) => ({ from: here, to: places[p.other], kind: "given", ...p })),
      ...others(received).map((p) => ({ from: places[p.other], to: here, kind: "received", ...p })),
    ];
    most = 2 * MOST.one;
  } else {
    // The larger of both directions.
    for (let i = 0; i < places.length; i++)
      for (let j = 0; j < i; j++) {
        const [a, b] = [table.values[i * table.columns + j], table.values[j * table.columns + i]];
        lines.push({ from: places[i], to: places[j], kind: "between", value: Math.max(a, b) });
      }
  }
  lines.sort((a, b) => b.value - a.value);
  if (!lines.length) return [];
  // Weights begin at zero; of scores and biases the strongest count, whatever their zero.
  const low = table.show === "weights" ? 0 : lines.at(-1).value;
  const width = Math.max(lines[0].value - low, 1e-9);
  return lines
    .slice(0, most)
    .map((line) => ({ ...line, strength: (line.value - low) / width }))
    .filter((line) => line.strength > FAINTEST);
}

function drawLines(group, lines) {
  group
    .selectAll("path")
    .data([...lines].reverse())
    .join("path")
    .attr("class", (l) => `edge ${l.kind}`)
    .attr("d", (l) => curve(l.from, l.to, bends(l) ? 0.12 : 0))
    .attr("stroke-width", (l) => WIDEST * l.strength)
    .attr("stroke-opacity", (l) => (l.kind === "between" ? 0.15 + 0.7 * l.strength ** 2 : 0.95))
    .attr("stroke-dasharray", (l) =>
      l.kind === "received" ? `0.1 ${(2 * WIDEST * l.strength + 1).toFixed(1)}` : null,
    );
}

const bends = (line) => line.kind !== "between" && !line.isRay;

// What is given bends to one side, what is received to the other.
function curve(from, to, bend) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const [cx, cy] = [(from.x + to.x) / 2 - bend * dy, (from.y + to.y) / 2 + bend * dx];
  return `M${from.x},${from.y}Q${cx},${cy},${to.x},${to.y}`;
}
