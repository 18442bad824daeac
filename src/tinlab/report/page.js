"use strict";

// Tables sort by a button in each heading; numbers as numbers, words as words.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  // What is no number, such as a dash, comes below all that are.
  const number = (text) => {
    const found = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(found) ? -Infinity : found;
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = heading.classList.contains("n");
      const before = heading.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = numeric
        ? (a, b) => number(value(a, column)) - number(value(b, column))
        : (a, b) => value(a, column).localeCompare(value(b, column));
      const rows = [...body.rows].sort(order);
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}

// A chart tells its values at the epoch (or minute) under the pointer, or at the one chosen with the arrow keys.
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const { pixels, values, digits, unit, axis, clock, series } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const shown = [...figure.querySelectorAll(".key b")];
  const where = figure.querySelector(".where");
  const atEnd = [...shown.map((item) => item.textContent), where.textContent];
  const nearest = (xs, x) => xs.reduce((best, each, i) => (Math.abs(each - x) < Math.abs(xs[best] - x) ? i : best), 0);
  let epoch = values[1];

  const tell = (x) => {
    epoch = Math.min(Math.max(x, values[0]), values[1]);
    const at = pixels[0] + ((pixels[1] - pixels[0]) * (epoch - values[0])) / (values[1] - values[0]);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    series.forEach(({ x: xs, y }, i) => {
      const value = y[nearest(xs, epoch)];
      const format = { minimumFractionDigits: digits, maximumFractionDigits: digits };
      // Without a number of decimals, three significant digits: a learning rate spans magnitudes.
      shown[i].textContent = digits === null ? String(Number(value.toPrecision(3))) : value.toLocaleString("en", format) + unit;
    });
    const minutes = clock ? ` · ${(clock[1][nearest(clock[0], epoch)] / 60).toFixed(1)} min` : "";
    where.textContent = `${axis} ${epoch.toFixed(1)}${minutes}`;
  };
  const rest = () => {
    cursor.setAttribute("visibility", "hidden");
    shown.forEach((item, i) => { item.textContent = atEnd[i]; });
    where.textContent = atEnd[shown.length];
    epoch = values[1];
  };

  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    tell(values[0] + ((values[1] - values[0]) * (at - pixels[0])) / (pixels[1] - pixels[0]));
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("blur", rest);
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    tell(epoch + (by * (values[1] - values[0])) / 50);
  });
}
