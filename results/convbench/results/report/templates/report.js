"use strict";
// Makes tables sortable and filterable, and charts readable value by value. Without it the page says the same, in the
// order it was written.

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
  if (table.tBodies[0].rows.length < 2) return;
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

// Lets pointer, finger and keyboard read the values of a chart: Tab gets to the chart, the arrows from mark to mark.
function readable(figure) {
  const chart = figure.querySelector("svg[role=img]");
  const points = [...figure.querySelectorAll(".point")];
  if (!chart || !points.length) return;
  const reading = make("div", { class: "reading", "aria-hidden": "true", hidden: "" });
  figure.append(reading);
  chart.setAttribute("role", "group");
  chart.setAttribute("aria-roledescription", "chart");
  points.forEach((point, index) => {
    const title = point.querySelector("title");
    point.setAttribute("role", "img");
    point.setAttribute("aria-label", title.textContent);
    point.setAttribute("tabindex", index ? "-1" : "0");
    title.remove(); // or the browser shows it as well
  });

  function hide() {
    for (const each of points) each.classList.remove("read");
    reading.hidden = true;
  }

  function show(point) {
    hide();
    point.classList.add("read");
    reading.textContent = point.getAttribute("aria-label");
    reading.hidden = false;
    const [frame, mark] = [figure.getBoundingClientRect(), point.getBoundingClientRect()];
    const left = mark.left + mark.width / 2 - frame.left - reading.offsetWidth / 2;
    const above = mark.top - frame.top - reading.offsetHeight - 8;
    reading.style.left = `${Math.max(4, Math.min(left, frame.width - reading.offsetWidth - 4))}px`;
    reading.style.top = `${above > 0 ? above : mark.bottom - frame.top + 8}px`;
  }

  // How far from a mark the pointer is, in pixels; marks are small, and fingers are not.
  function distance(point, event) {
    const box = point.getBoundingClientRect();
    const beside = Math.max(box.left - event.clientX, 0, event.clientX - box.right);
    return Math.hypot(beside, Math.max(box.top - event.clientY, 0, event.clientY - box.bottom));
  }

  function pointed(event) {
    const near = points.map((point) => [distance(point, event), point]).sort((a, b) => a[0] - b[0])[0];
    if (near[0] < 24) show(near[1]);
    else hide();
  }

  const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  chart.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const now = points.indexOf(document.activeElement);
    if (!(event.key in keys) || now < 0) return;
    event.preventDefault();
    const next = points[Math.max(0, Math.min(now + keys[event.key], points.length - 1))];
    points[now].setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
  chart.addEventListener("focusin", (event) => show(event.target));
  chart.addEventListener("focusout", hide);
  chart.addEventListener("pointermove", pointed);
  chart.addEventListener("pointerdown", pointed);
  chart.addEventListener("pointerleave", hide);
}

for (const figure of document.querySelectorAll("figure")) readable(figure);
