// The jets of the page in a list, with thumbnails, sorted as the reader wants.

import { select } from "d3-selection";
import { looks, window as windowOf } from "./symbols.js";

const THUMBNAIL = 52;

/** Index of the largest score. */
export const predicted = (jet) => jet.scores.indexOf(Math.max(...jet.scores));

export const isWrong = (jet) => jet.label !== null && predicted(jet) !== jet.label;

/** Score of a class; with null, of the true class, or of the predicted one without labels. */
export const scoreOf = (jet, of) => jet.scores[of ?? jet.label ?? predicted(jet)];

/** Places of the jets in the order of a state. */
export function order(facts, { sort, of }) {
  const places = facts.jets.map((_, k) => k);
  const score = (k) => scoreOf(facts.jets[k], of);
  if (sort === "high") places.sort((a, b) => score(b) - score(a));
  if (sort === "low") places.sort((a, b) => score(a) - score(b));
  if (sort === "wrong") {
    // Those that are most wrong first, then those that are right by the least.
    const truth = (k) =>
      facts.jets[k].label === null ? 0 : facts.jets[k].scores[facts.jets[k].label];
    const wrong = (k) => Number(isWrong(facts.jets[k]));
    places.sort((a, b) => wrong(b) - wrong(a) || truth(a) - truth(b));
  }
  return places;
}

export function createList(element, facts, symbols, { onChoose }) {
  return function draw(state) {
    select(element)
      .selectAll("li")
      .data(order(facts, state), (k) => k)
      .join((enter) => {
        const item = enter.append("li").append("button").attr("type", "button");
        item.attr("data-jet", (k) => facts.jets[k].index);
        item
          .append("canvas")
          .attr("aria-hidden", "true")
          .each(function (k) {
            thumbnail(this, facts.jets[k], symbols);
          });
        item.append("span").attr("class", "name");
        const score = item.append("span").attr("class", "score");
        score.append("span").attr("class", "bar").append("i");
        score.append("span").attr("class", "value");
        item.on("click", (_, k) => onChoose(k));
        return item.select(function () {
          return this.parentNode;
        });
      })
      .order()
      .each(function (k) {
        describe(select(this), facts, facts.jets[k], state, k === state.jet);
      });
  };
}

function describe(item, facts, jet, state, isCurrent) {
  item.select("button").attr("aria-current", isCurrent);
  const name = jet.label === null ? `jet ${jet.index}` : facts.classes[jet.label].name;
  const line = item.select(".name").text(null);
  const left = line.append("span");
  if (jet.label !== null) left.append("span").attr("class", "index").text(`${jet.index} `);
  left.append("span").text(name);
  const verdict = isWrong(jet) ? `✗ ${facts.classes[predicted(jet)].name}` : "";
  line.append("span").attr("class", "verdict").text(verdict);
  const score = scoreOf(jet, state.of);
  item.select(".bar i").style("width", `${100 * score}%`);
  item.select(".value").text(score.toFixed(3));
}

function thumbnail(canvas, jet, symbols) {
  const ratio = globalThis.devicePixelRatio || 1;
  canvas.width = canvas.height = THUMBNAIL * ratio;
  const context = canvas.getContext("2d");
  context.scale((THUMBNAIL * ratio) / 2, (THUMBNAIL * ratio) / 2);
  context.translate(1, 1);
  const frame = windowOf(jet);
  // The hardest on top.
  for (const p of looks(jet, symbols).reverse()) {
    context.globalAlpha = p.opacity;
    context.fillStyle = p.color;
    context.beginPath();
    const [x, y] = [(p.eta - frame.eta) / frame.reach, -(p.phi - frame.phi) / frame.reach];
    context.arc(x, y, 0.13 * p.size, 0, 2 * Math.PI);
    context.fill();
  }
}
