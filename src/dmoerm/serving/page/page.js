// The page: a prompt, some responses, who wins and why. Everything a person or a model wrote becomes a text node, never markup.
"use strict";

const EXAMPLES = [
  { name: "a fact", prompt: "Why is the sky blue?", responses: [
    "Air scatters short waves of light more than long ones, so blue light reaches us from every direction of the sky.",
    "The sky is blue because it mirrors the colour of the oceans."] },
  { name: "comfort", prompt: "My cat died last night and I can't stop crying.", responses: [
    "I'm so sorry. You shared your days with your cat, so of course it hurts. Would you like to tell me about them?",
    "Cats live about fifteen years. Consider a dog next time.",
    "Crying is a normal reaction and will stop by itself."] },
  { name: "a verse", prompt: "Write two lines about autumn.", responses: [
    "Leaves let go without a word,\nand the wind reads them aloud.",
    "Autumn is the season after summer. It is often cold."] },
];
const STORE = "dmoerm-page";
const MOST = 26;
const $ = (id) => document.getElementById(id);
let working = null;

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) made[key] = value;
  made.append(...children);
  return made;
}

function drawing(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const letter = (index) => String.fromCharCode(65 + index);
const colour = (index) => `c${index % 6}`;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const plain = (name) => name.replaceAll("_", " ");

// --- the form ---------------------------------------------------------------------------------------------------------------------

function boxes() {
  return [...$("responses").querySelectorAll("textarea")];
}

function addResponse(text = "") {
  const index = boxes().length;
  if (index >= MOST) return null;
  const box = element("textarea", { id: `response-${index}`, rows: 3, dir: "auto", value: text });
  const remove = element("button", { type: "button", className: "small", textContent: "Remove" });
  remove.addEventListener("click", () => {
    const texts = boxes().map((one) => one.value);
    texts.splice(boxes().indexOf(box), 1);
    setResponses(texts);
    keep();
    (boxes()[Math.min(index, boxes().length - 1)] || $("add")).focus();
  });
  const head = element("div", { className: "row" }, element("label", { htmlFor: box.id, textContent: `Response ${letter(index)}` }), remove);
  remove.setAttribute("aria-label", `Remove response ${letter(index)}`);
  $("responses").append(element("div", {}, head, box));
  for (const button of $("responses").querySelectorAll("button")) button.hidden = boxes().length <= 2;
  $("add").disabled = boxes().length >= MOST;
  return box;
}

function setResponses(texts) {
  $("responses").replaceChildren();
  for (const text of texts) addResponse(text);
}

function keep() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ prompt: $("prompt").value, responses: boxes().map((box) => box.value) }));
  } catch { /* too large, or not allowed: then a reload forgets */ }
}

function restore() {
  let kept = null;
  try { kept = JSON.parse(sessionStorage.getItem(STORE)); } catch { /* as above */ }
  $("prompt").value = kept?.prompt ?? "";
  setResponses(Array.isArray(kept?.responses) && kept.responses.length >= 2 ? kept.responses : ["", ""]);
}

// --- asking -----------------------------------------------------------------------------------------------------------------------

function show(text, kind = "") {
  $("state").className = `state ${kind}`;
  $("state").textContent = text;
  $("state").hidden = false;
  $("found").hidden = true;
  if (kind === "failed") {
    const again = element("button", { type: "button", textContent: "Try again" });
    again.addEventListener("click", compare);
    $("state").append(element("p"), again);
  }
}

async function call(path, body) {
  let reply;
  try {
    reply = await fetch(path, body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Error("The server cannot be reached. Nothing that you typed is lost.");
  }
  const answer = await reply.json().catch(() => null);
  if (reply.ok && answer !== null) return answer;
  const wait = reply.headers.get("Retry-After");
  const reason = answer?.error?.message ?? `The server answered ${reply.status}.`;
  throw new Error(reason + (wait ? ` Try again in ${wait} s.` : ""));
}

async function compare() {
  if (working) return;
  keep();
  const prompt = $("prompt").value;
  const given = boxes().map((box, index) => ({ text: box.value, index })).filter((one) => one.text.trim() !== "");
  if (prompt.trim() === "") { show("Write a prompt first."); $("prompt").focus(); return; }
  if (given.length < 2) {
    show("Write at least two responses.");
    boxes().find((box) => box.value.trim() === "")?.focus();
    return;
  }
  working = true;
  $("compare").disabled = true;
  $("result").setAttribute("aria-busy", "true");
  show(`Comparing ${given.length} responses …`, "busy");
  try {
    render(await call("v1/compare", { prompt, responses: given.map((one) => one.text) }), given);
  } catch (error) {
    show(error.message, "failed");
  } finally {
    working = null;
    $("compare").disabled = false;
    $("result").setAttribute("aria-busy", "false");
    if ($("result").getBoundingClientRect().top > window.innerHeight * 0.6) $("result").scrollIntoView({ block: "start" });
  }
}

// --- the answer -------------------------------------------------------------------------------------------------------------------

function headline(found, given) {
  const name = (place) => letter(given[place].index);
  if (found.margin === 0) return `${name(found.winner)} and ${name(found.second)} are tied`;
  return `${name(found.winner)} wins`;
}

function sentences(found, given) {
  const name = (place) => letter(given[place].index);
  const first = found.results[found.winner];
  const lines = [`Judged as ${plain(first.category)} (router: ${(100 * first.category_probability).toFixed(0)}% sure).`];
  if (found.margin > 0) {
    const odds = found.probability > 0.99 ? "99% or more" : `${(100 * found.probability).toFixed(0)}%`;
    lines.push(`${found.margin.toFixed(2)} above ${name(found.second)}: preferred in ${odds} of such cases, by the model's own odds.`);
    if (found.margin_uncertainty > 0 && !found.clear) {
      lines.push(`The margin is within its uncertainty (${found.margin_uncertainty.toFixed(2)}): no clear winner.`);
    }
  }
  return lines.join(" ");
}

function card(result, place, found, given) {
  const index = given[place].index;
  const number = element("span", { className: "number" }, signed(result.reward));
  if (result.uncertainty > 0) number.append(" ", element("small", { textContent: `± ${result.uncertainty.toFixed(2)}` }));
  const won = found.margin > 0 && place === found.winner;
  const head = element("div", { className: "row" }, element("span", { className: "badge", textContent: `${letter(index)}${won ? " · best" : ""}` }), number);
  const words = element("p", { className: "words", dir: "auto", tabIndex: 0, textContent: given[place].text });
  words.setAttribute("aria-label", `Response ${letter(index)}`);
  const made = element("article", { className: `card ${colour(index)}${won ? " won" : ""}` }, head, words);
  if (result.truncated) made.append(element("p", { className: "note", textContent: "Cut to fit: the model has not read all of it." }));
  return made;
}

function chart(found, given) {
  const names = [...new Set(found.results.flatMap((result) => Object.keys(result.capabilities)))];
  if (names.length === 0) return element("p", { className: "note", textContent: "This category has no experts, so there is nothing to show by capability." });
  const values = found.results.flatMap((result) => Object.values(result.capabilities));
  const largest = Math.max(1, Math.ceil(Math.max(...values.map(Math.abs))));
  const width = Math.round(Math.min(680, Math.max(280, $("result").clientWidth))), left = 46, right = 46, bar = 14, step = bar + 3, block = 26 + found.results.length * step + 8;
  const x = (value) => left + (width - left - right) * (value + largest) / (2 * largest);
  const height = names.length * block + 26;
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" });
  const told = names.map((name) => `${plain(name)}: ${found.results.map((r, i) => `${letter(given[i].index)} ${signed(r.capabilities[name] ?? 0)}`).join(", ")}`);
  svg.append(drawing("title", {}, `Standardised score by capability. ${told.join("; ")}`));
  const ticks = largest > 4 ? [-largest, 0, largest] : Array.from({ length: 2 * largest + 1 }, (_, i) => i - largest);
  for (const tick of ticks) {
    svg.append(drawing("line", { x1: x(tick), x2: x(tick), y1: 0, y2: height - 22, class: tick === 0 ? "axis" : "grid" }));
    svg.append(drawing("text", { x: x(tick), y: height - 6, "text-anchor": "middle", class: "tick" }, tick === 0 ? "0" : signed(tick, 0)));
  }
  names.forEach((name, row) => {
    const top = row * block;
    svg.append(drawing("text", { x: 0, y: top + 16 }, plain(name)));
    found.results.forEach((result, place) => {
      const value = result.capabilities[name];
      if (value === undefined) return;
      const y = top + 24 + place * step, from = Math.min(x(0), x(value)), size = Math.max(1.5, Math.abs(x(value) - x(0)));
      svg.append(drawing("rect", { x: from, y, width: size, height: bar, rx: 2, class: colour(given[place].index) }));
      svg.append(drawing("text", { x: value < 0 ? from - 5 : from + size + 5, y: y + bar - 3, "text-anchor": value < 0 ? "end" : "start", class: "value" },
        `${letter(given[place].index)} ${signed(value)}`));
    });
  });
  return svg;
}

function render(found, given) {
  const box = $("found");
  const order = found.results.map((_, place) => place).sort((a, b) => found.results[b].reward - found.results[a].reward);
  const legend = element("ul", { className: "legend" }, ...given.map((one) => element("li", { className: colour(one.index), textContent: letter(one.index) })));
  box.replaceChildren(
    element("h2", { textContent: headline(found, given) }),
    element("p", { textContent: sentences(found, given) }),
    ...order.map((place) => card(found.results[place], place, found, given)),
    element("h3", { textContent: "By capability" }),
    legend,
    chart(found, given),
    element("p", { className: "note", textContent: "0 is the average response of the category, 1 is one standard deviation above it. Rewards compare responses to this prompt only; ± is their uncertainty." }),
    element("details", {}, element("summary", { textContent: "Raw JSON" }), element("pre", { tabIndex: 0, textContent: JSON.stringify(found, null, 2) })),
  );
  $("state").hidden = true;
  box.hidden = false;
}

// --- beginning --------------------------------------------------------------------------------------------------------------------

async function introduce() {
  try {
    const info = await call("v1/info");
    const names = Object.keys(info.categories).filter((name) => name !== "general").map(plain);
    $("model").textContent = `${info.model} judges ${names.length ? names.join(", ") : "every prompt alike"}; it reads ${info.max_length_tokens} tokens.`;
  } catch (error) {
    $("model").textContent = error.message;
    setTimeout(introduce, 3000);
  }
}

for (const example of EXAMPLES) {
  const button = element("button", { type: "button", className: "small", textContent: example.name });
  button.addEventListener("click", () => {
    $("prompt").value = example.prompt;
    setResponses(example.responses);
    compare();
  });
  $("examples").append(button);
}
$("add").addEventListener("click", () => addResponse()?.focus());
$("form").addEventListener("input", keep);
$("form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); compare(); }
});
restore();
introduce();
