// The present view and its form in the address: #jet=7&layer=3&head=mean&show=weights&particle=4

import { choices } from "./views.js";

export const isNumber = Number.isInteger;
const SORTS = ["file", "wrong", "high", "low"];

/** The view with which a page begins. */
export const START = {
  jet: 0,
  layer: 0,
  head: "mean",
  show: "weights",
  particle: null,
  sort: "file",
  of: null,
};

/** Take what can be in the jets of the page; anything else becomes the nearest that can be. */
export function valid(state, facts) {
  const whole = (value, count) => Math.min(Math.max(value, 0), Math.max(count - 1, 0));
  const jet = whole(state.jet, facts.jets.length);
  const { layout } = facts.jets[jet];
  const layer = whole(state.layer, layout.layers + layout.clsLayers);
  const { quantities, heads } = choices(layout, layer);
  const show = quantities.includes(state.show) ? state.show : "weights";
  let head = heads.includes(state.head) ? state.head : "mean";
  if (show !== "weights" && head === "rollout") head = "mean";
  const has = isNumber(state.particle) && state.particle >= 0 && state.particle < layout.n;
  return {
    jet,
    layer,
    head,
    show,
    particle: has ? state.particle : null,
    sort: SORTS.includes(state.sort) ? state.sort : "file",
    of: isNumber(state.of) && facts.classes[state.of] ? state.of : null,
  };
}

/** Fragment of a view; layers, heads and particles are counted from 1, jets as in the files. */
export function toFragment(state, facts) {
  const { layout, index } = facts.jets[state.jet];
  const isClass = state.layer >= layout.layers;
  const fields = {
    jet: index,
    layer: isClass ? `class${state.layer - layout.layers + 1}` : state.layer + 1,
    head: isNumber(state.head) ? state.head + 1 : state.head,
    show: state.show,
  };
  if (state.particle !== null) fields.particle = state.particle + 1;
  if (state.sort !== "file") fields.sort = state.sort;
  if (state.of !== null) fields.score = facts.classes[state.of].label;
  return `#${new URLSearchParams(fields)}`;
}

/** The view of a fragment, see `toFragment`. */
export function fromFragment(fragment, facts) {
  const fields = new URLSearchParams(fragment.replace(/^#/, ""));
  const number = (text) => (/^\d+$/.test(text ?? "") ? Number(text) : null);
  const state = { ...START };
  state.jet = facts.jets.findIndex((jet) => jet.index === number(fields.get("jet")));
  const layer = fields.get("layer") ?? "1";
  const { layout } = facts.jets[Math.max(state.jet, 0)];
  state.layer = layer.startsWith("class")
    ? layout.layers + number(layer.slice(5)) - 1
    : number(layer) - 1;
  const head = fields.get("head") ?? "mean";
  state.head = number(head) === null ? head : number(head) - 1;
  state.show = fields.get("show") ?? "weights";
  const particle = number(fields.get("particle"));
  state.particle = particle === null ? null : particle - 1;
  state.sort = fields.get("sort") ?? "file";
  const of = facts.classes.findIndex((c) => c.label === fields.get("score"));
  state.of = of < 0 ? null : of;
  return valid(state, facts);
}
