"use strict";
const search = document.querySelector("input");
const models = [...document.querySelectorAll("main li")];
const found = document.querySelector("output");

// Each word must be in the model's name or in one of its forms.
function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const model of models) {
    const text = model.dataset.text.toLowerCase();
    model.hidden = !words.every((word) => text.includes(word));
    count += !model.hidden;
  }
  found.textContent = words.length ? `${count} of ${models.length}` : "";
}
search.addEventListener("input", filter);
addEventListener("pageshow", filter);  // after "back" the browser keeps the words
