"use strict";
const COUNTS = [5, 10, 20, 50, 100];
const part = (id) => document.getElementById(id);
const state = { model: null, running: null, retry: null };

function token() {
  try { return sessionStorage.getItem("token"); } catch { return state.token ?? null; }
}

function keepToken(value) {
  state.token = value;
  try { sessionStorage.setItem("token", value); } catch { /* the tab may not keep anything; this page does */ }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  let content = null;
  try { content = await reply.json(); } catch { /* an answer of something between here and the server */ }
  if (reply.ok && content !== null) return content;
  const problem = new Error(content?.detail ?? `The server answered with status ${reply.status}.`);
  problem.status = reply.status;
  throw problem;
}

function show(problem, retry) {
  if (problem.name === "AbortError") return;
  part("status").textContent = "";
  if (problem.status === 401) {
    state.retry = retry;
    part("token-form").hidden = false;
    part("problem").textContent = token() ? "The server does not accept this token." : "This server asks for a token.";
    part("token").focus();
  } else {
    part("problem").textContent = problem.message;
  }
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => new Option(String(value), String(value), false, value === chosen)));
}

async function describe() {
  const model = await call("model");
  const first = state.model === null;
  state.model = model;
  document.title = model.title;
  part("title").textContent = model.title;
  const count = model.num_labels.toLocaleString("en");
  part("about").textContent = `${count} ${model.num_labels === 1 ? "label" : "labels"}, model ${model.version.slice(0, 8)}`;
  part("text").maxLength = model.limits.characters;
  const most = Math.min(model.limits.top_k, model.num_labels);
  const counts = COUNTS.filter((each) => each <= most);
  if (first) options(part("top-k"), counts.length ? counts : [most], counts.includes(10) ? 10 : counts[0] ?? most);
  options(part("scorer"), model.scorers, model.scorers.includes(part("scorer").value) ? part("scorer").value : model.scorer);
  part("scorer-option").hidden = model.scorers.length < 2;
  part("explain-option").hidden = !model.explains;
  part("calibrate-option").hidden = model.calibrated.length === 0;
}

const NAMES = {
  theta: "prototype", W: "classifier", neighbours: "similar training queries", lexical: "words in common",
  text: "the label's text", centroid: "its training queries", free_vector: "what it shares with similar labels",
};

function shares(parts) {
  const sorted = Object.entries(parts).sort((one, other) => other[1] - one[1]);
  return sorted.map(([name, share]) => `${share.toFixed(3)} ${NAMES[name] ?? name}`).join(", ");
}

function reasons(why) {
  const box = element("details", "why");
  box.append(element("summary", "", "Why"));
  box.append(element("p", "", `The score is made of ${shares(why.scorers)}.`));
  if (Object.keys(why.sources).length) box.append(element("p", "", `Of the prototype's part: ${shares(why.sources)}.`));
  if (why.queries.length) {
    box.append(element("p", "", "The nearest training queries with this label, with their cosine:"));
    const list = element("ul");
    list.append(...why.queries.map((query) =>
      element("li", "", `${query.similarity.toFixed(3)} ${query.text ?? `row ${query.row ?? "unknown"}`}`)));
    box.append(list);
  } else {
    box.append(element("p", "", "No training query of the model has this label."));
  }
  return box;
}

function draw(answer) {
  const labels = answer.predictions[0].labels;
  const sure = labels.length > 0 && labels.every((label) => label.probability !== undefined);
  const best = sure ? 1 : Math.max(...labels.map((label) => label.score));
  part("labels").replaceChildren(...labels.map((label) => {
    const item = element("li");
    const track = element("div", "track");
    const bar = element("div", "bar");
    bar.style.width = `${best > 0 ? Math.max(0, 100 * (sure ? label.probability : label.score) / best) : 0}%`;
    track.setAttribute("aria-hidden", "true");
    track.append(bar);
    item.append(element("span", "name", label.text || "(without text)"), element("span", "score", sure
      ? `${(100 * label.probability).toFixed(0)} % (${label.score.toFixed(3)})` : label.score.toFixed(3)));
    item.append(track, element("span", "uid", label.uid));
    if (label.why) item.append(reasons(label.why));
    return item;
  }));
  part("scale").textContent = sure
    ? `Probability that the label is right, and in brackets its score (${answer.scorer}).`
    : `Bars compare each score (${answer.scorer}) with the best one.`;
  part("results").hidden = labels.length === 0;
}

async function rank() {
  const text = part("text").value;
  if (!text.trim()) {
    part("text").focus();
    return;
  }
  state.running?.abort();
  const running = state.running = new AbortController();
  const asked = { texts: [text], top_k: Number(part("top-k").value) || 5 };
  if (part("min-score").value !== "") asked.min_score = Number(part("min-score").value);
  if (part("scorer").value) asked.scorer = part("scorer").value;
  const scorer = part("scorer").value || state.model?.scorer;
  if (part("explain").checked) asked.explain = true;
  if (part("calibrate").checked && state.model?.calibrated.includes(scorer)) asked.calibrate = true;
  part("problem").textContent = "";
  part("labels").classList.add("waiting");
  const began = performance.now();
  try {
    const answer = await call("predict", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: running.signal,
    });
    draw(answer);
    const count = answer.predictions[0].labels.length;
    const found = count === 0 ? "No label has such a score." : `${count} ${count === 1 ? "label" : "labels"}`;
    part("status").textContent = count === 0 ? found : `${found} in ${Math.round(performance.now() - began)} ms`;
    if (state.model === null || state.model.version !== answer.version) await describe();
  } catch (problem) {
    show(problem, rank);
  } finally {
    if (state.running === running) {
      state.running = null;
      part("labels").classList.remove("waiting");
    }
  }
}

async function find() {
  try {
    const answer = await call(`labels?limit=50&search=${encodeURIComponent(part("search").value)}`);
    part("found").replaceChildren(...answer.labels.map((label) => {
      const item = element("li", "", label.text || "(without text)");
      item.append(" ", element("span", "uid", label.uid));
      return item;
    }));
    const count = answer.labels.length;
    part("search-status").textContent = count === 0 ? "No label has these words."
      : answer.more ? `The first ${count} labels` : `${count} ${count === 1 ? "label" : "labels"}`;
  } catch (problem) {
    show(problem, find);
  }
}

function onSubmit(id, action) {
  part(id).addEventListener("submit", (event) => {
    event.preventDefault();
    action();
  });
}

onSubmit("query-form", rank);
onSubmit("search-form", find);
onSubmit("token-form", async () => {
  keepToken(part("token").value.trim());
  part("token").value = "";
  part("token-form").hidden = true;
  part("problem").textContent = "";
  const retry = state.retry;
  try {
    await describe();
  } catch (problem) {
    show(problem, retry);
    return;
  }
  part("text").focus();
  if (retry && retry !== start) await retry();
});
part("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    part("query-form").requestSubmit();
  }
});

async function start() {
  try {
    await describe();
  } catch (problem) {
    show(problem, start);
  }
}

start();
