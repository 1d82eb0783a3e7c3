"use strict";
// The page is complete without this: it adds sorting, read-outs and the choice of a run.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  // ---- tables that sort by a click or a key on their headers ----

  function makeSortable(table) {
    const body = table.tBodies[0];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        // Text begins at A, the layers' order at the first, other numbers at the largest.
        const first = header.dataset.first || "descending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = header.getAttribute("aria-sort") === first ? second : first;
        for (const other of headers) other.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows];
        rows.sort((a, b) => sign * compare(a.cells[column], b.cells[column], sign));
        body.append(...rows);
      });
    });
  }

  function compare(a, b, sign) {
    const x = a.dataset.value, y = b.dataset.value;
    if (x === undefined || y === undefined) {
      // What is missing goes last, in both orders.
      return sign * ((x === undefined) - (y === undefined));
    }
    return Number(x) - Number(y);
  }

  // ---- charts: a cursor that follows the pointer or the arrow keys ----

  function makeReadable(chart) {
    const data = JSON.parse(chart.dataset.chart);
    const cursor = chart.querySelector(".cursor");
    const readout = chart.nextElementSibling;
    const summary = readout.textContent;
    chart.setAttribute("tabindex", "0");
    const points = data.lines.filter((line) => line.points);
    const stops = [...new Set(points.flatMap((line) => line.points.map((p) => p[0])))];
    stops.sort((a, b) => a - b);
    if (!stops.length) return;
    let at = -1;

    function show(index) {
      at = Math.max(0, Math.min(stops.length - 1, index));
      const x = stops[at];
      cursor.replaceChildren();
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("d", `M${x},${data.top}V${data.bottom}`);
      cursor.append(line);
      let where = "";
      const texts = [];
      for (const series of data.lines) {
        if (!series.points) {
          texts.push([series.name, series.flat]);
          continue;
        }
        const point = series.points.find((p) => p[0] === x);
        if (!point) continue;
        const dot = document.createElementNS(SVG, "circle");
        dot.setAttribute("cx", x);
        dot.setAttribute("cy", point[1]);
        dot.setAttribute("r", 4);
        cursor.append(dot);
        where = point[2];
        texts.push([series.name, point[3]]);
      }
      cursor.removeAttribute("hidden");
      readout.replaceChildren(`${where}: `);
      texts.forEach(([name, value], i) => {
        const bold = document.createElement("b");
        bold.textContent = value;
        readout.append(`${i ? ", " : ""}${name} `, bold);
      });
    }

    function hide() {
      cursor.setAttribute("hidden", "");
      readout.textContent = summary;
      at = -1;
    }

    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      let best = 0;
      stops.forEach((stop, i) => {
        if (Math.abs(stop - x) < Math.abs(stops[best] - x)) best = i;
      });
      if (best !== at) show(best);
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: stops.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }

  function addHint(charts) {
    if (!charts.querySelector("svg[data-chart]")) return;
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Point at a chart, or focus it and use the arrow keys, for its values.";
    charts.before(hint);
  }

  // ---- several runs: one is shown at a time ----

  function makeSelectable(group, number) {
    const parts = [...group.querySelectorAll(":scope > [data-run]")];
    if (parts.length < 2) return;
    const picker = document.createElement("fieldset");
    picker.className = "picker";
    const legend = document.createElement("legend");
    legend.textContent = "Run shown";
    picker.append(legend);
    const choose = (name) => {
      for (const part of parts) part.hidden = name !== null && part.dataset.run !== name;
    };
    for (const name of [...parts.map((part) => part.dataset.run), null]) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.type = "radio";
      input.name = `run-of-${number}`;
      input.checked = name === parts[0].dataset.run;
      input.addEventListener("change", () => choose(name));
      label.append(input, name === null ? "all" : name);
      picker.append(label);
    }
    group.prepend(picker);
    choose(parts[0].dataset.run);
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("svg[data-chart]").forEach(makeReadable);
  document.querySelectorAll("section > .charts").forEach(addHint);
  document.querySelectorAll("[data-runs]").forEach(makeSelectable);
})();
