"use strict";
// A page's table of prompts: sorted, filtered, paged; a row's card comes from the page, or from a script beside it.
const PAGE = 100;
const data = JSON.parse(document.getElementById("data").textContent);
const [body] = document.getElementById("prompts").tBodies;
const at = (id) => document.getElementById(id);
const headers = [...document.querySelectorAll("#prompts thead th")];
const collator = new Intl.Collator("en", { numeric: true });
const filters = [...document.querySelectorAll("form select")];
const opened = new Set();
const loaded = new Map();

const rows = data.rows.map((values, rank) => {
  const row = Object.fromEntries(data.fields.map((name, index) => [name, values[index]]));
  return Object.assign(row, { rank, text: row.prompt.toLowerCase() });
});
const first = (value) => [value].flat()[0];
const percent = (value) => (value >= 0.995 ? ">99%" : value < 0.005 ? "<1%" : `${Math.round(100 * value)}%`);
// What a column shows of a value, and what it is sorted by: its text where nothing else is said.
const kinds = {
  text: { show: (value) => value },
  name: { show: (value, column) => data.names[column][value] },
  mark: { show: (value, column) => data.names[column][first(value)], by: first },
  percent: { show: percent, by: (value) => value },
  share: { show: ([found, of]) => `${found}/${of}`, by: ([found, of]) => found / of },
  distance: { show: (value) => value.toFixed(2), by: (value) => value },
  count: { show: String, by: (value) => value },
};
const show = (row, name) => kinds[data.columns[name].kind].show(row[name], name);
let found = rows;
let page = 0;
let sorting = { name: "", falling: true }; // no name: as the rows came

function choose() {
  const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = filters.map((list) => [list.id, list.value]).filter(([, value]) => value);
  found = rows.filter(
    (row) =>
      words.every((word) => row.text.includes(word)) &&
      wanted.every(([name, value]) => [row[name]].flat().includes(+value)),
  );
  if (sorting.name) {
    const { name } = sorting;
    const { by } = kinds[data.columns[name].kind];
    const compare = by
      ? (a, b) => by(a[name]) - by(b[name])
      : (a, b) => collator.compare(show(a, name), show(b, name));
    const missing = (row) => row[name] === null;
    const sign = sorting.falling ? -1 : 1;
    found.sort((a, b) => missing(a) - missing(b) || (!missing(a) && sign * compare(a, b)) || a.rank - b.rank);
  }
  page = 0;
  render();
}

function render(everything = false) {
  const shown = everything ? found : found.slice(page * PAGE, (page + 1) * PAGE);
  body.replaceChildren(...shown.flatMap((row) => (opened.has(row.card) ? [draw(row), unfold(row)] : [draw(row)])));
  for (const header of headers) {
    if (header.dataset.column !== sorting.name) header.removeAttribute("aria-sort");
    else header.setAttribute("aria-sort", sorting.falling ? "descending" : "ascending");
  }
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  const all = rows.length.toLocaleString("en");
  at("status").textContent = `${found.length.toLocaleString("en")} of ${all} ${rows.length === 1 ? "row" : "rows"}`;
  at("page").textContent = `page ${page + 1} of ${pages}`;
  at("back").disabled = page === 0;
  at("forth").disabled = page + 1 >= pages;
  at("back").parentElement.hidden = pages === 1;
  const open = shown.length > 0 && shown.every((row) => opened.has(row.card));
  at("all").textContent = open ? "close all shown" : "open all shown";
  at("all").onclick = () => {
    for (const row of shown) open ? opened.delete(row.card) : opened.add(row.card);
    render();
  };
}

function draw(row) {
  const line = document.createElement("tr");
  for (const header of headers) {
    const name = header.dataset.column;
    const cell = line.insertCell();
    cell.className = header.className;
    if (name === "prompt") cell.append(button(row));
    else if (row[name] === null) cell.textContent = "–";
    else if (data.columns[name].kind === "mark") cell.append(mark(show(row, name)));
    else cell.textContent = show(row, name);
  }
  return line;
}

function mark(name) {
  const place = document.createElement("span");
  place.className = `mark of-${name}`;
  const shape = document.createElement("i");
  shape.textContent = data.shapes[name];
  shape.ariaHidden = "true";
  place.append(shape, ` ${name.replaceAll("_", " ")}`);
  return place;
}

function button(row) {
  const place = document.createElement("button");
  const text = document.createElement("span");
  text.dir = "auto";
  text.textContent = row.prompt;
  place.type = "button";
  place.className = "open";
  place.setAttribute("aria-expanded", opened.has(row.card));
  place.setAttribute("aria-controls", `card-${row.card}`);
  place.append(text);
  place.onclick = () => {
    const line = place.closest("tr");
    if (opened.delete(row.card)) line.nextElementSibling.remove();
    else line.after(unfold(row));
    place.setAttribute("aria-expanded", opened.has(row.card));
  };
  return place;
}

function unfold(row) {
  opened.add(row.card);
  const line = document.createElement("tr");
  line.className = "card";
  line.id = `card-${row.card}`;
  const cell = line.insertCell();
  cell.colSpan = headers.length;
  const content = at(`content-${row.card}`);
  if (content) cell.append(content.content.cloneNode(true));
  else {
    cell.textContent = "loading …";
    load(row).then(
      (text) => {
        cell.innerHTML = text; // escaped where it was written
      },
      (file) => {
        cell.textContent = `${file} is not beside this page.`;
      },
    );
  }
  return line;
}

// A page that was opened as a file may not fetch another one, but a script tag may.
function load(row) {
  const part = Math.floor(row.card / data.chunk);
  const file = `${data.folder}/${data.files[part]}`;
  if (!loaded.has(part)) {
    loaded.set(
      part,
      new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.onload = () => resolve(window.basinCards);
        script.onerror = () => reject(file);
        script.src = file;
        document.head.append(script);
      }),
    );
  }
  return loaded.get(part).then((cards) => cards[row.card % data.chunk]);
}

for (const header of headers) {
  header.firstElementChild.onclick = () => {
    const name = header.dataset.column;
    sorting = { name, falling: sorting.name === name ? !sorting.falling : data.columns[name].falling };
    choose();
  };
}
for (const control of [at("search"), ...filters]) control.addEventListener("input", choose);
document.querySelector("form").onsubmit = (event) => event.preventDefault();
const turn = (step) => () => {
  page += step;
  render();
};
at("back").onclick = turn(-1);
at("forth").onclick = turn(1);
// On paper all rows are there, unless they are thousands.
addEventListener("beforeprint", () => {
  for (const list of document.querySelectorAll("details")) list.open = true;
  data.chunk || render(true);
});
addEventListener("afterprint", () => data.chunk || render());
choose();
