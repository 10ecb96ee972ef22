// The page of `jetzoo explore`: one state, drawn anew at each change.

import { createControls, listenToKeys } from "./controls.js";
import { unpack } from "./data.js";
import { captions, describeParticle, drawDetails, drawLegend, number, title } from "./details.js";
import { createList, order } from "./list.js";
import { createMatrix } from "./matrix.js";
import { createPlane } from "./plane.js";
import { START, fromFragment, toFragment, valid } from "./state.js";
import { createSymbols } from "./symbols.js";
import { QUANTITIES, choices, table as tableOf } from "./views.js";

const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const symbols = createSymbols(facts);

let state = location.hash ? fromFragment(location.hash, facts) : valid(START, facts);
let table = null; // of the present view, null while its jet is unpacked
let pointed = null; // what the mouse points at: a particle, and its partner in the matrix

// Unpacked jets. The blocks stand behind this script, so the first may not be there yet.
const attention = new Map();
const parsed = new Promise((resolve) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve);
  else resolve();
});

async function load(k) {
  if (!byId(`jet-${k}`)) await parsed;
  attention.set(k, await unpack(byId(`jet-${k}`).textContent, facts.jets[k].layout));
}

const focusOf = () => pointed ?? (state.particle === null ? null : { particle: state.particle });

function set(changes) {
  const next = valid({ ...state, ...changes }, facts);
  if (next.jet !== state.jet) {
    pointed = null;
    next.particle = null;
  }
  state = next;
  history.replaceState(null, "", toFragment(state, facts));
  draw();
  document.querySelector("#jets [aria-current=true]").scrollIntoView({ block: "nearest" });
}

const plane = createPlane(byId("plane"), symbols, {
  onPoint: (particle, event) => {
    tip(particle === null ? null : describeParticle(facts, facts.jets[state.jet], particle), event);
    point(particle === null ? null : { particle });
  },
  onPick: (particle) => set({ particle: particle === state.particle ? null : particle }),
});

const matrix = createMatrix(byId("matrix"), byId("scale"), {
  onPoint: (cell, event) => {
    tip(cell && describeCell(cell), event);
    point(cell && focusOfCell(cell));
  },
  onPick: (cell) => cell && set({ particle: focusOfCell(cell)?.particle ?? null }),
});

function point(focus) {
  const isSame = focus?.particle === pointed?.particle && focus?.partner === pointed?.partner;
  pointed = focus;
  if (!isSame) drawPictures();
}

function focusOfCell({ row, column }) {
  if (!table.isClass) return { particle: row, partner: column };
  return column > 0 ? { particle: column - 1 } : null;
}

function describeCell({ row, column }) {
  const value = number(table.values[row * table.columns + column]);
  const { symbol } = QUANTITIES[table.show];
  if (!table.isClass) return `${row + 1} → ${column + 1}\n${symbol} = ${value}`;
  return `${table.names[row]}: class token → ${column || "itself"}\n${symbol} = ${value}`;
}

function tip(text, event) {
  const element = byId("tip");
  element.hidden = !text;
  if (!text) return;
  element.textContent = text;
  const left = Math.min(event.clientX + 14, innerWidth - element.offsetWidth - 8);
  const top = Math.min(event.clientY + 16, innerHeight - element.offsetHeight - 8);
  Object.assign(element.style, { left: `${left}px`, top: `${top}px` });
}

const list = createList(byId("jets"), facts, symbols, { onChoose: (jet) => set({ jet }) });

const themes = ["auto", "light", "dark"];
function switchTheme() {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % themes.length];
  root.dataset.theme = next;
  root.style.colorScheme = next === "auto" ? "" : next;
  byId("theme").textContent = `Colours: ${next}`;
}

function step(values, present, by) {
  const at = values.indexOf(present) + by;
  return values[Math.min(Math.max(at, 0), values.length - 1)];
}

const actions = {
  set,
  switchTheme,
  help: () => byId("keys").showModal(),
  stepJet: (by) => set({ jet: step(order(facts, state), state.jet, by) }),
  stepLayer: (by) => set({ layer: state.layer + by }),
  stepHead: (by) =>
    set({ head: step(choices(facts.jets[state.jet].layout, state.layer).heads, state.head, by) }),
  stepParticle: (by) => {
    const last = facts.jets[state.jet].layout.n - 1;
    const next = state.particle === null ? (by > 0 ? 0 : last) : state.particle + by;
    set({ particle: Math.min(Math.max(next, 0), last) });
  },
};
const controls = createControls(facts, actions);

function drawPictures() {
  const jet = facts.jets[state.jet];
  const focus = focusOf();
  const widest = plane(jet, table, focus);
  matrix(table, focus);
  if (table) {
    const text = captions(jet, state, table, focus, widest);
    byId("plane-caption").textContent = text.plane;
    byId("matrix-caption").textContent = text.matrix;
  }
  drawDetails(byId("details"), facts, jet, state, table, focus);
}

function draw() {
  const jet = facts.jets[state.jet];
  const here = attention.get(state.jet);
  table = here ? tableOf(here, jet.layout, state) : null;
  byId("jet-title").textContent = title(facts, jet);
  list(state);
  controls(jet, state);
  drawLegend(byId("legend"), facts, jet, symbols, state.layer >= jet.layout.layers);
  drawPictures();
  if (here) return;
  const wanted = state.jet;
  load(wanted).then(() => state.jet === wanted && draw());
}

byId("about").textContent = [`${facts.jets.length} jets`, ...facts.notes].join(" · ");
byId("theme").textContent = "Colours: auto";
byId("theme").addEventListener("click", switchTheme);
byId("help").addEventListener("click", actions.help);
listenToKeys(actions);
addEventListener("hashchange", () => {
  state = fromFragment(location.hash, facts);
  set({});
});
addEventListener("resize", drawPictures);
set({});
