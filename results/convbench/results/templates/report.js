"use strict";
// Makes every table sortable and filterable. Without it the page says the same, in the order it was written.

const EMPTY = "–";

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function textOf(row, column) {
  return row.cells[column].textContent;
}

// "1,234", "0.25× (0.24–0.26)" and "1.2e-07" sort by the number they begin with.
function numberOf(text) {
  return parseFloat(text.replaceAll(",", ""));
}

function compare(column, numeric, direction) {
  const words = new Intl.Collator(undefined, { numeric: true });
  return (left, right) => {
    const [a, b] = [textOf(left, column), textOf(right, column)];
    if (a === EMPTY || b === EMPTY) return (a === EMPTY) - (b === EMPTY); // last, whichever way
    if (!numeric) return direction * words.compare(a, b);
    const [x, y] = [numberOf(a), numberOf(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return direction * (x - y);
  };
}

function sortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = make("button", { type: "button" }, heading.textContent);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const now = heading.getAttribute("aria-sort");
      const descending = now ? now === "ascending" : false;
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare(column, numeric, descending ? -1 : 1)));
    });
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 4) return;
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const search = make("input", { type: "search", "aria-controls": table.id, autocomplete: "off" });
  const tools = make("div", { class: "tools", role: "search", "aria-label": table.caption.textContent });
  const shown = make("output", { "aria-live": "polite" });
  const selects = [];
  tools.append(make("label", {}, "Find", search));
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.dataset.choices) return;
    const select = make("select", { "aria-controls": table.id });
    select.append(make("option", { value: "" }, "all"));
    for (const choice of JSON.parse(heading.dataset.choices)) select.append(make("option", { value: choice }, choice));
    selects.push([column, select]);
    tools.append(make("label", {}, heading.textContent, select));
  });
  tools.append(shown);

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.filter(([, select]) => select.value);
    let count = 0;
    for (const row of rows) {
      const fits =
        words.every((word) => texts.get(row).includes(word)) &&
        chosen.every(([column, select]) => textOf(row, column) === select.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.value = count === rows.length ? `${rows.length} rows` : `${count} of ${rows.length} rows`;
  }

  tools.addEventListener("input", filter);
  filter();
  table.closest(".table").prepend(tools);
}

for (const table of document.querySelectorAll(".table table")) {
  filterable(table);
  sortable(table);
}

// Charts are folded away on the screen; on paper they cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const chapter of document.querySelectorAll("details.chapter")) chapter.open = true;
});
