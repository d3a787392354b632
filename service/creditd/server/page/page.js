"use strict";

const SETS = new URL("v1/credit/shapley", location.href.replace(/[?#].*/, "")).href;
const CHOICES = ["utility", "credit", "advantage"];
const ABOVE = ["sets", "columns", ...CHOICES];
/** What `Client.shapley` takes beside the sets and the choices. */
const CLIENT_OPTIONS = ["rewards", "features", "aggregation", "tokens", "malformed", "expect", "estimator", "incomplete_group", "deterministic"];
const PAUSE_MS = 300;
const WIDTH = 88;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i;
const NOT_FINITE = { nan: "NaN", inf: "Infinity", "+inf": "Infinity", "-inf": "-Infinity",
  infinity: "Infinity", "+infinity": "Infinity", "-infinity": "-Infinity" };

const $ = (id) => document.getElementById(id);
const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);

/** A number as its author wrote it, so that what is sent is what was typed. */
class Literal {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
  valueOf() { return Number(this.text); }
}

const isObject = (value) => typeof value === "object" && value !== null && !(value instanceof Literal);
const isMapping = (value) => isObject(value) && !Array.isArray(value);
const fromJson = (text) => JSON.parse(text, (_, value, context) =>
  typeof value === "number" && context && context.source ? new Literal(context.source) : value);

/** An element; text is only ever text. */
function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/* Lines → sets */

function rewardOf(word) {
  if (word === "null") return null;
  const name = NOT_FINITE[word.toLowerCase()];
  if (name) return new Literal(name);
  if (!NUMBER.test(word)) return undefined;
  return new Literal(JSON_NUMBER.test(word) ? word : String(Number(word)));
}

/** A candidate. Without a reward it is sent without one: whether it needs one is for the service to say. */
function candidateOf(line) {
  const [, word, rest] = line.match(/^(\S+)\s*(.*)$/);
  const reward = rewardOf(word.replace(/[,;:|]$/, ""));
  if (reward === undefined) return { text: line };
  return rest ? { reward, text: rest } : { reward };
}

/** The sets of a text, the lines that they come from, and the lines that say nothing. */
function setsOf(text) {
  const sets = [], faults = [];
  let open = null;
  const begin = (line, fields = {}, members = []) => {
    sets.push({ fields, line, members });
    return sets[sets.length - 1];
  };
  text.split("\n").forEach((raw, line) => {
    const words = raw.trim();
    if (!words) { open = null; return; }
    let value;
    try {
      value = /^[[{]/.test(words) ? fromJson(words) : candidateOf(words);
    } catch (error) {
      faults.push({ line, detail: `the line is not JSON: ${error.message}` });
      return;
    }
    if (Array.isArray(value)) {
      const rows = value.length && value.every(Array.isArray) ? value : [value];
      for (const row of rows) begin(line, {}, row.map((reward) => ({ value: { reward }, line })));
      open = null;
    } else if (has(value, "candidates")) {
      const { candidates, ...fields } = value;
      const listed = Array.isArray(candidates);
      begin(line, listed ? fields : value, listed ? candidates.map((one) => ({ value: one, line })) : null);
      open = null;
    } else {
      open = open || begin(line);
      if (isMapping(value.set) && Object.keys(value).length === 1) Object.assign(open.fields, value.set);
      else open.members.push({ value, line });
    }
  });
  return { sets, faults };
}

/** Sets as the wire wants them. When none names its prompt, all are responses to one. */
function bodiesOf(sets) {
  const named = sets.some((set) => has(set.fields, "group"));
  return sets.map(({ fields, members }) => ({
    ...(named ? {} : { group: "p1" }), ...fields, ...(members ? { candidates: members.map((one) => one.value) } : {}),
  }));
}

/* A whole request → lines */

/** Rows of a ragged column, whichever way it is written. */
function rowsOf(column) {
  if (Array.isArray(column)) return column;
  const splits = column.row_splits.map(Number);
  return splits.slice(1).map((stop, row) => column.values.slice(splits[row], stop));
}

/** Columns as sets. */
function setsOfColumns(columns) {
  const named = Object.entries(columns.named_rewards || {}).map(([name, column]) => [name, rowsOf(column)]);
  const rewards = columns.rewards ? rowsOf(columns.rewards) : null;
  const tables = columns.utilities ? rowsOf(columns.utilities) : null;
  const sizes = rewards || named.length ? (rewards || named[0][1]).map((row) => row.length)
    : columns.row_splits ? columns.row_splits.slice(1).map((stop, row) => stop - columns.row_splits[row])
      : tables.map((row) => Math.round(Math.log2(row.length)));
  const fieldsOfCandidates = { texts: "text", candidate_ids: "id", labels: "label", unions: "union" };
  const fieldsOfSets = { ids: "id", groups: "group", n_tokens: "n_tokens", set_rewards: "set_reward" };
  const matrices = columns.similarities ? rowsOf(columns.similarities) : null;
  let at = 0;
  return sizes.map((size, row) => {
    const candidates = Array.from({ length: size }, (_, place) => {
      const candidate = {}, index = at + place;
      if (rewards) candidate.reward = rewards[row][place];
      if (named.length) candidate.named_rewards = Object.fromEntries(named.map(([name, rows]) => [name, rows[row][place]]));
      for (const [column, field] of Object.entries(fieldsOfCandidates)) if (columns[column]) candidate[field] = columns[column][index];
      for (const field of ["topics", "scores"]) if (columns[field]) candidate[field] = rowsOf(columns[field])[index];
      if (columns.spans) candidate.span = [columns.spans.starts[index], columns.spans.stops[index]];
      return candidate;
    });
    at += size;
    const set = { candidates };
    for (const [column, field] of Object.entries(fieldsOfSets)) if (columns[column]) set[field] = columns[column][row];
    if (tables) set.utilities = tables[row];
    if (matrices) set.similarities = candidates.map((_, place) => matrices[row].slice(place * size, (place + 1) * size));
    return set;
  });
}

function lineOf(candidate) {
  const names = isMapping(candidate) ? Object.keys(candidate) : [];
  const plain = names.length && names.every((name) => name === "reward" || name === "text") && has(candidate, "reward");
  const text = plain ? candidate.text : undefined;
  const sayable = text === undefined || (typeof text === "string" && text && text === text.trim() && !/[\n\r]/.test(text));
  if (plain && sayable && !isObject(candidate.reward) && typeof candidate.reward !== "string") {
    return text === undefined ? `${candidate.reward}` : `${candidate.reward}  ${text}`;
  }
  return flat(candidate, JSON_WORDS);
}

function linesOf(sets) {
  const groups = new Set(sets.map((set) => (has(set, "group") ? set.group : null)));
  const usual = groups.size === 1 && (groups.has("p1") || (sets.length === 1 && groups.has(null)));
  return sets.map(({ candidates, group = null, ...fields }) => {
    const own = usual ? fields : { group, ...fields };
    const head = Object.keys(own).length ? [flat({ set: own }, JSON_WORDS)] : [];
    return [...head, ...candidates.map(lineOf)].join("\n");
  }).join("\n\n");
}

/** Take a request apart into lines and choices; false if the text is not one. */
function takenApart(text) {
  let request, lines;
  try {
    request = fromJson(text);
    if (!isMapping(request) || !(request.sets || request.columns)) return false;
    lines = linesOf(request.sets || setsOfColumns(request.columns));
  } catch {
    return false; // Lines of JSON, or a request that is not whole yet: the lines say what is wrong.
  }
  const { sets, columns, ...options } = request;
  const usual = { utility: "max", credit: "shapley", advantage: "pooled" };
  for (const name of CHOICES) {
    $(name).value = flat(has(options, name) ? options[name] : { type: usual[name] }, JSON_WORDS);
    delete options[name];
  }
  $("more").value = Object.keys(options).length ? flat(options, JSON_WORDS) : "";
  const area = $("text");
  area.focus();
  area.select();
  // Typed in by the browser, so that its undo brings back what stood here.
  if (!document.execCommand("insertText", false, lines)) area.value = lines;
  area.setSelectionRange(0, 0);
  return true;
}

/* The request, written as JSON and as Python */

const JSON_WORDS = { true: "true", false: "false", null: "null", number: (text) => text };
const PYTHON_WORDS = { true: "True", false: "False", null: "None",
  number: (text) => (/^-?[NI]/.test(text) ? `float("${text.toLowerCase()}")` : text) };

function flat(value, words) {
  if (value === null || typeof value === "boolean") return words[value];
  if (typeof value === "string") return JSON.stringify(value);
  if (!isObject(value)) return words.number(String(value));
  if (Array.isArray(value)) return `[${value.map((one) => flat(one, words)).join(", ")}]`;
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${flat(one, words)}`).join(", ")}}`;
}

/** On one line where that is short, else an entry per line. */
function written(value, words, indent = "") {
  const line = flat(value, words);
  if (!isObject(value) || line.length + indent.length <= WIDTH) return line;
  const inner = `${indent}  `;
  const entries = Array.isArray(value) ? value.map((one) => inner + written(one, words, inner))
    : Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${written(one, words, inner)}`);
  return `${line[0]}\n${entries.join(",\n")}\n${indent}${line.at(-1)}`;
}

/** The body goes in by a here-document: nothing in it needs quoting, and its length has no limit. */
function curlOf(text) {
  const key = apiKey ? ` -H "Authorization: Bearer $CREDITD_API_KEY"` : "";
  return `curl -s '${SETS}' \\\n  -H 'Content-Type: application/json'${key} --data-binary @- <<'JSON'\n${text}\nJSON\n`;
}

function pythonOf({ sets, ...options }) {
  const inner = "        ";
  const taken = Object.entries(options).filter(([name]) => CHOICES.includes(name) || CLIENT_OPTIONS.includes(name));
  const left = Object.keys(options).filter((name) => !taken.some(([one]) => one === name));
  const values = taken.map(([name, value]) => `${inner}${name}=${written(value, PYTHON_WORDS, inner)},\n`);
  return [
    "from creditd.client import Client\n\n",
    ...left.map((name) => `# The client has no argument for ${JSON.stringify(name)}.\n`),
    apiKey ? "# The client reads the key from CREDITD_API_KEY.\n" : "",
    `with Client(${JSON.stringify(SETS.replace(/\/v1\/credit\/shapley$/, ""))}) as client:\n`,
    "    result = client.shapley(\n",
    `${inner}${written(sets, PYTHON_WORDS, inner)},\n`, ...values,
    `${inner}on_item_error="return",\n    )\n\n`,
    "for credits, advantages in zip(result.credits, result.advantages):\n",
    "    print(credits.tolist(), advantages.tolist())\n",
  ].join("");
}

/* What is asked */

/** The request as it stands, or what keeps it from being one. */
function reading() {
  const { sets, faults } = setsOf($("text").value);
  const body = { sets: bodiesOf(sets) };
  for (const name of [...CHOICES, "more"]) {
    const text = $(name).value.trim();
    if (!text) continue;
    try {
      const value = fromJson(text);
      if (name !== "more") body[name] = value;
      else if (isMapping(value) && !ABOVE.some((one) => has(value, one))) Object.assign(body, value);
      else faults.push({ field: name, detail: `expected an object without ${ABOVE.join(", ")}: they stand above` });
    } catch (error) {
      faults.push({ field: name, detail: `this is not JSON: ${error.message}` });
    }
  }
  return { sets, faults, body };
}

/** A complaint of the service at its place on the page, with as much of its pointer as the place does not tell. */
function complaintOf({ pointer, detail }, { sets, body }) {
  const [, root, row, part, member, ...rest] = pointer.split("/");
  if (root === "sets" && sets[row]) {
    const { line, members } = sets[row];
    const found = part === "candidates" && members ? members[member] : undefined;
    const field = (found ? rest : [part, member, ...rest]).filter((one) => one !== undefined).join("/");
    return { line: found ? found.line : line, detail: !field || detail.startsWith(field) ? detail : `${field}: ${detail}` };
  }
  const field = CHOICES.includes(root) ? root : has(body, root) ? "more" : undefined;
  return { field, detail: pointer ? `${pointer}: ${detail}` : detail };
}

let apiKey = "", lastRead = null, marked = new Map(), running = null, timer = 0, catalogue = new Map();

function say(id, text) { $(id).textContent = text; }

/** Put each complaint where it belongs: on its line, under its field, or above the results. */
function complain(faults) {
  const ofLine = new Map(), ofField = new Map(), rest = [];
  for (const { line, field, detail } of faults) {
    const [map, key] = line !== undefined ? [ofLine, line] : [ofField, field];
    if (line === undefined && !field) rest.push(detail);
    else map.set(key, map.has(key) ? `${map.get(key)}; ${detail}` : detail);
  }
  for (const name of [...CHOICES, "more"]) {
    say(`${name}-says`, ofField.get(name) || "");
    $(name).setAttribute("aria-invalid", ofField.has(name));
  }
  $("text").setAttribute("aria-invalid", ofLine.size > 0);
  showLines(ofLine);
  say("failure", rest.join("; "));
}

/** Line numbers, and complaints beside their lines; below as well where one of them does not fit. */
function showLines(complaints) {
  const area = $("text"), lines = area.value.split("\n");
  marked = complaints;
  $("numbers").replaceChildren(...lines.map((_, line) =>
    element("div", { textContent: line + 1, className: complaints.has(line) ? "wrong" : "" })));
  $("ghosts").replaceChildren(...lines.map((text, line) => complaints.has(line)
    ? element("div", { className: "wrong" }, text, element("em", { textContent: complaints.get(line) }))
    : element("div", { textContent: text })));
  $("problems").replaceChildren(...[...complaints].sort(([a], [b]) => a - b).map(([line, detail]) => {
    const go = element("button", { type: "button", textContent: `Line ${line + 1}` });
    go.addEventListener("click", () => {
      const start = lines.slice(0, line).reduce((sum, text) => sum + text.length + 1, 0);
      area.focus();
      area.setSelectionRange(start, start + lines[line].length);
    });
    return element("li", {}, go, detail);
  }));
  const notes = [...$("ghosts").querySelectorAll("em")];
  for (const note of notes) note.style.maxWidth = `${Math.max(0, area.clientWidth - note.offsetLeft - 12)}px`;
  $("problems").classList.toggle("beside", notes.every((note) => note.scrollWidth <= note.clientWidth));
  follow();
}

function follow() {
  const { scrollLeft, scrollTop } = $("text");
  $("numbers").style.transform = `translateY(${-scrollTop}px)`;
  $("ghosts").style.transform = `translate(${-scrollLeft}px, ${-scrollTop}px)`;
}

/** Read the page and rewrite what follows from it at once; ask the service after a pause. */
function changed() {
  clearTimeout(timer);
  if (running) running.abort();
  lastRead = reading();
  const { faults, body } = lastRead;
  complain(faults);
  for (const name of CHOICES) follows(name, body[name]);
  const text = written(body, JSON_WORDS);
  say("curl", faults.length ? "" : curlOf(text));
  say("python", faults.length ? "" : pythonOf(body));
  for (const button of document.querySelectorAll("[data-copies]")) button.disabled = faults.length > 0;
  $("results").classList.add("old");
  if (faults.length) say("status", "Not asked: see what is marked.");
  else if (!body.sets.length) say("status", "Nothing to share out yet.");
  else timer = setTimeout(() => ask(text), PAUSE_MS);
}

/** The menu and the description of a choice say what its JSON says. */
function follows(name, value) {
  const type = isMapping(value) ? value.type : value;
  const menu = $(`${name}-type`);
  menu.value = [...menu.options].some((option) => option.value === type) ? type : "";
  if (name !== "utility") return;
  const entry = catalogue.get(type);
  const about = entry ? [`v(S) = ${entry.formula}. v(∅): ${entry.empty}. Needs ${entry.needs.join(", ")}. `
    + `Leave-one-out climbs ${entry.objective}.`] : [];
  $("utility-about").replaceChildren(...about.flatMap((text) => text.split("`").map((part, place) =>
    place % 2 ? element("code", { textContent: part }) : part)));
  $("example").hidden = !entry;
}

async function fetched(path, options = {}) {
  const headers = { ...options.headers, ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}) };
  const response = await fetch(path, { cache: "no-store", ...options, headers });
  const answer = await response.json().catch(() => ({ detail: `got status ${response.status} without JSON` }));
  if (response.status === 401) {
    $("key-form").hidden = false;
    say("key-says", answer.detail);
  }
  return { ok: response.ok, answer };
}

async function ask(text) {
  const mine = running = new AbortController(), read = lastRead, began = performance.now();
  say("status", "Asking …");
  try {
    const { ok, answer } = await fetched(SETS, { method: "POST", body: text, signal: mine.signal,
      headers: { "Content-Type": "application/json" } });
    if (mine !== running || mine.signal.aborted) return;
    const ms = performance.now() - began;
    if (!ok) return refused(answer, read);
    const results = answer.sets || [];
    complain(results.filter((set) => set.error).map((set) => complaintOf(set.error, read)));
    show(results, read);
    const count = read.sets.reduce((sum, set) => sum + (set.members ? set.members.length : 0), 0);
    say("status", `${plural(results.length, "response")}, ${plural(count, "candidate")}, ${ms.toFixed(0)} ms, request ${answer.request_id}`);
  } catch (error) {
    if (mine !== running || mine.signal.aborted) return;
    say("status", "No answer.");
    say("failure", `The service did not answer: ${error.message}`);
  }
}

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A request without an answer: every offence at its place, in the words of the service. */
function refused(answer, read) {
  const faults = (answer.errors || []).map((error) => complaintOf(error, read));
  complain(faults.length ? faults : [{ detail: answer.detail }]);
  $("results").replaceChildren();
  say("status", `Refused${answer.code ? `: ${answer.code}` : ""}${answer.request_id ? `, request ${answer.request_id}` : ""}`);
}

/* What comes back */

function figure(value) {
  if (value === null || value === undefined) return "—";
  const size = Math.abs(value);
  const text = size === 0 ? "0" : size < 1e-4 || size >= 1e6 ? value.toExponential(1) : value.toFixed(size < 100 ? 4 : 1);
  return text.replaceAll("-", "−");
}

function number(value) {
  return element("span", { className: "number", textContent: figure(value), title: String(value ?? "") });
}

/** One scale for all sets, with room on both sides of zero as it is needed. */
function scaleOf(rows) {
  const values = rows.flat().filter((value) => value !== null);
  const least = Math.min(0, ...extent(values)), most = Math.max(0, ...extent(values));
  const span = most - least || 1;
  return { zero: (100 * -least) / span, per: 100 / span };
}

const extent = (values) => values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [0, 0]);

function bar(value, { zero, per }) {
  const track = element("span", { className: "bar" });
  track.setAttribute("aria-hidden", "true");
  track.style.setProperty("--zero", `${zero}%`);
  if (value) {
    const fill = element("i", { className: value < 0 ? "minus" : "" });
    fill.style.width = `${Math.abs(value) * per}%`;
    fill.style.left = `${value < 0 ? zero - Math.abs(value) * per : zero}%`;
    track.append(fill);
  }
  return element("td", {}, element("span", { className: "cell" }, track, number(value)));
}

function ledgerOf(set) {
  const flags = set.flags.length ? set.flags.map((flag) => element("mark", { textContent: flag })) : ["none"];
  const entries = [["v(∅)", number(set.utility_empty)], ["v(N)", number(set.utility_grand)], ["Σ credit", number(set.credit_sum)],
    ["gap", number(set.gap)], ["set advantage", number(set.set_advantage)],
    ["method", `${set.method}${set.exact ? ", exact" : ""}`], ["flags", ...flags]];
  return element("dl", {}, ...entries.map(([name, ...values]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", {}, ...values))));
}

function cardOf(set, row, read, scales) {
  const { line, members } = read.sets[row], last = members && members.length ? members[members.length - 1].line : line;
  const where = last > line ? `lines ${line + 1} to ${last + 1}` : `line ${line + 1}`;
  const group = read.body.sets[row].group;
  const about = `${where}${group === null || group === undefined ? "" : `, prompt ${group}`}`;
  const title = element("h3", {}, `Response ${row + 1} `, element("span", { textContent: about }));
  if (set.error) {
    return element("article", {}, title, element("p", { className: "says", textContent: `${set.error.code}: ${set.error.detail}` }));
  }
  const rows = members.map(({ value }, place) => {
    const name = element("td", { title: value.text === undefined ? "" : String(value.text) });
    if (has(value, "reward")) name.append(element("span", { className: "reward number", textContent: `${value.reward}` }));
    const words = value.text ?? value.label ?? value.id ?? (has(value, "reward") ? `candidate ${place + 1}` : flat(value, JSON_WORDS));
    name.append(String(words));
    return element("tr", {}, name, bar(set.credits[place], scales.credit), bar(set.advantages[place], scales.advantage));
  });
  const heads = ["Candidate", "Credit", "Advantage"].map((textContent) => element("th", { textContent, scope: "col" }));
  return element("article", {}, title, element("table", {}, element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows)), ledgerOf(set));
}

function show(results, read) {
  const answered = results.filter((set) => !set.error);
  const scales = { credit: scaleOf(answered.map((set) => set.credits)), advantage: scaleOf(answered.map((set) => set.advantages)) };
  $("results").replaceChildren(...results.map((set, row) => cardOf(set, row, read, scales)));
  $("results").classList.remove("old");
}

/* Choices and the first look at the service */

/** A choice of a type, with parameters where it cannot be without. */
function usual(name, type) {
  if (name === "utility" && catalogue.has(type)) return catalogue.get(type).example.utility;
  if (name !== "credit") return { type };
  const largest = Math.max(1, ...lastRead.sets.map((set) => (set.members || []).length));
  const needed = { max_at_k: { k: 2 }, mixture: { weights: Array(largest).fill(1) },
    blend: { from: "shapley", to: "leave_one_out", position: 0.5 } };
  return { type, ...needed[type] };
}

async function begin() {
  say("status", "Asking what the service does …");
  try {
    const info = await fetched("v1/info"), utilities = info.ok ? await fetched("v1/utilities") : info;
    if (!utilities.ok) {
      say("status", "Not ready.");
      if ($("key-form").hidden) say("failure", utilities.answer.detail);
      return;
    }
    const models = await fetched("v1/models");
    $("key-form").hidden = !apiKey;
    say("key-says", "");
    showModels(models.ok ? models.answer.models : []);
    catalogue = new Map(utilities.answer.utilities.map((entry) => [entry.name, entry]));
    const { service, credits, advantages } = info.answer;
    for (const [name, types] of [["utility", info.answer.utilities], ["credit", credits], ["advantage", advantages]]) {
      $(`${name}-type`).replaceChildren(...types.map((type) => element("option", { textContent: type, value: type })));
    }
    say("service", `version ${service.version}, methods ${service.methods}`);
    changed();
  } catch (error) {
    say("status", "No answer.");
    say("failure", `The service did not answer: ${error.message}`);
  }
}

/** Copy text; where the page is not on a secure address, through the selection. */
async function copied(id) {
  const text = $(id).textContent;
  if (window.isSecureContext) return navigator.clipboard.writeText(text);
  getSelection().selectAllChildren($(id));
  if (!document.execCommand("copy")) throw new Error("the browser did not copy");
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    button.textContent = await copied(button.dataset.copies).then(() => "Copied", () => "Not copied: select it");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
for (const name of CHOICES) {
  $(`${name}-type`).addEventListener("change", (event) => {
    $(name).value = flat(usual(name, event.target.value), JSON_WORDS);
    changed();
  });
}
for (const name of [...CHOICES, "more"]) $(name).addEventListener("input", changed);
$("text").addEventListener("input", () => { takenApart($("text").value); changed(); });
$("text").addEventListener("scroll", follow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("example").addEventListener("click", () => {
  takenApart(JSON.stringify(catalogue.get($("utility-type").value).example));
  changed();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!catalogue.size) return void begin();
  changed();
  if (timer && !lastRead.faults.length && lastRead.sets.length) {
    clearTimeout(timer);
    ask(written(lastRead.body, JSON_WORDS));
  }
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = $("key").value.trim();
  begin();
});
addEventListener("resize", () => showLines(marked));
lastRead = reading();
begin();
