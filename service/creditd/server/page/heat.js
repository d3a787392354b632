/* The credit of a completion: the same elements as `creditd explain` writes (creditd.cli.explain.heat_map). */

const MOST_LABELS = 64, MOST_ROWS = 100, SHORT_PROMPT = 400, MOST_OF_A_WHOLE = 1e3, LEVELS = 6, DUST = 1e-12, NONE = "—";
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes; text is only ever text. */
function tag(name, attributes, ...children) {
  const made = name === "svg" || name === "rect" ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const sized = (size, form, digits) => size[form](digits).replace("-", "−");
const figured = (value) => element("span", { className: "number", textContent: figure(value) });

function signed(value) {
  const size = Math.abs(value), sign = value < 0 ? "−" : "+";
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e5) return sign + sized(size, "toExponential", 0);
  return sign + sized(size, "toFixed", size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0);
}

function shareOf(value, whole) {
  if (value === null || whole === null || Math.abs(value) >= MOST_OF_A_WHOLE * Math.abs(whole)) return NONE;
  const percent = (100 * value) / whole;
  return `${percent < 0 ? "−" : ""}${sized(Math.abs(percent), "toFixed", 1)} %`;
}

const fractionOf = (value, most) => (most > 0 ? value / most : 0);

function levelOf(value, most) {
  if (value === null) return "unvalued";
  const step = Math.floor(LEVELS * Math.abs(fractionOf(value, most)) + 0.5);
  return step === 0 ? "even" : `${value > 0 ? "gain" : "loss"}-${step}`;
}

/** What turns the direction of a text, and an arrow for each. */
const TURNS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", ARROWS = "⇢⇠⇜↦↤↥⇉⇇⇒⇐⇔⇑";

/** Control characters as pictures; as many characters as before. */
const visible = (text) => text.replace(/[\0-\x08\x0b-\x1f]/g, (one) => String.fromCharCode(0x2400 + one.charCodeAt(0)))
  .replace(/\x7f/g, "\u2421").replace(/[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/g, (one) => ARROWS[TURNS.indexOf(one)])
  .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");

function inOneLine(text) {
  if (!text) return "·";
  const shown = visible(text).replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return /^ +$/.test(shown) ? "␣".repeat(shown.length) : shown;
}

const largest = (values) => extent(values.map(Math.abs))[1];
const at = (values, number) => (values === null ? null : values[number]);
const rangeOf = ([start, stop]) => (stop - start === 1 ? `${start}` : `${start}–${stop - 1}`);
/** Numbers in lists and objects, each made into another. */
function mapped(value, make) {
  if (value === null) return null;
  if (Array.isArray(value)) return value.map((one) => mapped(one, make));
  return typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([name, one]) => [name, mapped(one, make)])) : make(value);
}

/** An answer as it is shown: with v(P) − v(∅) and the sum of the values; what rounding left is 0 (creditd.cli.explain.dust). */
function withoutDust(answer) {
  const { unit_values, token_rewards, token_advantages, standard_errors, intervals, utility_empty, utility_grand, gap } = answer;
  const { alpha, ...ledger } = answer.ledger;
  const whole = utility_empty === null || utility_grand === null ? null : utility_grand - utility_empty;
  const together = unit_values && unit_values.reduce((sum, value) => sum + value, 0);
  const numbers = { unit_values, token_rewards, token_advantages, standard_errors, intervals, utility_empty, utility_grand, gap,
    ledger, whole, together };
  let most = 0;
  mapped(numbers, (value) => { most = Math.max(most, Math.abs(value)); });
  const kept = mapped(numbers, (value) => (Math.abs(value) < DUST * most ? 0 : value));
  return { ...answer, ...kept, ledger: { ...kept.ledger, alpha } };
}

const spanOf = (name, ...children) => tag("span", { class: name }, ...children);
const factOf = (name, ...words) => tag("div", {}, tag("dt", {}, name), tag("dd", {}, ...words));
const listed = (kind, words, open, ...content) =>
  tag("details", { class: kind, ...(open ? { open: "" } : {}) }, tag("summary", {}, words), ...content);

function unitOf(text, answer, number, most) {
  const value = at(answer.unit_values, number), name = `c0u${number}`;
  const [, before, inner, after] = text.match(/^([ \t\n]*)([^]*?)([ \t\n]*)$/);
  const shade = spanOf(`shade ${levelOf(value, most)}${inner ? "" : " blank"}`, inner);
  if (value !== null && answer.units.length <= MOST_LABELS) shade.append(tag("span", { class: "value", dir: "ltr" }, signed(value)));
  const words = [`unit ${number + 1}, ${/^\d+$/.test(rangeOf(answer.units[number])) ? "token" : "tokens"} ${rangeOf(answer.units[number])}`];
  if (value !== null) words.push(`${shareOf(value, answer.whole)} of v(P) − v(∅)`);
  const error = at(answer.standard_errors, number), bounds = at(answer.intervals, number);
  if (error !== null) words.push(`standard error ${figure(error)}`);
  if (bounds !== null) words.push(`95 % interval ${figure(bounds[0])} to ${figure(bounds[1])}`);
  const tip = tag("span", { class: "tip", id: name, role: "tooltip", dir: "ltr" },
    tag("b", {}, value === null ? "no value" : figure(value)), ...words.map((word) => tag("span", {}, word)));
  return tag("span", { class: "unit", tabindex: 0, "aria-describedby": name }, inner ? before : "", shade, inner ? after : text, tip);
}

function mapOf(characters, answer, most) {
  const pieces = [], textOf = (start, stop) => visible(characters.slice(start, stop).join(""));
  const frozen = (text) => { if (text) pieces.push(spanOf("frozen", text)); };
  let end = 0;
  answer.unit_characters.forEach(([start, stop], number) => {
    frozen(textOf(end, start));
    pieces.push(unitOf(textOf(start, stop), answer, number, most));
    end = stop;
  });
  frozen(textOf(end));
  return tag("div", { class: "map", dir: "auto", lang: "" }, ...pieces);
}

function stepsOf(most) {
  const steps = Array.from({ length: LEVELS }, (_, step) => step + 1);
  const classes = [...steps.map((step) => `loss-${step}`).reverse(), "even", ...steps.map((step) => `gain-${step}`)];
  const end = (value) => spanOf("number", signed(value));
  return tag("p", { class: "steps" }, end(-most), ...classes.map((name) => tag("i", { class: `shade ${name}` })), end(most));
}

function barOf(value, most) {
  const length = fractionOf(value || 0, most);
  const made = tag("svg", { class: "bar", viewBox: "-1 0 2 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (length) {
    made.append(tag("rect", { class: length > 0 ? "gain" : "loss", x: Math.min(0, length).toFixed(4), y: 0,
      width: Math.abs(length).toFixed(4), height: 1 }));
  }
  return spanOf("cell", made, figured(value));
}

function unitsOf(characters, answer, most) {
  const count = answer.units.length, errors = answer.standard_errors, { whole, together } = answer;
  if (!count) return "";
  const row = (...cells) => tag("tr", {}, ...cells.map((cell) => tag("td", {}, cell)));
  const heads = ["Unit", "Text", "Tokens", "Value", "Share", ...(errors ? ["Standard error"] : [])];
  const rows = answer.unit_characters.map(([start, stop], number) => {
    const value = at(answer.unit_values, number), text = characters.slice(start, stop).join("");
    return row(`${number + 1}`, tag("bdi", {}, inOneLine(text)), rangeOf(answer.units[number]), barOf(value, most),
      shareOf(value, whole), ...(errors ? [figure(errors[number])] : []));
  });
  const sums = row("", "together", "", spanOf("cell", barOf(null, most).firstChild, figured(together)), shareOf(together, whole), ...(errors ? [""] : []));
  return listed("units", `Units: ${count}`, count <= MOST_ROWS, tag("table", {},
    tag("thead", {}, tag("tr", {}, ...heads.map((head) => tag("th", { scope: "col" }, head)))),
    tag("tbody", {}, ...rows), tag("tfoot", {}, sums)));
}

/** The tokens of a completion whose segments are tokens, as the page asks: one that is a unit has a text. */
function tokensOf(characters, answer) {
  const rewards = answer.token_rewards, texts = Array(rewards.length).fill("");
  if (!rewards.length) return "";
  const most = largest(rewards), first = new Set(answer.units.map(([start]) => start));
  answer.units.forEach(([start, stop], number) => {
    if (stop - start === 1) texts[start] = characters.slice(...answer.unit_characters[number]).join("");
  });
  return listed("tokens", `Token rewards: ${rewards.length}`, rewards.length <= MOST_ROWS, tag("ol", { dir: "auto" },
    ...rewards.map((reward, number) => tag("li", { class: `token ${levelOf(reward, most)}${first.has(number) ? " first" : ""}` },
      spanOf("text", inOneLine(texts[number])), tag("span", { class: "number", dir: "ltr" }, signed(reward))))));
}

/** All that is to be seen of one completion. */
function creditOf({ prompt, completion }, given) {
  const answer = withoutDust(given);
  const characters = Array.from(completion), most = largest(answer.unit_values || []);
  const shown = prompt ? listed("prompt", "Prompt", prompt.length <= SHORT_PROMPT, tag("p", { dir: "auto", lang: "" }, visible(prompt))) : "";
  const exact = { true: ", exact", false: ", estimated", null: "" }[answer.exact];
  const flags = answer.flags.length ? answer.flags.map((flag) => tag("mark", {}, flag)) : ["none"];
  const ledger = { kl: "KL", other_reward: "other reward", units: "α · units", terminal: "(1 − α) · v(P)", remainder: "remainder",
    total: "sum of token rewards", alpha: "α" };
  return tag("div", { class: "credit" },
    tag("dl", { class: "facts" },
      factOf("v(∅)", figured(answer.utility_empty)), factOf("v(P)", figured(answer.utility_grand)),
      factOf("v(P) − v(∅)", figured(answer.whole)), factOf("gap", figured(answer.gap)),
      factOf("method", `${answer.method ?? "none"}${exact}`), factOf("flags", ...flags)),
    shown, mapOf(characters, answer, most), stepsOf(most),
    tag("dl", { class: "ledger" }, ...Object.entries(ledger).map(([name, words]) => factOf(words, figured(answer.ledger[name])))),
    unitsOf(characters, answer, most), tokensOf(characters, answer));
}
