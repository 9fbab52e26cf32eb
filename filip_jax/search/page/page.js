// The page of `filip serve`. Texts of the index go into the page by textContent and attributes alone, never as HTML.

const TOP = 24, STEP = 48; // hits at first, and more of them
const QUICK = 400; // milliseconds: so fast an index is searched while its user types
const PAUSE = 220; // milliseconds without a key before that
const ALL = -1; // of the parts of a query: the best one at each patch
// A fog lies on every picture, and lifts where it matches: the picture keeps its own colors there, dark or bright.
const FOG = [47, 40, 74], DENSEST = 0.84;
const LACKS = [128, 128, 128, 0.9]; // a patch whose token the index does not hold
const DETAIL = 48; // pixels, about, of a side of a drawn map

const $ = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const score = (value) => (value == null ? "" : value.toFixed(3));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Draws similarities on a canvas as fog; between the centers of patches they are interpolated.
function draw(canvas, values, low, high) {
  const [rows, columns] = grid;
  const scale = Math.max(Math.ceil(DETAIL / Math.max(rows, columns)), 1);
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  const pen = canvas.getContext("2d");
  const drawn = pen.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const own = values[Math.floor(y / scale) * columns + Math.floor(x / scale)];
      const down = Math.min(Math.max((y + 0.5) / scale - 0.5, 0), rows - 1), right = Math.min(Math.max((x + 0.5) / scale - 0.5, 0), columns - 1);
      const top = Math.floor(down), left = Math.floor(right), below = Math.min(top + 1, rows - 1), beside = Math.min(left + 1, columns - 1);
      const at = (row, column) => values[row * columns + column] ?? own;
      const above = at(top, left) + (at(top, beside) - at(top, left)) * (right - left);
      const under = at(below, left) + (at(below, beside) - at(below, left)) * (right - left);
      const share = (above + (under - above) * (down - top) - low) / (high - low || 1);
      const [red, green, blue, alpha] = own == null ? LACKS : [...FOG, DENSEST * (1 - Math.min(Math.max(share, 0), 1))];
      drawn.data.set([red, green, blue, 255 * alpha], 4 * (y * canvas.width + x));
    }
  }
  pen.putImageData(drawn, 0, 0);
}

// Lays an element on a part of what it stands in.
function put(element, left, top, width, height) {
  const percent = (value) => `${100 * value}%`;
  Object.assign(element.style, { inset: `${percent(top)} auto auto ${percent(left)}`, width: percent(width), height: percent(height) });
}

function best(values) {
  return values.reduce((top, value, n) => (value != null && (top < 0 || value > values[top]) ? n : top), -1);
}

const state = { info: null, request: {}, answer: null, pinned: null, peek: null, views: [], detail: null, milliseconds: null };
let grid = [1, 1];

// ---------------------------------------------------------------- a picture and its patches

class View {
  // picture: {source, square, label, width, height}; whole: shows all of it with the square drawn, else the square alone.
  constructor(picture, pick, whole = false) {
    const [left, top, right, bottom] = picture.square;
    this.pick = pick;
    this.values = null;
    this.cursor = this.selected = -1;
    this.image = make("img", { src: picture.source, alt: picture.label, decoding: "async", draggable: false });
    this.canvas = make("canvas");
    this.best = make("i", { className: "best" });
    this.at = make("i", { className: "at" });
    this.tag = make("span", { className: "tag" });
    this.tag.setAttribute("aria-hidden", "true");
    this.patches = make("div", { className: "patches" }, this.canvas, this.best, this.at);
    this.element = make("div", { className: "view", tabIndex: 0 }, this.image, this.patches, this.tag);
    this.element.setAttribute("role", "application");
    this.element.setAttribute("aria-roledescription", "picture with patches");
    this.element.setAttribute("aria-label", `${picture.label}. Arrow keys move over ${grid[0]} by ${grid[1]} patches, Enter takes one.`);
    const width = right - left, height = bottom - top;
    if (whole) {
      put(this.patches, left, top, width, height);
      const shape = picture.width / picture.height || 1;
      this.element.style.aspectRatio = shape;
      this.element.style.width = `min(100%, calc(76vh * ${shape}))`;
    } else put(this.image, -left / width, -top / height, 1 / width, 1 / height);
    this.listen();
  }

  listen() {
    const at = (event) => {
      const box = this.patches.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * grid[1]);
      const row = Math.floor(((event.clientY - box.top) / box.height) * grid[0]);
      const inside = row >= 0 && row < grid[0] && column >= 0 && column < grid[1];
      return inside ? row * grid[1] + column : -1;
    };
    this.element.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.move(at(event)));
    this.element.addEventListener("pointerleave", () => this.move(-1));
    this.element.addEventListener("blur", () => this.move(-1));
    this.element.addEventListener("click", (event) => at(event) >= 0 && this.pick(at(event)));
    this.element.addEventListener("focus", () => {
      if (this.element.matches(":focus-visible")) this.move(this.selected >= 0 ? this.selected : Math.max(best(this.values ?? []), 0), true);
    });
    this.element.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const cursor = Math.max(this.cursor, 0);
      if (step) {
        const row = Math.min(Math.max(Math.floor(cursor / grid[1]) + step[0], 0), grid[0] - 1);
        const column = Math.min(Math.max((cursor % grid[1]) + step[1], 0), grid[1] - 1);
        this.move(row * grid[1] + column, true);
      } else if (event.key === "Enter" || event.key === " ") this.pick(cursor);
      else return;
      event.preventDefault();
    });
  }

  move(cursor, spoken = false) {
    this.cursor = cursor;
    this.mark();
    if (spoken) $("spoken").textContent = this.describe(cursor);
  }

  select(patch) {
    this.selected = patch;
    this.mark();
  }

  describe(patch) {
    const value = this.values?.[patch];
    const place = `row ${Math.floor(patch / grid[1]) + 1}, column ${(patch % grid[1]) + 1}`;
    return value == null ? place : `${this.nameAt(patch)} ${score(value)} at ${place}`;
  }

  // values: of each patch, null of one that is not stored; null of all turns the light off. nameAt: of a patch, what matches it.
  light(values, low, high, nameAt) {
    this.values = values && best(values) >= 0 ? values : null;
    this.nameAt = nameAt;
    this.element.classList.toggle("lit", this.values !== null);
    if (this.values) draw(this.canvas, this.values, low, high);
    this.mark();
  }

  mark() {
    const top = this.values ? best(this.values) : -1;
    const at = this.cursor >= 0 ? this.cursor : this.selected;
    this.place(this.best, top);
    this.place(this.at, at);
    const shown = this.cursor >= 0 ? this.cursor : top;
    this.tag.classList.toggle("high", 3 * Math.floor(shown / grid[1]) >= 2 * grid[0]); // it hides no patch that it names
    this.tag.textContent = this.cursor >= 0 ? this.describe(shown) : top >= 0 ? `${this.nameAt(top)} ${score(this.values[top])}` : "";
  }

  place(frame, patch) {
    frame.style.display = patch >= 0 ? "block" : "none";
    if (patch >= 0) put(frame, (patch % grid[1]) / grid[1], Math.floor(patch / grid[1]) / grid[0], 1 / grid[1], 1 / grid[0]);
  }
}

// ---------------------------------------------------------------- light: the parts of the query on every hit

function mapOf(hit, part) {
  if (!hit.maps?.length) return null;
  if (part !== ALL) return hit.maps[part];
  return hit.maps[0].map((_, n) => hit.maps.reduce((most, map) => (map[n] != null && (most == null || map[n] > most) ? map[n] : most), null));
}

// Names the part of the query that a patch of a hit is compared with.
function nameAt(hit, part, patch) {
  return state.answer.query.parts[part === ALL ? best(hit.maps.map((map) => map[patch])) : part];
}

function shine() {
  const part = state.peek ?? state.pinned;
  const maps = part === null || !state.answer ? [] : state.answer.hits.map((hit) => mapOf(hit, part));
  const values = maps.flatMap((map) => map ?? []).filter((value) => value != null);
  values.sort((a, b) => a - b);
  const lit = values.length > 0, low = values[Math.floor(values.length / 2)], high = values.at(-1);
  for (const { view, hit } of state.views) view.light(lit ? mapOf(hit, part) : null, low, high, (patch) => nameAt(hit, part, patch));
  $("scale").classList.toggle("off", !lit);
  $("low").textContent = lit ? `≤ ${score(low)}` : "0"; // the median: half of all patches lie in the densest fog
  $("high").textContent = lit ? score(high) : "1";
  const what = lit && (part === ALL ? "each patch with the word it matches best" : `each patch with “${state.answer.query.parts[part]}”`);
  $("legend").textContent = lit ? `similarity of ${what}, on one scale for all pictures: the fog lifts where it matches` : "";
  for (const button of document.querySelectorAll("#words button")) button.setAttribute("aria-pressed", String(Number(button.value) === state.pinned));
}

function peek(part) {
  state.peek = part;
  shine();
}

function wordButton(part, text, title) {
  const button = make("button", { type: "button", value: part, textContent: text, title, dir: "auto" });
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && peek(part));
  button.addEventListener("pointerleave", () => peek(null));
  button.addEventListener("focus", () => button.matches(":focus-visible") && peek(part));
  button.addEventListener("blur", () => peek(null));
  button.addEventListener("click", () => {
    state.pinned = state.pinned === part ? null : part;
    peek(null);
  });
  return button;
}

// ---------------------------------------------------------------- asking the server

async function ask(path, body, options = {}) {
  let response;
  try {
    response = await fetch(path, { body, method: body === undefined ? "GET" : "POST", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is “filip serve” still running?");
  }
  const text = await response.text();
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    content = { error: text.slice(0, 300) };
  }
  if (!response.ok) throw new Error(content.error || `The server answers with ${response.status}.`);
  return content;
}

async function bytes(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Error(`${file.name} cannot be read: was it changed or moved? Choose it again.`);
  }
}

let running = null; // what aborts the search that is under way

async function search(request, how = "push") {
  running?.abort();
  const own = (running = new AbortController());
  const waits = setTimeout(() => {
    $("hits").classList.add("stale");
    $("status").textContent = "Searching …";
  }, 150);
  const { file, ...asked } = { top: TOP, ...request };
  try {
    const options = { signal: own.signal };
    const address = new URLSearchParams({ top: asked.top, where: asked.where ?? "", patches: JSON.stringify(asked.patches ?? []) });
    const answer = await (file ? ask(`api/upload?${address}`, await bytes(file), options) : ask("api/search", JSON.stringify(asked), options));
    if (own !== running) return;
    state.milliseconds = answer.query.kind === "text" ? answer.milliseconds : state.milliseconds;
    show(request, answer, how);
  } catch (error) {
    if (own !== running || error.name === "AbortError") return;
    if (how === "replace") $("status").textContent = error.message; // a word that is not typed to its end
    else fail(error.message, request, how);
  } finally {
    clearTimeout(waits);
    if (own === running) $("hits").classList.remove("stale");
  }
}

function fail(message, request, how) {
  remember(request, how);
  state.request = request;
  state.answer = null;
  state.views = [];
  for (const id of ["hits", "words", "asked"]) $(id).replaceChildren();
  $("more").hidden = true;
  $("status").textContent = "";
  $("error").textContent = message;
  $("error").hidden = false;
  shine();
}

function remember(request, how) {
  const known = Object.entries({ text: request.text, row: request.row, patches: request.patches?.join(), where: request.where });
  const address = new URLSearchParams(known.filter(([, value]) => value !== undefined && value !== ""));
  document.title = `${request.text || "filip search"}${request.text ? " – filip search" : ""}`;
  if (how === "push") history.pushState(null, "", `?${address}`);
  if (how === "replace") history.replaceState(null, "", `?${address}`);
}

function remembered() {
  const known = new URLSearchParams(location.search);
  const request = { text: known.get("text") ?? "", where: known.get("where") ?? "" };
  if (/^\d+$/.test(known.get("row") ?? "")) {
    Object.assign(request, { text: "", row: Number(known.get("row")) });
    if (/^\d+(,\d+)*$/.test(known.get("patches") ?? "")) request.patches = known.get("patches").split(",").map(Number);
  }
  return request;
}

// ---------------------------------------------------------------- what is shown

function show(request, answer, how) {
  remember(request, how);
  Object.assign(state, { request, answer, peek: null });
  $("error").hidden = true;
  if (document.activeElement !== $("text")) $("text").value = request.text ?? "";
  $("where").value = request.where ?? "";
  const parts = state.info.grid ? answer.query.parts : []; // without patches there is nothing to light
  const buttons = parts.map((part, n) => wordButton(n, part, "Show where this matches"));
  if (parts.length > 1) buttons.unshift(wordButton(ALL, "all words", "Show the best word of each patch"));
  $("words").replaceChildren(...(buttons.length ? buttons : [make("p", { textContent: hint(answer) })]));
  state.pinned = parts.length > 1 ? ALL : parts.length ? 0 : null;
  state.views = [];
  $("hits").classList.toggle("texts", state.info.side === "text");
  $("hits").classList.toggle("wordless", !answer.hits.some((hit) => hit.caption));
  $("hits").replaceChildren(...answer.hits.map(card));
  showAsked(request, answer.query);
  $("query").hidden = !state.info.grid && !$("asked").childElementCount;
  const top = request.top ?? TOP;
  $("more").hidden = answer.hits.length < top || top >= state.info.max_top || answer.query.kind === "sample";
  $("status").textContent = summary(answer);
  shine();
  if (how === "push") window.scrollTo(0, 0);
}

function summary(answer) {
  const things = state.info.side === "text" ? "texts" : "pictures", rows = count(state.info.rows);
  if (!state.info.rows) return "The index is empty: filip embed adds to it.";
  if (!answer.hits.length) return `None of ${rows} ${things} passes the filter.`;
  if (answer.query.kind !== "sample") return `The best ${count(answer.hits.length)} of ${rows} ${things}, in ${answer.milliseconds.toFixed(0)} ms${note(answer.query)}`;
  return `${count(answer.hits.length)} of ${rows} ${things}`;
}

function hint(answer) {
  if (!state.info.grid) return "";
  if (answer.query.kind === "sample") return "Type words: the patches that match them light up on every picture, the rest lies in fog. Or take a patch of a picture, and search by it.";
  return "";
}

function note(query) {
  return query.cut ? ". The text is longer than the model reads: what it reads stands above" : "";
}

function pictureOf(hit, place) {
  const label = [place, hit.caption || hit.key].filter(Boolean).join(": ");
  return { source: hit.picture, square: hit.square, width: hit.width, height: hit.height, label };
}

function card(hit, n) {
  const facts = make("div", { className: "hit" }, make("bdi", { textContent: hit.key.split("/").pop(), title: hit.key }), make("b", { textContent: score(hit.score), title: hit.score == null ? "" : "Score, by which hits are ordered" }));
  facts.append(make("p", { textContent: hit.caption, title: hit.caption, dir: "auto" }));
  const item = make("li", {}, facts);
  if (hit.picture) {
    const view = new View(pictureOf(hit, `Hit ${n + 1}`), (patch) => openDetail(hit, patch));
    view.image.loading = "lazy";
    state.views.push({ view, hit });
    item.prepend(view.element);
  }
  return item;
}

let preview = ""; // the address of an uploaded picture

function showAsked(request, query) {
  if (preview) URL.revokeObjectURL(preview);
  preview = request.file ? URL.createObjectURL(request.file) : "";
  $("asked").replaceChildren();
  if (!query.square) return;
  const label = "The picture that is searched by; a patch of it searches by that alone";
  const patches = request.patches ?? [];
  const view = new View({ source: preview || query.picture, square: query.square, label }, (patch) => {
    if (state.info.grid) search({ ...request, top: TOP, patches: patches.includes(patch) ? undefined : [patch] });
  });
  view.element.title = label;
  view.select(patches[0] ?? -1);
  $("asked").append(view.element);
}

// ---------------------------------------------------------------- one hit and its patches

function openDetail(hit, patch) {
  const view = new View(pictureOf(hit, "Whole picture"), choosePatch, true);
  state.detail = { hit, view, patch };
  $("whole").replaceChildren(view.element);
  state.views.push({ view, hit });
  $("title").textContent = hit.key;
  $("caption").textContent = hit.caption;
  const record = { size: hit.width ? `${hit.width} x ${hit.height}` : "", shard: hit.shard, index: hit.index };
  Object.assign(record, { "text to image": score(hit.text_to_image), "image to text": score(hit.image_to_text), pooled: score(hit.pooled) });
  const known = Object.entries(record).filter(([, value]) => value !== "" && value !== undefined);
  $("record").replaceChildren(...known.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  shine();
  for (const id of ["which", "of_patch", "by_patch"]) $(id).hidden = !state.info.grid;
  view.select(patch); // before the focus comes to it, which moves to the chosen patch
  $("detail").showModal();
  if (state.info.grid) choosePatch(patch);
}

async function choosePatch(patch) {
  const { hit, view } = state.detail, own = state.detail;
  own.patch = patch;
  view.select(patch);
  $("which").textContent = `Patch in row ${Math.floor(patch / grid[1]) + 1}, column ${(patch % grid[1]) + 1}`;
  $("by_patch").disabled = false;
  try {
    const asked = { row: hit.row, patches: [patch], text: state.request.text ?? "" };
    const words = await ask("api/patch", JSON.stringify(asked));
    if (own === state.detail && own.patch === patch) showWords(words);
  } catch (error) {
    if (own !== state.detail || own.patch !== patch) return;
    $("of_patch").replaceChildren(make("p", { textContent: error.message }));
    $("by_patch").disabled = true;
  }
}

function showWords({ of_query, of_captions, looked_at }) {
  const parts = [];
  if (of_query.length) parts.push(make("h4", { textContent: "Words of your search" }), ...of_query.map((each) => bar(each, false)));
  if (of_captions.length) {
    parts.push(make("h4", { textContent: `Best of ${count(looked_at)} words of the captions` }), ...of_captions.map((each) => bar(each, true)));
  }
  if (!parts.length) parts.push(make("p", { textContent: "No words to compare: search by some. The captions hold none, or are still being read." }));
  $("of_patch").replaceChildren(...parts);
}

function bar({ word, similarity }, searches) {
  const part = make("i"), meter = make("span", { className: "meter" }, part);
  part.style.width = `${100 * Math.min(Math.max(similarity, 0), 1)}%`;
  const row = make(searches ? "button" : "div", { className: "bar" }, make("bdi", { textContent: word, title: word }), meter, make("span", { textContent: score(similarity) }));
  if (searches) {
    row.title = `Search for ${word}`;
    row.addEventListener("click", () => leaveDetail({ text: word }));
  }
  return row;
}

function leaveDetail(request) {
  $("detail").close();
  search({ where: state.request.where, ...request });
}

// ---------------------------------------------------------------- the start

function take(file) {
  if (!file) return;
  const most = state.info.max_upload_bytes;
  running?.abort();
  if (file.size > most) return fail(`${file.name} has ${count(file.size)} bytes; a picture may have ${count(most)}.`, {}, "");
  $("text").value = "";
  search({ file, where: $("where").value.trim() });
}

function listen() {
  const asked = () => ({ text: $("text").value.trim(), where: $("where").value.trim() });
  let pause = 0;
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(pause);
    const { file, row, patches } = state.request;
    const kept = asked().text || document.activeElement !== $("where") ? {} : { file, row, patches };
    search({ ...kept, ...asked(), text: asked().text || undefined });
  });
  $("text").addEventListener("input", () => {
    clearTimeout(pause);
    if (state.milliseconds !== null && state.milliseconds < QUICK) pause = setTimeout(() => search(asked(), "replace"), PAUSE);
  });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    take($("file").files[0]);
    $("file").value = "";
  });
  $("filter").addEventListener("click", () => {
    showFilters($("filters").hidden);
    if (!$("filters").hidden) $("where").focus();
  });
  $("more").addEventListener("click", () => {
    const top = Math.min((state.request.top ?? TOP) + STEP, state.info.max_top);
    search({ ...state.request, top }, "");
  });
  $("by_patch").addEventListener("click", () => leaveDetail({ row: state.detail.hit.row, patches: [state.detail.patch] }));
  $("by_picture").addEventListener("click", () => leaveDetail({ row: state.detail.hit.row }));
  $("close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
  $("detail").addEventListener("close", () => {
    state.views = state.views.filter(({ view }) => view !== state.detail.view);
    state.detail = null;
  });
  addEventListener("popstate", () => restore());
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || /INPUT/.test(document.activeElement.tagName) || $("detail").open) return;
    event.preventDefault();
    $("text").select();
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => take(event.clipboardData.files[0]));
}

function showFilters(shown) {
  $("filters").hidden = !shown;
  $("filter").setAttribute("aria-expanded", String(shown));
}

function restore() {
  $("detail").close();
  const request = remembered();
  $("text").value = request.text;
  $("where").value = request.where;
  if (request.where) showFilters(true);
  return search(request, "");
}

async function start() {
  shine();
  try {
    state.info = await ask("api/info");
  } catch (error) {
    return fail(error.message, {}, "");
  }
  const { info } = state;
  grid = info.grid ?? [1, 1];
  $("text").maxLength = info.max_text;
  const names = Object.entries(info.columns).map(([name, kind]) => `${name} (${kind})`);
  $("columns").textContent = `Columns: ${names.join(", ")}. For example: width > 640 and caption contains "dog"`;
  const patches = info.grid ? `${grid[0]} x ${grid[1]} patches of a square of ${info.image_size} pixels` : "";
  const about = [info.name, `${count(info.rows)} ${info.side}s`, patches, `step ${info.step}`, ...new Set([info.dtype, ...info.reductions])];
  $("about").textContent = about.filter(Boolean).join(" · ");
  listen();
  await restore();
}

start();
