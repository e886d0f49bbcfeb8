"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const table = document.getElementById("candidates");
const headers = [...table.tHead.rows[0].cells];
const rows = all("tbody tr", table);

// Sorting: each group of rows by itself, because only what was measured together is comparable ----

function compare(a, b, sign) {
  // What was not measured stays at the end, whichever way the column is sorted.
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", {numeric: true}) : difference);
}

function sortBy(header, order) {
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  const index = headers.indexOf(header), sign = order === "descending" ? -1 : 1;
  const value = (row) => row.cells[index].dataset.value ?? "";
  for (const body of table.tBodies) {
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), sign)));
  }
}

for (const header of headers) {
  header.querySelector("button").addEventListener("click", () => {
    sortBy(header, header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });
}

// A candidate lights up in the table and in all charts; its name keeps it lit -----------------------

const tip = document.getElementById("tip");
const marks = new Map();
for (const mark of all("[data-c]")) {
  if (!marks.has(mark.dataset.c)) marks.set(mark.dataset.c, []);
  marks.get(mark.dataset.c).push(mark);
}
let kept = null, lit = null;

function light(candidate) {
  if (candidate === lit) return;
  for (const mark of marks.get(lit) ?? []) mark.classList.remove("lit");
  lit = candidate;
  for (const mark of marks.get(lit) ?? []) {
    mark.classList.add("lit");
    // SVG has no z-index: what comes last is on top.
    if (mark.ownerSVGElement) mark.parentNode.append(mark);
  }
  document.body.classList.toggle("focus", lit !== null);
}

function keep(candidate) {
  kept = candidate === kept ? null : candidate;
  for (const row of rows) row.classList.toggle("kept", kept !== null && row.dataset.c === kept);
  light(kept);
}

function tell(mark) {
  const row = rows.find((other) => other.dataset.c === mark.dataset.c);
  const list = document.createElement("dl");
  headers.forEach((header, index) => {
    const cell = row.cells[index];
    if (!index || !cell.dataset.value || !cell.textContent.trim()) return;
    const told = cell.dataset.told ? `\n${cell.dataset.told}` : "";
    list.append(
      Object.assign(document.createElement("dt"), {textContent: header.textContent}),
      Object.assign(document.createElement("dd"), {textContent: cell.textContent.trim() + told}),
    );
  });
  const name = Object.assign(document.createElement("strong"), {textContent: row.dataset.name});
  tip.replaceChildren(name, list);
  tip.hidden = false;
  const at = mark.getBoundingClientRect();
  const edge = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = at.right + 12 > edge ? at.left - tip.offsetWidth - 12 : at.right + 12;
  tip.style.left = `${Math.max(8, Math.min(left, edge)) + scrollX}px`;
  const below = at.top + tip.offsetHeight + 10 > innerHeight;
  tip.style.top = `${(below ? Math.max(8, innerHeight - tip.offsetHeight - 8) : at.top) + scrollY}px`;
}

for (const row of rows) {
  if (row.dataset.c === undefined) continue;
  row.addEventListener("mouseenter", () => light(row.dataset.c));
  row.addEventListener("mouseleave", () => light(kept));
  row.addEventListener("focusin", () => light(row.dataset.c));
  row.addEventListener("focusout", () => light(kept));
  row.querySelector("button").addEventListener("click", () => keep(row.dataset.c));
}
for (const mark of all(".chart [data-c]")) {
  mark.addEventListener("mouseenter", () => { light(mark.dataset.c); tell(mark); });
  mark.addEventListener("mouseleave", () => { light(kept); tip.hidden = true; });
  mark.addEventListener("click", () => keep(mark.dataset.c));
}
for (const cell of all(".heat [data-c]")) {
  cell.addEventListener("mouseenter", () => { light(cell.dataset.c); tell(cell); });
  cell.addEventListener("mouseleave", () => { light(kept); tip.hidden = true; });
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && kept !== null) keep(kept);
});

// Rounds ----------------------------------------------------------------------------------------

function round() {
  const chosen = document.querySelector("input[name=round]:checked")?.value;
  if (chosen === undefined) return;
  for (const part of all("[data-round]")) part.hidden = part.dataset.round !== chosen;
}

for (const input of all("input[name=round]")) input.addEventListener("change", round);
addEventListener("pageshow", round);  // after "back" the browser keeps what was chosen
