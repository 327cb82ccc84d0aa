"use strict";
// EXPLORER (data.js): the sets of images, each with its ids and the sizes of its sheets of tiles.
const VIEWS = { budget: "Token budget", swap: "Swap tokens", prior: "Sample with the prior" };
const state = { set: 0, view: "budget", image: 0, other: 1, noise: 0, k: 1, condition: 0 };
const sheets = {}; // name -> Image
const $ = (id) => document.getElementById(id);
const world = () => EXPLORER.sets[state.set];

// ---- elements -----------------------------------------------------------------------------------

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options))
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A canvas with tile `index` of a sheet; the tiles are in rows of `columns`.
function tile(sheet, index, alt) {
  const size = world().size;
  const canvas = element("canvas", { width: size, height: size, role: "img", "aria-label": alt });
  const { columns } = world().sheets[sheet];
  const x = (index % columns) * size, y = Math.floor(index / columns) * size;
  const source = sheets[`${world().name}-${sheet}`];
  canvas.getContext("2d").drawImage(source, x, y, size, size, 0, 0, size, size);
  return canvas;
}

function button(text, pressed, action, role = "aria-pressed") {
  const made = element("button", { type: "button", onclick: () => (action(), draw()) }, text);
  made.setAttribute(role, String(pressed));
  return made;
}

const figure = (canvas, text) => element("figure", {}, canvas, element("figcaption", {}, text));
const tokens = (k) => `${k} token${k === 1 ? "" : "s"}`;

function chips(row, kept, second = null) {
  const box = element("div", { className: "ids", "aria-label": "token ids" });
  row.forEach((id, i) => {
    const shown = i < kept || !second ? id : second[i];
    const chip = element("span", { title: `token ${i + 1}` }, String(shown));
    chip.style.background = EXPLORER.colors[i];
    if (EXPLORER.light[i]) chip.classList.add("light");
    if (i >= kept) chip.classList.add(second ? "other" : "dropped");
    box.append(chip);
  });
  return box;
}

function thumbs(count, chosen, choose) {
  const box = element("div", { className: "thumbs" });
  for (let i = 0; i < count; i++) {
    const made = button("", i === chosen, () => choose(i));
    made.setAttribute("aria-label", `image ${i + 1}: ${world().labels[i]}`);
    made.append(tile("originals", i, world().labels[i]));
    box.append(made);
  }
  return box;
}

function slider(values, text) {
  const at = Math.max(0, values.findLastIndex((v) => v <= state.k));
  const input = element("input", { type: "range", id: "k", min: 0, max: values.length - 1, value: at });
  input.setAttribute("aria-valuetext", text);
  input.oninput = () => { state.k = values[input.value]; draw(); };
  return element("div", {}, element("label", { htmlFor: "k" }, text), input);
}

// ---- views --------------------------------------------------------------------------------------

const lengths = () => ({
  budget: world().ids[0].map((_, i) => i + 1),
  swap: world().swap_lengths,
  prior: world().prefix_lengths,
})[state.view];

// The largest length of the present view that is at most state.k.
const length = () => lengths().findLast((v) => v <= state.k) ?? lengths()[0];

function budget() {
  const w = world(), k = length(), K = w.ids[0].length, label = w.labels[state.image];
  const index = (state.image * w.noises + state.noise) * K + k - 1;
  const bytes = Math.ceil((k * w.bits) / 8);
  const noises = element("nav", { "aria-label": "Noise" });
  for (let i = 0; i < w.noises; i++)
    noises.append(button(`noise ${i + 1}`, i === state.noise, () => (state.noise = i)));
  return [
    element("h2", {}, "Choose an image and a number of tokens"),
    thumbs(w.ids.length, state.image, (i) => (state.image = i)),
    slider(lengths(), `${tokens(k)} of ${K}: ${bytes} byte${bytes === 1 ? "" : "s"}`),
    chips(w.ids[state.image], k),
    element("div", { className: "pair" },
      figure(tile("originals", state.image, label), `original: ${label}`),
      figure(tile("decoded", index, `${label} from ${tokens(k)}`), `decoded from ${tokens(k)}`)),
    noises,
    element("p", {}, "Another noise gives another image that fits the same tokens. What changes " +
      "with the noise is what the tokens leave open."),
  ];
}

function swap() {
  const w = world(), k = length(), n = w.swap_images, a = state.image % n, b = state.other % n;
  const index = (a * n + b) * w.swap_lengths.length + w.swap_lengths.indexOf(k);
  const text = `first ${tokens(k)} of A, the others of B`;
  return [
    element("h2", {}, "The first tokens of image A, the others of image B"),
    element("label", {}, "A"), thumbs(n, a, (i) => (state.image = i)),
    element("label", {}, "B"), thumbs(n, b, (i) => (state.other = i)),
    slider(lengths(), text),
    chips(w.ids[a], k, w.ids[b]),
    element("div", { className: "pair" },
      figure(tile("originals", a, `A: ${w.labels[a]}`), `A: ${w.labels[a]}`),
      figure(tile("swaps", index, text), text),
      figure(tile("originals", b, `B: ${w.labels[b]}`), `B: ${w.labels[b]}`)),
  ];
}

function prior() {
  const w = world(), j = length(), count = w.branches, at = w.prefix_lengths.indexOf(j);
  const buttons = element("nav", { "aria-label": "Condition" });
  w.conditions.forEach((text, i) =>
    buttons.append(button(text, i === state.condition, () => (state.condition = i))));
  const row = element("div", { className: "row" });
  for (let i = 0; i < count; i++) {
    const index = (state.condition * w.prefix_lengths.length + at) * count + i;
    row.append(figure(tile("branches", index, `sample ${i + 1}`), i ? `sample ${i + 1}` : "sample 1, whose prefix is shared"));
  }
  const shared = `all samples share the first ${tokens(j)} of sample 1`;
  return [
    element("h2", {}, "The prior generates ids for a condition"),
    buttons,
    slider(lengths(), j ? shared : "the samples share no token"),
    row,
    element("p", {}, "All samples use the same noise, so they differ in their tokens alone. The " +
      "more tokens they share, the more alike they are."),
  ];
}

// ---- drawing, keys ------------------------------------------------------------------------------

function draw() {
  const focused = document.activeElement?.id, w = world();
  state.image %= w.ids.length;
  state.condition %= w.conditions.length;
  state.noise %= w.noises;
  $("sets").replaceChildren(...EXPLORER.sets.map((s, i) => button(s.title, i === state.set, () => (state.set = i))));
  $("tabs").replaceChildren(...Object.entries(VIEWS).map(([name, text]) => {
    const made = button(text, name === state.view, () => (state.view = name), "aria-selected");
    made.setAttribute("role", "tab");
    return made;
  }));
  $("view").replaceChildren(...{ budget, swap, prior }[state.view]());
  $("about").textContent = w.about;
  if (focused) $(focused)?.focus();
}

function move(values, value, by) {
  const at = values.findLastIndex((v) => v <= value);
  return values[Math.min(values.length - 1, Math.max(0, at + by))];
}

const cycle = (n, value, by) => (value + by + n) % n;
const KEYS = {
  ArrowRight: () => (state.k = move(lengths(), state.k, 1)),
  ArrowLeft: () => (state.k = move(lengths(), state.k, -1)),
  ArrowDown: () => choose(1),
  ArrowUp: () => choose(-1),
  n: () => (state.noise = cycle(world().noises, state.noise, 1)),
  s: () => (state.set = cycle(EXPLORER.sets.length, state.set, 1)),
  v: () => (state.view = nextView()),
};

function nextView() {
  const names = Object.keys(VIEWS);
  return names[cycle(names.length, names.indexOf(state.view), 1)];
}

function choose(by) {
  if (state.view === "prior") state.condition = cycle(world().conditions.length, state.condition, by);
  else {
    const n = state.view === "swap" ? world().swap_images : world().ids.length;
    state.image = cycle(n, state.image % n, by);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
  draw();
});

// The page is drawn when all sheets are there: they are a few files beside it.
Promise.all(EXPLORER.sets.flatMap((s) => Object.keys(s.sheets).map((name) => {
  const image = (sheets[`${s.name}-${name}`] = new Image());
  image.src = `${s.name}-${name}.webp`;
  return image.decode();
}))).then(() => { draw(); document.body.dataset.ready = "yes"; });
