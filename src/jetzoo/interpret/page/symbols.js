// How particles look: the markers, colours and opacity of the static figures.

import { symbol, symbolCircle, symbolCross, symbolTriangle } from "d3-shape";

// Markers by their names in matplotlib, as figures/jets.py has them: shape and rotation.
const MARKERS = {
  "^": [symbolTriangle, 0],
  v: [symbolTriangle, 180],
  o: [symbolCircle, 0],
  P: [symbolCross, 0],
  X: [symbolCross, 45],
  ".": [symbolCircle, 0],
};

export function createSymbols(facts) {
  const marker = (type) => MARKERS[type < 0 ? facts.unknownMarker : facts.types[type].marker];
  return {
    path: (type, area) => symbol(marker(type)[0], area)(),
    rotation: (type) => marker(type)[1],
    color: (subjet) => (subjet < 0 ? facts.neutral : facts.colors[subjet]),
    // Lighter on a dark page.
    fill: (color) => `light-dark(${color}, color-mix(in oklab, ${color} 75%, white))`,
    opacity: (pt, largest) => 0.25 + 0.75 * Math.sqrt(pt / largest),
  };
}

/** The look of each particle of a jet, with its place; the hardest particle is the largest. */
export function looks(jet, symbols) {
  const largest = Math.max(jet.pt[0] ?? 0, 1e-9);
  return jet.pt.map((pt, i) => ({
    i,
    eta: jet.eta[i],
    phi: jet.phi[i],
    type: jet.types[i],
    color: symbols.color(jet.subjets ? jet.subjets[i] : -1),
    opacity: symbols.opacity(pt, largest),
    size: 0.45 + 0.55 * Math.sqrt(pt / largest),
  }));
}

/** Centre and half width of the square that holds a jet and its axis, as in the static figures. */
export function window(jet) {
  const span = (x) => [Math.min(0, ...x), Math.max(0, ...x)];
  const [eta, phi] = [span(jet.eta), span(jet.phi)];
  const reach = 0.55 * Math.max(eta[1] - eta[0], phi[1] - phi[0], 0.1);
  return { eta: (eta[0] + eta[1]) / 2, phi: (phi[0] + phi[1]) / 2, reach };
}
