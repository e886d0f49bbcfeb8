"use strict";
const table = document.getElementById("forms");
const body = table.tBodies[0];
const headers = [...table.tHead.rows[0].cells];

function compare(a, b, sign) {
  // What was not measured stays at the end, whichever way the column is sorted.
  if (a === "" || b === "") return (a === "") - (b === "");
  const difference = Number(a) - Number(b);
  return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", {numeric: true}) : difference);
}

headers.forEach((header, index) => {
  header.querySelector("button").addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[index].dataset.value;
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), down ? -1 : 1)));
  });
});

// A row and its point in the plot light up together.
function light(name, on) {
  for (const element of document.querySelectorAll("[data-form]")) {
    if (element.dataset.form === name) element.classList.toggle("lit", on);
  }
}
for (const element of document.querySelectorAll("[data-form]")) {
  element.addEventListener("mouseenter", () => light(element.dataset.form, true));
  element.addEventListener("mouseleave", () => light(element.dataset.form, false));
}
