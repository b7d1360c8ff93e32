// Asks for the state each second, and shows it.
import { show as flight } from "./flights.js";
import { count, find, make, number, say, span, time } from "./parts.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 40000; // longer than the server waits for the router
const SAMPLES = 60;
const ROWS = 80;
const MANY_PODS = 32;
const MEANING = {
  READY: "serves, and takes new uids",
  DENY_NEW: "serves those it has, and takes no new uids",
  SHUTDOWN: "has been emptied",
  gone: "its life has ended: its uids go to others",
  resigned: "left in order",
};

const seen = { chosen: null, services: [], router: 0, count: 0, first: true };
const cards = new Map(); // "service/pod" → its card, and what it showed before
const rows = []; // newest first
const recent = []; // [seconds, placed, moved]

// The service that is shown, null for all: the one that was chosen, or the only one there is.
function shown() {
  if (seen.services.includes(seen.chosen)) return seen.chosen;
  return seen.services.length === 1 ? seen.services[0] : null;
}

async function ask(name, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null);
  const answer = await fetch(`${name}?${new URLSearchParams(given)}`, {
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// Pods.

const stateOf = (pod) => (pod.life === "alive" ? pod.state : pod.life);

function newCard(service, pod) {
  const card = {
    loads: [],
    badge: make("span", { class: "badge" }),
    load: make("b"),
    bar: make("i"),
    line: document.createElementNS("http://www.w3.org/2000/svg", "path"),
    facts: ["uids", "age", "heartbeat", "node"].map((name) => [name, make("dd")]),
  };
  const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({
    class: "spark", viewBox: `0 0 ${SAMPLES - 1} 26`, preserveAspectRatio: "none",
    "aria-hidden": "true",
  })) spark.setAttribute(name, value);
  spark.append(card.line);
  card.element = make(
    "li",
    {},
    make("header", {}, make("h4", {}, "pod ", make("b", {}, `${pod.pod}`)), card.badge),
    make("div", { class: "figure" }, card.load, "load"),
    make("div", { class: "track" }, card.bar),
    spark,
    make("dl", { class: "facts" }, ...card.facts.flatMap(([name, dd]) => [make("dt", {}, name), dd])),
  );
  cards.set(`${service}/${pod.pod}`, card);
  return card;
}

function path(loads, most) {
  const first = SAMPLES - loads.length;
  const points = loads.map((load, x) => `${first + x} ${(24 - (22 * load) / most).toFixed(2)}`);
  return points.length > 1 ? `M${points.join("L")}` : "";
}

function showPod(service, pod, most, redisUs) {
  const card = cards.get(`${service}/${pod.pod}`) ?? newCard(service, pod);
  const state = stateOf(pod);
  const load = pod.life === "alive" ? pod.load : 0;
  card.loads = [...card.loads, load].slice(-SAMPLES);
  const found = card.element.classList.contains("found");
  card.element.className = `pod ${state}${found ? " found" : ""}`;
  card.badge.title = MEANING[state] ?? "";
  say(card.badge, state);
  say(card.load, number(load));
  card.bar.style.width = `${(100 * load) / most}%`;
  card.line.setAttribute("d", path(card.loads, most));
  const alive = pod.life === "alive";
  const facts = [
    number(pod.links),
    alive ? span((redisUs - pod.incarnation) / 1e6) : "–",
    alive ? `${span(pod.heartbeat_age_s)} ago` : "–",
    pod.node.slice(0, 8),
  ];
  card.facts.forEach(([, dd], index) => say(dd, facts[index]));
  return card.element;
}

// Only what has changed is put in anew: nobody loses the place where they read.
function inOrder(parent, children) {
  const same = children.length === parent.children.length
    && children.every((child, index) => child === parent.children[index]);
  if (!same) parent.replaceChildren(...children);
}

const grids = new Map();

function gridOf(service) {
  if (!grids.has(service)) {
    const id = `grid-${grids.size}`;
    const grid = make("ul", { class: "grid", "aria-labelledby": id });
    grids.set(service, [make("div", {}, make("h3", { id }, service), grid), grid]);
  }
  return grids.get(service);
}

function showPods(state) {
  const services = Object.entries(state.pods);
  const all = services.flatMap(([, pods]) => pods);
  const most = Math.max(1, ...all.filter((pod) => pod.life === "alive").map((pod) => pod.load));
  find("pods").classList.toggle("many", all.length > MANY_PODS);
  inOrder(find("pods"), services.map(([service, pods]) => {
    const [block, grid] = gridOf(service);
    inOrder(grid, pods.map((pod) => showPod(service, pod, most, state.time_us)));
    return block;
  }));
  const alive = all.filter((pod) => pod.life === "alive" && pod.state !== "SHUTDOWN");
  say(find("sum-pods"), `${alive.length}`);
  say(find("sum-links"), number(alive.reduce((sum, pod) => sum + pod.links, 0)));
}

// Decisions.

const verb = (decision) => decision.what.split(" ")[0];

function grouped(decisions) {
  const groups = new Map();
  for (const decision of decisions) {
    const { service, source, pod, uid, what } = decision;
    const second = Math.floor(decision.at);
    const placed = verb(decision) === "placed";
    const key = JSON.stringify([second, service, what, placed ? null : [source, pod]]);
    if (!groups.has(key)) {
      groups.set(key, { at: decision.at, service, what, verb: verb(decision), pods: new Map(), uids: [], source });
    }
    const group = groups.get(key);
    group.uids.push(uid);
    group.pods.set(pod, (group.pods.get(pod) ?? 0) + 1);
  }
  return [...groups.values()];
}

const uidButton = (uid) =>
  make("button", { class: "uid", type: "button", onclick: () => explain(uid) }, uid);

function whereto(group) {
  const pods = [...group.pods.keys()];
  const to = pods.length > 3 ? `${pods.length} pods` : `pod ${pods.sort((a, b) => a - b).join(", ")}`;
  if (group.source === null) return to;
  if (group.verb === "removed") return `pod ${group.source}`;
  return `pod ${group.source} → ${group.pods.has(group.source) ? "its next life" : to.slice(4)}`;
}

function row(group) {
  const [first, more] = [group.uids.slice(0, 4), group.uids.length - 4];
  const names = first.flatMap((uid, index) => [index ? ", " : " ", uidButton(uid)]);
  const which = seen.services.length > 1 ? `${group.service} ` : "";
  return make(
    "li",
    { class: group.verb },
    make("span", { class: "time" }, time(group.at)),
    make("span", { class: `what ${group.verb}` }, group.what),
    make("span", { class: "whom" }, `${which}`, make("b", {}, whereto(group)), ...names,
      more > 0 ? ` and ${number(more)} more` : null),
  );
}

const isShown = (group) =>
  [null, group.service].includes(shown())
  && (find("placements").checked || group.verb !== "placed");

function showHistory() {
  const listed = rows.filter(([group]) => isShown(group)).slice(0, ROWS).map(([, made]) => made);
  inOrder(find("history"), listed);
  find("nothing").hidden = listed.length > 0;
}

function fly(group) {
  for (const [pod, many] of group.pods) {
    const card = (index) => cards.get(`${group.service}/${index}`)?.element;
    const from = group.source === null ? null : card(group.source);
    const isSeen = (element) => element?.isConnected ? element : null;
    flight(group.verb, many, isSeen(from), isSeen(card(pod)));
  }
}

function count60(decisions, at) {
  const placed = decisions.filter((one) => verb(one) === "placed").length;
  const moved = decisions.filter((one) => ["moved", "relinked", "set"].includes(verb(one))).length;
  recent.push([at, placed, moved]);
  while (recent[0][0] < at - 60) recent.shift();
  const sum = (index) => recent.reduce((all, one) => all + one[index], 0);
  say(find("sum-placed"), number(sum(1)));
  say(find("sum-moved"), number(sum(2)));
}

function takeIn(decided, at) {
  if (decided === null) return;
  const groups = grouped(decided.decisions);
  rows.unshift(...groups.toReversed().map((group) => [group, row(group)]));
  rows.splice(4 * ROWS);
  const new60 = seen.first ? decided.decisions.filter((one) => one.at > at - 60) : decided.decisions;
  count60(new60, at);
  if (!seen.first) groups.forEach(fly);
  const asked = answered.uid;
  if (!seen.first && decided.decisions.some((one) => one.uid === asked)) explain(asked);
  Object.assign(seen, { router: decided.router, count: decided.count, first: false });
}

// One uid.

const answered = { uid: null };

function linkOf(about) {
  if (!about.link) return "has no link: the next look-up places it";
  const kind = about.link.persistent ? "persistent" : "temporary";
  const age = typeof about.age_s === "number" ? `, set ${span(about.age_s)} ago` : "";
  return `pod ${about.link.pod}, ${kind}, epoch ${about.link.epoch}${age}`;
}

function podOf(pod) {
  const text = `which is ${stateOf(pod)}, load ${number(pod.load)}, ${pod.actor}`;
  return make("p", { class: "quiet" }, text);
}

function aboutOne([service, about]) {
  const steps = about.decisions.toReversed().map((text) => make("li", {}, text));
  return make(
    "div",
    {},
    make("h3", {}, service),
    make("p", {}, linkOf(about)),
    about.pod ? podOf(about.pod) : null,
    steps.length ? make("ol", {}, ...steps) : null,
  );
}

function mark(services) {
  const held = new Set(services.filter(([, one]) => one.link).map(([name, one]) => `${name}/${one.link.pod}`));
  for (const [key, card] of cards) card.element.classList.toggle("found", held.has(key));
}

async function explain(uid) {
  answered.uid = uid;
  find("uid").value = uid;
  try {
    const found = await ask("explain", { uid });
    if (answered.uid !== uid) return; // another was asked for meanwhile
    const services = Object.entries(found.services);
    mark(services);
    const none = make("p", {}, "has no link, and no decision about it is remembered");
    const notice = found.notice ? make("p", { class: "quiet" }, found.notice) : null;
    find("answer").replaceChildren(
      make("h3", {}, uid), ...(services.length ? services.map(aboutOne) : [none]), ...(notice ? [notice] : []),
    );
  } catch (error) {
    find("answer").replaceChildren(make("p", { class: "bad" }, error.message));
  }
}

// Services, the hottest uids, and the round.

function choose(service) {
  seen.chosen = service;
  showHistory();
  round();
}

function showServices(names) {
  seen.services = names;
  const [nav, choices] = [find("services"), names.length > 1 ? [null, ...names] : []];
  if (nav.dataset.names !== names.join()) {
    nav.dataset.names = names.join();
    nav.replaceChildren(...choices.map((name) =>
      make("button", { type: "button", onclick: () => choose(name) }, name ?? "all")));
  }
  [...nav.children].forEach((button, index) =>
    button.setAttribute("aria-pressed", `${choices[index] === shown()}`));
}

function share(part) {
  const bar = make("i");
  bar.style.width = `${Math.min(100, 100 * part)}%`;
  return make("span", { class: "share" }, `${(100 * part).toFixed(1)} %`, make("span", { class: "track" }, bar));
}

function showHottest(hottest) {
  const weighed = hottest.some((one) => one.load !== null);
  const heads = ["uid", "pod", ...(weighed ? ["load"] : []), "time in calls"];
  const cells = (one) => [
    uidButton(one.uid), `${one.pod}`, ...(weighed ? [number(one.load ?? 0)] : []), share(one.call_share),
  ];
  const lines = hottest.map((one) => make("tr", {}, ...cells(one).map((cell) => make("td", {}, cell))));
  const why = shown() === null ? "Choose a service to see them." : "No uid has kept its pod busy lately.";
  const top = make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)));
  find("hot").replaceChildren(
    lines.length ? make("table", {}, top, ...lines) : make("p", { class: "quiet" }, why),
  );
}

function trouble(text) {
  document.body.classList.toggle("stale", text !== "");
  find("trouble").hidden = text === "";
  say(find("trouble"), text);
}

let asking = false;

async function round() {
  if (asking || document.hidden) return;
  asking = true;
  const service = shown();
  try {
    const state = await ask("state", { service, router: seen.router, count: seen.count });
    document.title = `${state.namespace} · ray_route`;
    say(find("namespace"), state.namespace);
    say(find("when"), `live, ${time(state.at)}`);
    showServices(state.services);
    showPods(state);
    takeIn(state.decided, state.at);
    showHistory();
    if (shown() === service) showHottest(state.hottest);
    trouble(state.decided ? "" : "No router runs: pods are shown as the store has them.");
  } catch (error) {
    trouble(`What is shown is old. ${error.message}`);
    if (find("when").textContent.startsWith("live")) say(find("when"), `as of ${find("when").textContent.slice(6)}`);
  } finally {
    asking = false;
  }
}

find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(find("uid").value);
});
find("placements").addEventListener("change", showHistory);
document.addEventListener("visibilitychange", round);
setInterval(round, EVERY_MS);
round();
