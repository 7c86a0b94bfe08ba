// The built-in page: reads the lookup API of this server and shows a bundle, its ages, its changes, its fields' origins.
// Whatever a bundle holds is put in as text; nothing of it becomes markup.

import { Problem, ask, forgetKey, giveKey, givenKey, sentence } from "./asking.js";
import { differences, isTree } from "./differences.js";
import { $, clock, cut, duration, isNumber, make, text } from "./elements.js";
import { originOf, placeOf } from "./origins.js";

const READ_MS = 1000; // while the page is looked at; a server is asked no more often, whatever comes
const READ_SHARE = 20; // and at most this part of the time is spent on reading: a slow answer is asked for less often
const LARGE_CHARACTERS = 200_000;
const TICK_MS = 250;
const WAIT_MS_MAX = 15_000;
const BUDGET_MS = 2000; // a person waits longer than an orchestrator
const VERSIONS_MAX = 50;
const CHANGES_MAX = 40;
const OPEN_FIELDS_MAX = 40;
const OPEN_ITEMS_MAX = 5;
const HITS = 10;

const MEANINGS = {
  fresh: "Every source's age is within the limit.",
  stale: "The age of a source is over the limit, or nobody knows it.",
  partial: "Linked sections did not come in time and are left out.",
  fallback: "The context's default, since there is no bundle or the store is away.",
  missing: "There is no bundle with this key.",
};
const RUNGS = {
  near: "near cache",
  store: "Redis",
  replica: "Redis replica",
  last_known: "last known",
  default: "default",
};
const TONES = { fresh: "good", stale: "near", partial: "near", fallback: "near", missing: "bad" };

const badge = (status) => make("span", { class: `status ${TONES[status] ?? ""}` }, status);
// Names, and numbers of items from 1.
const pathOf = (at) => JSON.stringify(at);
const lineagePath = (at) => at.reduce((path, step) => (typeof step === "number" ? `${path}[${step - 1}]` : path ? `${path}.${step}` : step), "");

const view = {
  contexts: [],
  context: null, // its entry of the list
  key: null,
  origins: new Map(), // path → where it comes from
  places: new Map(), // path of a section → how its rows come in
  answer: null,
  readAt: 0, // performance.now() of the answer
  seen: undefined, // the bundle that the next one is compared with; null where there was none
  open: new Map(), // path in the tree → whether a person opened or closed it
  told: new Set(), // paths in the tree whose origin is shown
  origin: new Map(), // path in the tree → draws its origin anew
  rows: new Map(), // path as lineage writes it → the row that a value came from
  rowsOf: null, // the hash of the bundle that those are of
  live: true,
  failures: 0,
};
let timer = 0;
let asking = null; // all that is asked for the place that is shown; ends with it

// ---- where we are: #context/key or #context?text ----

function place() {
  const hash = location.hash.slice(1);
  const [, context, sign, rest] = /^([^/?]*)([/?]?)(.*)$/su.exec(hash);
  try {
    return { context: decodeURIComponent(context), way: sign === "?" ? "text" : "key", wanted: decodeURIComponent(rest) };
  } catch {
    return { context: "", way: "key", wanted: "" };
  }
}

// As readable as an address may be: what most keys are made of stays as it is.
const written = (text) => encodeURIComponent(text).replaceAll("%2F", "/").replaceAll("%7C", "|").replaceAll("%3A", ":");
const linkTo = (context, way, wanted) => `#${encodeURIComponent(context)}${way === "text" ? "?" : "/"}${written(wanted)}`;

async function go() {
  stop();
  asking = new AbortController();
  const { signal } = asking;
  say(null);
  for (const id of ["start", "hits", "found", "credential"]) $(id).hidden = true;
  $("forget").hidden = givenKey() === null;
  try {
    await list(signal);
    const { context, way, wanted } = place();
    const known = view.contexts.find((one) => one.context === context);
    fill(known ?? view.contexts[0], way, wanted);
    if (!known || wanted === "") {
      if (context !== "" && !known) say(`No context ${context} is served here.`);
      return start();
    }
    document.title = `${wanted} · ${context} · ctxpipe`;
    await (way === "text" ? search(known, wanted, signal) : show(known, wanted, signal));
  } catch (error) {
    told(error);
  }
}

async function list(signal) {
  const { answer } = await ask("", { signal });
  view.contexts = answer.contexts;
  $("ask").hidden = false;
  $("context").replaceChildren(...answer.contexts.map((one) => make("option", { value: one.context }, one.context)));
}

function fill(context, way, wanted) {
  const searches = context?.space !== undefined;
  if (context) $("context").value = context.context;
  $("way-field").hidden = !searches;
  $("way").value = searches ? way : "key";
  $("wanted").value = wanted;
  named(context);
}

function named(context) {
  const meaning = $("way").value === "text";
  $("wanted-name").textContent = meaning ? "Text" : `Key${context ? `: ${context.key.join("|")}` : ""}`;
  $("go").textContent = meaning ? "Search" : "Look up";
}

function start() {
  document.title = "ctxpipe";
  const items = view.contexts.map((one) => {
    const choose = make("button", { type: "button", class: "link" }, one.context);
    choose.addEventListener("click", () => {
      fill(one, "key", "");
      $("wanted").focus();
    });
    const facts = `by ${one.key.join("|")} · version ${one.version} · fresh up to ${duration(one.max_age_ms)}`;
    return make("li", {}, choose, " ", make("span", { class: "note" }, facts), make("p", { class: "note" }, one.description));
  });
  const empty = make("p", { class: "note" }, "No context is served, or none that this credential may read.");
  $("start").replaceChildren(make("h2", {}, "Contexts"), items.length ? make("ul", {}, ...items) : empty);
  $("start").hidden = false;
}

function say(text) {
  $("message").hidden = text === null;
  $("message").textContent = text ?? "";
}

function told(error) {
  if (!(error instanceof Problem)) {
    if (error.name === "AbortError") return;
    throw error;
  }
  if (error.status === 401) {
    stop();
    for (const id of ["ask", "found"]) $(id).hidden = true;
    $("credential").hidden = false;
    say(givenKey() === null ? null : "This API key is not valid here.");
    $("api-key").focus();
    return;
  }
  say(error.message);
}

// ---- search ----

async function search(context, text, signal) {
  const body = { text, k: HITS, bundles: false, budget_ms: BUDGET_MS };
  const { answer } = await ask(`/${encodeURIComponent(context.context)}:search`, { signal, body });
  const items = answer.hits.map((hit) => {
    const link = make("a", { href: linkTo(context.context, "key", hit.key), class: "key-text" }, hit.key);
    const line = make("div", { class: "hit" }, link, badge(hit.answer.status), make("span", { class: "note" }, scored(hit)));
    return make("li", {}, line, hit.passage?.text ? make("p", { class: "note" }, cut(hit.passage.text, 400)) : "");
  });
  const how = `${answer.mode} · space ${answer.space}${answer.degraded ? ` · ${answer.degraded}` : ""}`;
  const found = items.length ? make("ol", {}, ...items) : make("p", {}, "Nothing was found.");
  $("hits").replaceChildren(make("h2", {}, `Nearest to “${text}”`), make("p", { class: "note" }, how), found);
  $("hits").hidden = false;
}

function scored(hit) {
  if (hit.cosine !== null) return `cosine ${hit.cosine.toFixed(3)}`;
  return hit.bm25 !== null ? `BM25 ${hit.bm25.toFixed(2)}` : `score ${hit.score.toFixed(3)}`;
}

// ---- one bundle, read again and again while somebody looks ----

async function show(context, key, signal) {
  Object.assign(view, { context, key, answer: null, seen: undefined, failures: 0 });
  view.open.clear();
  view.rows.clear();
  view.rowsOf = null;
  view.told.clear();
  $("history").replaceChildren();
  await Promise.all([origins(context, signal), read(signal)]);
}

function stop() {
  clearTimeout(timer);
  asking?.abort();
  asking = null;
}

async function origins(context, signal) {
  const { answer } = await ask(`/${encodeURIComponent(context.context)}:fields`, { signal });
  view.origins = new Map(answer.fields.map((one) => [one.path, one]));
  view.places = new Map(answer.sections.map((one) => [one.path, one]));
  if (view.answer) drawBundle(new Set());
}

async function read(signal) {
  clearTimeout(timer);
  const begun = performance.now();
  let wait = READ_MS;
  try {
    // As a batch of one: a missing bundle is an answer here, where a GET would fill the console with 404.
    const path = `/${encodeURIComponent(view.context.context)}:batchGet?budget_ms=${BUDGET_MS}`;
    const { answer, characters } = await ask(path, { signal, body: { keys: [view.key] } });
    const took = performance.now() - begun;
    wait = Math.max(READ_MS, took * READ_SHARE, characters > LARGE_CHARACTERS ? 5 * READ_MS : 0);
    view.readAt = performance.now() - took / 2;
    if (view.failures) say(null);
    view.failures = 0;
    draw(answer.answers[0]);
  } catch (error) {
    if (signal.aborted) return;
    told(error);
    if (!(error instanceof Problem) || (error.status >= 400 && error.status < 500 && error.status !== 429)) return;
    view.failures += 1;
    wait = Math.max(Math.min(WAIT_MS_MAX, READ_MS * 2 ** view.failures), (error.retryS ?? 0) * 1000);
    say(`${error.message} Asking again in ${Math.round(wait / 1000)} s.`);
  }
  if (view.live && !document.hidden && !signal.aborted) timer = setTimeout(() => read(signal), wait);
}

function draw(answer) {
  const before = view.answer;
  view.answer = answer;
  const changed = remember(answer);
  drawHead(answer);
  drawAges(answer);
  // What is the same stays as it is: a person may be reading it, or have selected some of it.
  if (before === null || labels(before) !== labels(answer)) drawBundle(changed);
  tick();
  $("found").hidden = false;
}

const labels = ({ hash, status, left_out: leftOut }) => JSON.stringify([hash, status, leftOut]);

function drawHead(answer) {
  $("name").textContent = `${answer.context} ${answer.key}`;
  const status = badge(answer.status);
  status.id = "status";
  $("status").replaceWith(status);
  $("meaning").textContent = MEANINGS[answer.status] ?? "";
  const facts = [
    ["Answered from", RUNGS[answer.rung] ?? answer.rung],
    ["Spec version", answer.spec_version],
    ["Tokens", answer.tokens],
    ["Embedding", answer.embedding?.state],
    ["Space", answer.embedding ? (answer.embedding.space ?? "none serves yet") : undefined],
    ["Bundle id", answer.id ?? (answer.hash === null ? undefined : "no history is kept")],
    ["Content hash", answer.hash ?? undefined],
    ...Object.entries(answer.position ?? {}).map(([source, token]) => [`Position in ${source}`, token]),
  ];
  const known = facts.filter(([, value]) => value !== undefined && value !== null);
  $("facts").replaceChildren(
    ...known.map(([name, value]) => {
      const shown = make("dd", { title: String(value) }, make("code", {}, String(value)));
      return make("div", {}, make("dt", {}, name), shown);
    }),
  );
  if (answer.embedding?.problem) $("meaning").append(` ${sentence(`Embedding: ${answer.embedding.problem}`)}`);
}

// ---- ages: as of the server's clock, and ticking from there ----

function drawAges(answer) {
  $("limit").textContent = `Fresh up to ${duration(view.context.max_age_ms)}, by the context's spec.`;
  const ofSource = Object.entries(answer.as_of).map(([source, time]) => aged(`source ${source}`, time, "as_of", source));
  const sections = Object.entries(answer.sections);
  const ofSection = sections.map(([path, { as_of: time }]) => aged(path, time, "sections", path));
  $("ages").replaceChildren(...ofSource, ...ofSection);
}

function aged(name, time, kind, path) {
  const told = time === null ? "as of: not known" : `as of ${time.slice(11, 23)} UTC`;
  const parts = [make("span", { class: "of" }, name), make("span", { class: "as-of", title: time ?? "" }, told)];
  return make("div", { class: kind === "sections" ? "inner" : "" }, ...parts, age(kind, path));
}

// It is filled by `tick`, always from the newest answer.
const age = (kind, path) => make("span", { class: "age", "data-kind": kind, "data-path": path }, "…");

function tick() {
  if (view.answer === null) return;
  const now = serverNow();
  const limit = view.context.max_age_ms;
  for (const shown of document.querySelectorAll("[data-kind]")) {
    const found = view.answer[shown.dataset.kind][shown.dataset.path];
    const time = found?.as_of ?? (typeof found === "string" ? found : null);
    const ms = time === null ? null : Math.max(0, now - Date.parse(time));
    shown.textContent = ms === null ? "age unknown" : duration(ms);
    shown.className = `age ${ms === null ? "" : ms > limit ? "bad" : ms > limit / 2 ? "near" : "good"}`;
  }
}

// This machine's clock may be wrong by minutes; the answer's own times and ages say what the server's is.
function serverNow() {
  const { as_of: times, age_ms: ages } = view.answer;
  const source = Object.keys(times).find((name) => times[name] !== null && ages[name] > 0);
  const atRead = source === undefined ? Date.now() - (performance.now() - view.readAt) : Date.parse(times[source]) + ages[source];
  return atRead + (performance.now() - view.readAt);
}

// ---- the bundle as a tree ----

function drawBundle(changed) {
  const focused = document.activeElement?.dataset?.at;
  view.origin.clear();
  const { answer } = view;
  const parts = answer.bundle === null ? [make("p", { class: "note" }, MEANINGS.missing)] : members(answer.bundle, [], [], changed);
  const gone = answer.left_out.map(({ section, reason }) =>
    make("p", { class: "left-out" }, make("strong", {}, section), ` is left out: ${reason}`),
  );
  $("bundle").replaceChildren(...parts, ...gone);
  if (view.told.size) lineage();
  if (focused !== undefined) $("bundle").querySelector(`[data-at="${CSS.escape(focused)}"]`)?.focus();
}

// `at`: the path in this bundle, with numbers of items; `names`: without, as the spec knows it.
function members(value, at, names, changed) {
  return Object.entries(value).map(([name, inner]) => entry(name, inner, [...at, name], [...names, name], changed));
}

function entry(name, value, at, names, changed) {
  if (!isTree(value)) return leaf(name, value, at, names, changed);
  const path = pathOf(at);
  const items = Array.isArray(value) ? value.map((item, number) => [number + 1, item]) : null;
  const size = items ? items.length : Object.keys(value).length;
  const inside = make("div", { class: "inside" });
  const isSection = at.length === names.length; // and not an item of one
  const origin = isSection && view.places.get(names.join("."));
  const fillIn = () => {
    if (inside.childNodes.length) return;
    if (origin) inside.append(placeOf(origin));
    const parts = items
      ? items.map(([number, item]) => entry(String(number), item, [...at, number], names, changed))
      : members(value, at, names, changed);
    inside.append(...parts);
    tick();
  };
  const summary = make("summary", { "data-at": path }, make("span", { class: "name" }, name));
  if (items) summary.append(make("span", { class: "tag" }, `${size} ${size === 1 ? "item" : "items"}`));
  if (isSection && names.join(".") in view.answer.sections) summary.append(age("sections", names.join(".")));
  const details = make("details", {}, summary, inside);
  details.open = view.open.get(path) ?? size <= (items ? OPEN_ITEMS_MAX : OPEN_FIELDS_MAX);
  if (changed.has(path)) summary.classList.add("changed");
  if (details.open) fillIn();
  summary.addEventListener("click", () => view.open.set(path, !details.open));
  details.addEventListener("toggle", fillIn);
  return details;
}

function leaf(name, value, at, names, changed) {
  const path = pathOf(at);
  const kind = value === null ? "null" : typeof value === "string" ? "string" : isNumber(value) ? "number" : "other";
  const shown = make("span", { class: `value ${kind}` }, text(value));
  const row = make("button", { type: "button", class: "row", "data-at": path }, make("span", { class: "name" }, name), shown);
  if (changed.has(path)) row.classList.add("changed");
  const told = make("dl", { class: "origin" });
  const open = () => {
    const shows = view.told.has(path);
    row.setAttribute("aria-expanded", String(shows));
    told.hidden = !shows;
    if (shows) told.replaceChildren(...originOf(view, names.join("."), lineagePath(at)));
  };
  view.origin.set(path, open);
  row.addEventListener("click", () => {
    if (!view.told.delete(path)) view.told.add(path);
    open();
    lineage();
  });
  open();
  return make("div", {}, row, told);
}

// Asked for with the first field that a person opens, once for each version that they see.
async function lineage() {
  const { hash, id, status } = view.answer;
  if (hash === null || status === "missing" || status === "fallback" || view.rowsOf === hash) return;
  view.rowsOf = hash;
  const path = id ? `:lineageById/${encodeURIComponent(id)}` : `:lineage/${encodeURIComponent(view.key)}`;
  try {
    const { answer } = await ask(`/${encodeURIComponent(view.context.context)}${path}`, { signal: asking?.signal });
    if (view.rowsOf !== hash) return;
    view.rows = new Map(answer.fields.map((field) => [field.path, field]));
  } catch (error) {
    if (!(error instanceof Problem) && error.name !== "AbortError") throw error;
    return; // what the spec says of the field is shown all the same
  }
  for (const draw of view.origin.values()) draw();
}

// ---- changes ----

// The paths that changed since the answer before.
function remember(answer) {
  // Without the store nobody knows the bundle, and without its late sections it is no version of its own.
  const unknown = answer.status === "fallback" && Object.values(answer.as_of).every((time) => time === null);
  if (unknown || answer.status === "partial") return new Set();
  const before = view.seen;
  view.seen = answer.status === "missing" || answer.status === "fallback" ? null : answer.bundle;
  if (before === undefined) {
    $("since").textContent = `Since ${clock()}, read every second; what changes in between is shown as one.`;
    return new Set();
  }
  const changes = [...differences(before, view.seen, [])];
  if (!changes.length) return new Set();
  $("history").prepend(version(answer, changes));
  while ($("history").childNodes.length > VERSIONS_MAX) $("history").lastChild.remove();
  return new Set(changes.map(({ at }) => pathOf(at)));
}

function version(answer, changes) {
  const id = answer.id ?? answer.hash ?? "no bundle";
  const when = make("div", { class: "when" }, make("time", {}, clock()), make("code", { class: "id", title: id }, id));
  const shown = changes.slice(0, CHANGES_MAX).map(change);
  const more = changes.length - shown.length;
  return make("li", {}, when, ...shown, more > 0 ? make("p", { class: "note" }, `and ${more} more`) : "");
}

function change({ at, before, after }) {
  const path = make("span", { class: "path" }, at.length ? at.join(".") : "bundle");
  const old = before === undefined ? "" : make("del", {}, cut(text(before), 300));
  const now = after === undefined ? "" : make("ins", {}, cut(text(after), 300));
  return make("div", { class: "change" }, path, old, before !== undefined && after !== undefined ? " → " : "", now);
}

// ---- what a person does ----

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const target = linkTo($("context").value, $("way").value, $("wanted").value.trim());
  if (location.hash === target) go();
  else location.hash = target;
});
$("context").addEventListener("change", () => {
  const chosen = view.contexts.find((one) => one.context === $("context").value);
  fill(chosen, $("way").value, $("wanted").value);
});
$("way").addEventListener("change", () => named(view.contexts.find((one) => one.context === $("context").value)));
$("credential").addEventListener("submit", (event) => {
  event.preventDefault();
  giveKey($("api-key").value.trim());
  $("api-key").value = "";
  go();
});
$("forget").addEventListener("click", () => {
  forgetKey();
  go();
});
$("live").addEventListener("click", () => {
  view.live = !view.live;
  $("live").setAttribute("aria-pressed", String(view.live));
  $("live").textContent = view.live ? "Live" : "Paused";
  if (view.live && asking) read(asking.signal);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && view.live && asking) read(asking.signal);
});
addEventListener("hashchange", go);
setInterval(tick, TICK_MS);
go();
