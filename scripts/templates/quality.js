"use strict";
const table = document.getElementById("forms");
const rows = [...table.tBodies[0].rows];
const headers = [...table.tHead.rows[0].cells];
const told = JSON.parse(document.getElementById("figures").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const points = all(".point");

// Sorting --------------------------------------------------------------------

function compare(a, b, sign) {
  // What was not measured stays at the end, whichever way the column is sorted.
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", {numeric: true}) : difference);
}

// Sort by the column whose heading says so.
function sort() {
  const index = headers.findIndex((header) => header.hasAttribute("aria-sort"));
  const sign = headers[index].getAttribute("aria-sort") === "descending" ? -1 : 1;
  const value = (row) => row.cells[index].dataset.value ?? "";
  rows.sort((a, b) => compare(value(a), value(b), sign));
  table.tBodies[0].append(...rows);
}

function sortBy(header, order) {
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  sort();
}

for (const header of headers) {
  header.querySelector("button").addEventListener("click", () => {
    sortBy(header, header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });
}

// Log or linear, families on and off -------------------------------------------

function scale() {
  const linear = document.querySelector("input[value=linear]");
  document.body.classList.toggle("use-linear", Boolean(linear?.checked));
}

// The forms, the smallest first, that no other beats in size and KLD; equals stay together.
function front(forms) {
  const kld = (form) => Math.max(told.forms[form].kld, 0);
  const size = (form) => told.forms[form].bytes;
  const measured = forms.filter((form) => told.forms[form].kld !== null);
  const beats = (other, form) => size(other) <= size(form) && kld(other) <= kld(form)
    && (size(other) < size(form) || kld(other) < kld(form));
  return measured
    .filter((form) => !measured.some((other) => beats(other, form)))
    .sort((a, b) => size(a) - size(b));
}

function families() {
  const off = new Set(all("input[data-family]:not(:checked)").map((other) => other.dataset.family));
  const hidden = new Set(rows.filter((row) => off.has(row.dataset.family)).map((row) => row.dataset.form));
  for (const element of all("[data-form]")) {
    element.classList.toggle("off", hidden.has(element.dataset.form));
  }
  for (const line of all(".presets-line")) line.classList.toggle("off", off.has(line.dataset.family));
  const best = front(Object.keys(told.forms).filter((form) => !hidden.has(form)));
  for (const row of rows) row.cells[0].classList.toggle("front", best.includes(row.dataset.form));
  for (const svg of all(".quality-plot")) {
    const place = new Map();
    for (const element of all(".point, .whisker", svg)) {
      element.classList.toggle("front", best.includes(element.dataset.form));
    }
    for (const point of all(".point.charted", svg)) {
      const marker = point.querySelector("use");
      place.set(point.dataset.form, `${marker.getAttribute("x")} ${marker.getAttribute("y")}`);
    }
    const line = best.filter((form) => place.has(form)).map((form) => place.get(form));
    const path = svg.querySelector(".front-line path");
    path?.setAttribute("d", line.length ? `M ${line.join(" L ")}` : "M 0 0");
  }
}

for (const input of all(".controls input")) input.addEventListener("change", input.name ? scale : families);

// A row and its point in the plot light up together; a point tells its row's figures ---

const tip = document.getElementById("tip");

function light(form, on) {
  for (const element of all("[data-form]")) {
    if (element.dataset.form === form) element.classList.toggle("lit", on);
  }
}

function tell(point) {
  const row = rows.find((other) => other.dataset.form === point.dataset.form);
  const list = document.createElement("dl");
  headers.forEach((header, index) => {
    const cell = row.cells[index];
    if (!index || !cell.dataset.value || cell.offsetParent === null) return;
    list.append(
      Object.assign(document.createElement("dt"), {textContent: header.textContent}),
      Object.assign(document.createElement("dd"), {textContent: cell.textContent.trim()}),
    );
  });
  const name = Object.assign(document.createElement("strong"), {textContent: row.dataset.form});
  tip.replaceChildren(name, list);
  tip.hidden = false;
  const at = point.querySelector("use").getBoundingClientRect();
  const edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = at.right + 12 > edge ? at.left - tip.offsetWidth - 12 : at.right + 12;
  tip.style.left = `${Math.max(8, Math.min(left, edge)) + scrollX}px`;
  tip.style.top = `${at.bottom + 10 + scrollY}px`;
}

for (const element of [...rows, ...points]) {
  element.addEventListener("mouseenter", () => light(element.dataset.form, true));
  element.addEventListener("mouseleave", () => light(element.dataset.form, false));
}
for (const point of points) {
  point.querySelector("title")?.remove();  // the browser's own tooltip would cover this one
  point.addEventListener("mouseenter", () => tell(point));
  point.addEventListener("mouseleave", () => { tip.hidden = true; });
  point.addEventListener("click", () => pick(point.dataset.form));
}

// One form against the others ---------------------------------------------------

let picked = null;

// The KLD of `a` less that of `b`, and its error; nulls if not measured on the same tokens.
function difference(a, b) {
  const measured = a.kld !== null && b.kld !== null;
  if (!measured || JSON.stringify(a.text) !== JSON.stringify(b.text)) return {value: null, error: null};
  const value = a.kld - b.kld, count = a.chunks.length;
  if (count < told.enough || count !== b.chunks.length) return {value, error: null};
  const parts = a.chunks.map((kld, index) => kld - b.chunks[index]);
  const mean = parts.reduce((sum, part) => sum + part, 0) / count;
  const squares = parts.reduce((sum, part) => sum + (part - mean) ** 2, 0);
  return {value, error: Math.sqrt(squares / (count - 1) / count)};
}

function signed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? "0" : (value < 0 ? "\u2212" : "+") + text;
}

function fill(cell, value, text, sure) {
  cell.dataset.value = value ?? "";
  cell.replaceChildren(Object.assign(document.createElement(sure ? "strong" : "span"), {textContent: text}));
}

function pick(form) {
  picked = form === picked ? null : form;
  table.classList.toggle("comparing", picked !== null);
  for (const element of all("[data-form]")) {
    element.classList.toggle("picked", element.dataset.form === picked);
  }
  const other = told.forms[picked];
  const columns = headers.flatMap((header, index) => header.classList.contains("versus") ? index : []);
  ["KLD", "Size"].forEach((what, index) => {
    headers[columns[index]].querySelector("button").textContent = `${what} less ${picked}’s`;
  });
  for (const row of picked === null ? [] : rows) {
    const mine = told.forms[row.dataset.form], [kld, size] = columns.map((index) => row.cells[index]);
    fill(size, mine.bytes - other.bytes, `${signed((mine.bytes - other.bytes) / told.unit, 2)} ${told.unitName}`);
    const {value, error} = difference(mine, other);
    if (value === null) {
      fill(kld, null, "–");
      continue;
    }
    const digits = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(error || Math.abs(value) / 10 || 1))));
    const bounds = error ? ` ± ${error.toFixed(digits)}` : "";
    fill(kld, value, signed(value, digits) + bounds, error && Math.abs(value) > told.sure * error);
  }
  // What was sorted by these columns is in order again, or by size if they are gone.
  if (columns.some((index) => headers[index].hasAttribute("aria-sort"))) {
    if (picked === null) sortBy(headers[1], "ascending");
    else sort();
  }
}

for (const row of rows) {
  row.cells[0].querySelector("button").addEventListener("click", () => pick(row.dataset.form));
}

// After "back" the browser keeps what was chosen.
addEventListener("pageshow", () => {
  scale();
  if (all("input[data-family]:not(:checked)").length) families();
});
