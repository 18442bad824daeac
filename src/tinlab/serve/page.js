"use strict";

// All text from the server or a file goes in through textContent: a class's words may hold anything.
const at = (id) => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
const percent = (p) => (p > 0 && p < 0.001 ? "< 0.1%" : `${(100 * p).toFixed(1)}%`);
const short = (words) => words.split(",")[0];
const shownModels = () => served.models.filter((model) => chosen.has(model.name));

const nothing = at("nothing"); // held, since answers take its place in the page

let served = { models: [], limits: { max_bytes: Infinity } };
let chosen = new Set();
let picture = null; // {file, name, truth, button}
let cards = []; // what is shown: {element, explain}
let asking = null; // the AbortController of what is asked now
let seed = Math.floor(Math.random() * 2 ** 31);

function alertWith(sentence) {
  at("alert").textContent = sentence;
  at("alert").hidden = !sentence;
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let sentence = `The server answered ${answer.status}.`;
  try {
    sentence = (await answer.json()).detail;
  } catch { /* no JSON: the status has to do */ }
  throw new Error(sentence);
}

function form(fields) {
  const body = new FormData();
  for (const [name, value] of fields) body.append(name, value);
  return body;
}

// A picture arrives: from the disk, by drop, by paste, or from val.
function take(files) {
  const given = [...files];
  const file = given.find((each) => each.type.startsWith("image/")) ?? given[0];
  if (!file) return;
  show({ file, name: file.name || "pasted picture", truth: null, button: null });
  if (given.length > 1) alertWith(`One picture at a time: this is ${file.name}. The API takes many at once.`);
}

function show(next) {
  alertWith("");
  if (next.file.size > served.limits.max_bytes - 2000) {
    alertWith(`${next.name} has ${(next.file.size / 1e6).toFixed(1)} MB, and at most ${(served.limits.max_bytes / 1e6).toFixed(1)} are taken.`);
    return;
  }
  picture?.button?.setAttribute("aria-pressed", "false");
  picture = next;
  picture.button?.setAttribute("aria-pressed", "true");
  const preview = at("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(picture.file);
  preview.alt = `Your picture: ${picture.name}`;
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; }; // a format that the server reads and the browser does not
  at("drop").classList.add("filled");
  at("invite").firstElementChild.textContent = "Choose another";
  at("name").hidden = false;
  at("name").textContent = picture.truth ? `${picture.name}: ${picture.truth.words}` : picture.name;
  classify();
}

async function classify() {
  if (!picture) return;
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  const { file, name, truth } = picture;
  const models = shownModels();
  if (!models.length) {
    at("results").replaceChildren(nothing);
    at("overlay").hidden = at("legend").hidden = true;
    return;
  }
  at("results").classList.add("busy");
  try {
    const fields = [["images", file], ["top", "5"], ...models.map((model) => ["models", model.name])];
    const answer = await (await ask("classify", { method: "POST", body: form(fields), signal })).json();
    cards = answer.images[0].models.map((told) => card(told, file, truth, signal));
    at("results").replaceChildren(...cards.map((each) => each.element));
    at("results").classList.toggle("only", cards.length === 1);
    at("overlay").hidden = at("legend").hidden = false;
    at("said").textContent = answer.images[0].models
      .map((told) => told.error ?? `${told.model} says ${short(told.guesses[0].words)}, ${percent(told.guesses[0].probability)}`)
      .join("; ");
    for (const each of cards) each.explain();
    // On a phone the answers are below the picture, and nobody would see them come.
    if (at("answers").getBoundingClientRect().bottom > innerHeight) at("answers").scrollIntoView();
  } catch (error) {
    if (error.name === "AbortError") return;
    at("results").replaceChildren(nothing);
    at("overlay").hidden = at("legend").hidden = true;
    at("said").textContent = "";
    alertWith(error.message);
  }
  if (!signal.aborted) at("results").classList.remove("busy");
}

// What one model says: five classes with bars, each a button that shows its map.
function card(told, file, truth, signal) {
  const model = served.models.find((each) => each.name === told.model);
  const facts = [model.network, `${(model.parameters / 1e6).toFixed(1)} M parameters`];
  if (model.val_top1_percent !== null) facts.push(`${model.val_top1_percent.toFixed(1)}% right on val`);
  const element = make("article", { className: "model" },
    make("header", {},
      make("h3", { textContent: model.name, title: model.summary }),
      make("p", { className: "quiet", textContent: facts.join(" · ") })));
  if (told.error) {
    element.append(make("p", { className: "notice", textContent: told.error }));
    return { element, explain: () => {} };
  }

  const base = make("img", { className: "base", hidden: true, alt: `What ${model.name} sees: the middle square, ${model.image_size} pixels a side` });
  const map = make("img", { className: "map", hidden: true, alt: "" });
  const wait = make("p", { className: "wait", hidden: true, textContent: "looking …" });
  const seen = make("div", { className: "seen" }, base, map, wait);
  const list = make("ol", { className: "guesses" });
  const buttons = told.guesses.map((guess, i) => {
    const fill = make("span");
    fill.style.width = `${100 * guess.probability}%`;
    const words = make("span", { className: "words", textContent: guess.words });
    if (truth && guess.id === truth.id) words.append(" ", make("span", { className: "right", textContent: "✓ correct" }));
    const button = make("button", { type: "button", className: "guess", title: `Show the map for ${short(guess.words)}` },
      words,
      make("span", { className: "percent", textContent: percent(guess.probability) }),
      make("span", { className: "bar", ariaHidden: "true" }, fill));
    button.setAttribute("aria-pressed", String(i === 0));
    button.addEventListener("click", () => explain(i));
    list.append(make("li", {}, button));
    return button;
  });
  element.append(seen, list);

  let latest = 0;
  let current = 0;
  async function explain(i = current) {
    const mine = ++latest;
    current = i;
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
    // Said late, so that a quick answer does not flicker.
    const timer = setTimeout(() => { wait.textContent = "looking …"; wait.hidden = false; }, 250);
    try {
      const fields = [["image", file], ["model", model.name], ["target", told.guesses[i].id], ["method", at("method").value]];
      const answer = await (await ask("explain", { method: "POST", body: form(fields), signal })).json();
      if (mine !== latest) return;
      base.src = `data:image/png;base64,${answer.image_png}`;
      map.src = `data:image/png;base64,${answer.map_png}`;
      map.alt = `Saliency map for ${short(answer.target.words)}, by ${answer.method}`;
      base.hidden = map.hidden = false;
      wait.hidden = true;
      lay();
    } catch (error) {
      if (error.name === "AbortError" || mine !== latest) return;
      wait.textContent = error.message;
      wait.hidden = false;
    } finally {
      clearTimeout(timer);
    }
  }
  return { element, explain };
}

// Saliency, over all pictures at once.
function lay() {
  const strength = at("saliency").checked ? at("strength").value / 100 : 0;
  for (const seen of document.querySelectorAll(".seen")) {
    seen.querySelector(".map").style.opacity = strength;
    seen.style.setProperty("--strength", strength);
    seen.classList.toggle("mapped", strength > 0);
  }
  at("strength").disabled = !at("saliency").checked;
}

async function drawSamples() {
  const { split, samples } = await (await ask(`samples?count=12&seed=${seed}`)).json();
  at("try").hidden = !samples.length;
  at("samples").replaceChildren(...samples.map((sample) => {
    const label = sample.words ? `${split} ${sample.index}: ${short(sample.words)}` : `${split} ${sample.index}`;
    const button = make("button", { type: "button", title: label, ariaPressed: "false" },
      make("img", { src: `samples/${sample.index}`, alt: label, width: 64, height: 64 }));
    button.addEventListener("click", async () => {
      try {
        const file = await (await ask(`samples/${sample.index}`)).blob();
        const truth = sample.words ? { id: sample.id, words: sample.words } : null;
        show({ file, name: `${split} ${sample.index}`, truth, button });
      } catch (error) {
        alertWith(error.message);
      }
    });
    return make("li", {}, button);
  }));
}

async function begin() {
  try {
    served = await (await ask("models")).json();
    chosen = new Set(served.models.map((model) => model.name));
    const many = served.models.length > 1;
    at("served").append(...served.models.map((model) => make("span", { textContent: model.name })));
    document.querySelector("h1").textContent = many ? "Show them a picture" : "Show it a picture";
    at("answers").textContent = many ? "What they see" : "What it sees";
    at("by").hidden = served.methods.length < 2;
    at("method").replaceChildren(...served.methods.map((method) => new Option(method.replaceAll("_", " "), method)));
    at("choose").hidden = !many;
    at("choices").replaceChildren(...served.models.map((model) => {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(model.name); else chosen.delete(model.name);
        classify();
      });
      return make("label", {}, box, make("span", { textContent: model.name }));
    }));
    at("curl").textContent = `curl -F images=@picture.jpg ${location.origin}/classify\ncurl -F image=@picture.jpg -F model=${JSON.stringify(served.models[0].name)} -F answer=png ${location.origin}/explain > map.png`;
    await drawSamples();
  } catch (error) {
    alertWith(error.message);
  }
}

at("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
at("method").addEventListener("change", () => { for (const each of cards) each.explain(); });
at("saliency").addEventListener("change", lay);
at("strength").addEventListener("input", lay);
at("more").addEventListener("click", () => {
  seed = (seed + 1) % 2 ** 31;
  drawSamples().catch((error) => alertWith(error.message));
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) { event.preventDefault(); take(event.clipboardData.files); }
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
begin();
