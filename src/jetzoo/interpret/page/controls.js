// Controls of the view: the slider through the layers, heads, quantities, sorting; and the keyboard.

import { select } from "d3-selection";
import { isNumber } from "./state.js";
import { QUANTITIES, choices, layerName } from "./views.js";

export function createControls(facts, actions) {
  const layer = document.getElementById("layer");
  layer.addEventListener("input", () => actions.set({ layer: Number(layer.value) }));
  const sort = document.getElementById("sort");
  sort.addEventListener("change", () => actions.set({ sort: sort.value }));
  const of = document.getElementById("of");
  of.append(
    new Option(
      facts.jets.some((j) => j.label !== null) ? "the true class" : "the predicted class",
      "",
    ),
  );
  facts.classes.forEach((c, k) => of.append(new Option(c.name, k)));
  of.addEventListener("change", () =>
    actions.set({ of: of.value === "" ? null : Number(of.value) }),
  );
  sort.querySelector('[value="wrong"]').disabled = facts.jets.every((j) => j.label === null);

  return function draw(jet, state) {
    const { layout } = jet;
    layer.max = Math.max(layout.layers + layout.clsLayers - 1, 0);
    layer.value = state.layer;
    layer.setAttribute("aria-valuetext", layerName(layout, state.layer));
    document.getElementById("layer-name").textContent = layerName(layout, state.layer);
    sort.value = state.sort;
    of.value = state.of ?? "";
    const { quantities, heads } = choices(layout, state.layer);
    const all = Object.keys(QUANTITIES).map((value) => ({
      value,
      text: QUANTITIES[value].label,
      disabled: !quantities.includes(value),
    }));
    buttons("show", all, state.show, (show) => actions.set({ show }));
    const named = heads.map((value) => ({
      value,
      text: isNumber(value) ? `${value + 1}` : value,
      disabled: value === "rollout" && state.show !== "weights",
    }));
    buttons("head", named, state.head, (head) => actions.set({ head }));
  };
}

// A group of radio buttons in a fieldset.
function buttons(id, options, chosen, onChoose) {
  const label = select(`#${id}`)
    .selectAll("label")
    .data(options, (d) => d.value)
    .join((enter) => {
      const made = enter.append("label");
      made
        .append("input")
        .attr("type", "radio")
        .attr("name", id)
        .attr("value", (d) => d.value);
      made.append("span");
      return made;
    })
    .order();
  label
    .select("input")
    .property("disabled", (d) => d.disabled)
    .property("checked", (d) => d.value === chosen)
    .on("change", (_, d) => onChoose(d.value));
  label.select("span").text((d) => d.text);
}

/** Let keys do what the controls do, but where a control has the focus that takes them itself. */
export function listenToKeys(actions) {
  const keys = {
    ArrowUp: () => actions.stepJet(-1),
    ArrowDown: () => actions.stepJet(1),
    ArrowLeft: () => actions.stepLayer(-1),
    ArrowRight: () => actions.stepLayer(1),
    "[": () => actions.stepHead(-1),
    "]": () => actions.stepHead(1),
    ",": () => actions.stepParticle(-1),
    ".": () => actions.stepParticle(1),
    w: () => actions.set({ show: "weights" }),
    a: () => actions.set({ show: "scores" }),
    u: () => actions.set({ show: "bias" }),
    t: actions.switchTheme,
    Escape: () => actions.set({ particle: null }),
    "?": actions.help,
  };
  document.addEventListener("keydown", (event) => {
    const isWidget = event.target.matches?.("input, select") && event.key.startsWith("Arrow");
    const action = keys[event.key];
    if (!action || isWidget || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    action();
  });
}
