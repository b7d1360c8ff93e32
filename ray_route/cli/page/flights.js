// Shows uids on their way: a dot for each, from the card of one pod to that of another.
import { find, make } from "./parts.js";

const MOST = 14; // dots of one move of many; beyond that more would only be a blur
const FLIGHT_MS = 1100;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function centre(card) {
  const box = card.getBoundingClientRect();
  return [box.left + scrollX + box.width / 2, box.top + scrollY + box.height / 2];
}

const at = ([x, y], scale = 1) => `translate(${x - 6}px, ${y - 6}px) scale(${scale})`;

function shown(mark, frames, options) {
  find("sky").append(mark);
  mark.animate(frames, { fill: "both", easing: "ease-in-out", ...options }).finished.finally(
    () => mark.remove(),
  );
}

function fly(what, from, to, wait) {
  const spread = () => (Math.random() - 0.5) * 46;
  const middle = [(from[0] + to[0]) / 2 + spread(), (from[1] + to[1]) / 2 - 46 + spread()];
  shown(
    make("span", { class: `flight ${what}` }),
    [
      { transform: at(from, 0.2), opacity: 0 },
      { transform: at(from), opacity: 1, offset: 0.1 },
      { transform: at(middle, 1.15), offset: 0.5 },
      { transform: at(to), opacity: 1, offset: 0.9 },
      { transform: at(to, 0.2), opacity: 0 },
    ],
    { duration: FLIGHT_MS, delay: wait },
  );
}

function tally(card, text, wait) {
  const [x, y] = centre(card);
  const from = [x + 18, y - 14];
  shown(
    make("span", { class: "tally" }, text),
    [
      { transform: at(from), opacity: 0 },
      { transform: at([from[0], from[1] - 12]), opacity: 1, offset: 0.3 },
      { transform: at([from[0], from[1] - 30]), opacity: 0 },
    ],
    { duration: 1600, delay: wait },
  );
}

// `many` uids have left one card for another; either may not be shown.
export function show(what, many, from, to) {
  if (calm.matches || document.hidden) return;
  const flies = from && to && from !== to;
  if (flies) {
    const dots = Math.min(many, MOST);
    for (let dot = 0; dot < dots; dot += 1) fly(what, centre(from), centre(to), dot * 60);
    tally(from, `−${many}`, 0);
  }
  if (what === "removed") to && tally(to, `−${many}`, 0);
  else if (to) tally(to, `+${many}`, flies ? FLIGHT_MS * 0.8 : 0);
}
