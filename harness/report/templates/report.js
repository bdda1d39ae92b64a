"use strict";
// Sorting tables, reading values off the charts by pointer and keys, hiding series, theme, opening all for print.
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => { opened.forEach((d) => { d.open = false; }); });

  // What a cell is sorted by: its first number in the smallest unit, texts without one by their letters, dashes last.
  const UNITS = { KiB: 1 / 1024, MiB: 1, GiB: 1024, TiB: 1048576, ms: 0.001, s: 1, min: 60, h: 3600, d: 86400 };
  const valueOf = (text) => {
    const found = /^[^\d+\-]*([+-]?\d+(?:\.\d+)?)(?:\s*([A-Za-z]+))?/.exec(text.trim());
    return found ? Number(found[1]) * (UNITS[found[2]] || 1) : null;
  };
  const compare = (a, b) => {
    const x = valueOf(a), y = valueOf(b);
    if (x !== null && y !== null && x !== y) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  };
  const lacks = (text) => ["", "\u2013", "-"].includes(text.trim());
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const text = (row) => row.cells[column].textContent;
    const order = column ? compare : (a, b) => a.localeCompare(b, "en", { numeric: true });
    const rows = [...body.rows].map((row, at) => [row, at]).sort(([a, i], [b, j]) => {
      const none = lacks(text(a)) - lacks(text(b));
      return none || (down ? -1 : 1) * order(text(a), text(b)) || i - j;
    });
    rows.forEach(([row]) => body.append(row));
  };
  document.querySelectorAll("table").forEach((table) => {
    if (table.tBodies[0].rows.length < 2) return;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort by this column";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        // Figures largest first, names from A on; a second click turns it.
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : column > 0 && table.classList.contains("numeric");
        [...table.tHead.rows[0].cells].forEach((cell) => cell.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
      });
    });
  });

  document.querySelectorAll("figure.chart").forEach((figure) => {
    const plot = figure.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const live = figure.querySelector(".live");
    const data = JSON.parse(figure.querySelector("script").textContent);
    const box = svg.viewBox.baseVal;
    const hidden = new Set();
    let tip = null, dot = null, at = null; // at = [series position, point position]

    const shown = () => data.series.map((s, i) => i).filter((i) => !hidden.has(data.series[i].series) && data.series[i].points.length);
    const clear = () => { [tip, dot].forEach((e) => e && e.remove()); tip = dot = at = null; };
    const show = (si, pi, aloud) => {
      const series = data.series[si], point = series.points[pi];
      if (!tip) {
        tip = plot.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
        dot = plot.appendChild(Object.assign(document.createElement("div"), { className: "dot" }));
      }
      at = [si, pi];
      const scale = svg.clientWidth / box.width;
      const x = point[0] * scale, y = point[1] * scale;
      dot.style.left = x + "px"; dot.style.top = y + "px";
      const text = series.label + ": " + point[3] + (data.parts ? ", " + point[2] : point[2] === "" ? "" : " at " + point[2]);
      tip.textContent = text;
      const half = tip.offsetWidth / 2;
      tip.style.left = Math.min(Math.max(x, half), plot.clientWidth - half) + "px"; tip.style.top = Math.max(y, tip.offsetHeight + 12) + "px";
      if (aloud) live.textContent = text;
    };
    plot.addEventListener("pointermove", (event) => {
      const r = svg.getBoundingClientRect(), scale = box.width / r.width;
      const x = (event.clientX - r.left) * scale, y = (event.clientY - r.top) * scale;
      let best = null, least = 60 * 60;
      for (const si of shown()) {
        data.series[si].points.forEach((p, pi) => {
          const d = (p[0] - x) ** 2 + (p[1] - y) ** 2;
          if (d < least) { least = d; best = [si, pi]; }
        });
      }
      if (best) show(best[0], best[1], false); else clear();
    });
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const order = shown();
      if (!order.length || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "Escape"].includes(event.key)) return;
      event.preventDefault();
      if (event.key === "Escape") { clear(); return; }
      if (!at) { show(order[0], 0, true); return; }
      let [si, pi] = at;
      const rank = order.indexOf(si);
      if (event.key === "ArrowDown") si = order[Math.min(rank + 1, order.length - 1)];
      if (event.key === "ArrowUp") si = order[Math.max(rank - 1, 0)];
      const last = data.series[si].points.length - 1;
      if (event.key === "ArrowRight") pi += 1;
      if (event.key === "ArrowLeft") pi -= 1;
      if (event.key === "Home") pi = 0;
      if (event.key === "End") pi = last;
      show(si, Math.min(Math.max(pi, 0), last), true);
    });
    figure.querySelectorAll(".legend button").forEach((button) => {
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const number of JSON.parse(button.dataset.series)) {
          if (on) hidden.delete(number); else hidden.add(number);
          svg.querySelectorAll('[data-series="' + number + '"]').forEach((part) => { part.classList.toggle("off", !on); });
        }
        clear();
      });
    });
  });
})();
