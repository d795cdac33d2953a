// What follows the pointer and the keyboard. Without this script the page says the same, only standing still.
(() => {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");
  const hidden = new Set();
  const zoom = data.groups.map((g) => [0, g.end]);
  root.classList.remove("nojs");

  const all = (query, of = document) => [...of.querySelectorAll(query)];
  const number = (v) => (Math.abs(v) >= 100 ? v.toFixed(0) : String(+v.toPrecision(3)));
  const text = (chart, v) => (v === null || v === undefined ? "–" : chart.percent ? number(100 * v) + " %" : number(v));

  function time(group, at) {
    const seconds = Math.round(at * (group.unit === "hours" ? 3600 : 60));
    const two = (n) => String(n).padStart(2, "0");
    return `${Math.floor(seconds / 3600)}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}`;
  }

  // The index of the value next to x in rising numbers.
  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle; else high = middle;
    }
    return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
  }

  // What a chart shows at a place: a heading, and rows of colour, name, value.
  function reading(chart, x, y) {
    const group = data.groups[chart.group];
    const policy = (p) => [`var(--p${p})`, data.policies[p]];
    if (chart.kind === "lines") {
      const i = nearest(group.x, x);
      const rows = chart.series.filter(([p]) => !hidden.has(p)).map(([p, v]) => [...policy(p), v[i]]);
      rows.sort((a, b) => (b[2] ?? -1) - (a[2] ?? -1));
      if (chart.load) rows.unshift(["var(--load)", "offered", chart.load[i]]);
      return [time(group, group.x[i]), rows.map(([c, n, v]) => [c, n, text(chart, v)])];
    }
    if (chart.kind === "cdf") {
      const rows = chart.series.filter(([p]) => !hidden.has(p)).map(([p, at, served]) => {
        let n = 0;
        while (n < at.length && at[n] <= x) n++;
        return [...policy(p), at.length ? (served * Math.max(0, n - 1)) / (at.length - 1) : 0];
      });
      rows.sort((a, b) => b[2] - a[2]);
      return [`within ${number(x)} s`, rows.map(([c, n, v]) => [c, n, number(100 * v) + " %"])];
    }
    if (chart.kind === "axis") {
      const i = nearest(chart.at, x);
      const rows = chart.series.filter(([p, v]) => !hidden.has(p) && v[i] !== null).map(([p, v, h]) => [...policy(p), v[i], h[i]]);
      rows.sort((a, b) => b[2] - a[2]);
      const unit = chart.percent ? " %" : "", scale = chart.percent ? 100 : 1;
      return [`${chart.axis} ${chart.labels[i]}`, rows.map(([c, n, v, h]) => [c, n, (scale * v).toFixed(chart.percent ? 2 : 3) + (h ? " ± " + (scale * h).toFixed(chart.percent ? 2 : 3) : "") + unit])];
    }
    if (chart.kind === "mix") {
      const i = nearest(group.x, x);
      const rows = chart.series.map(([n, c, v]) => [c, n, v[i]]).filter((row) => row[2] > 0).reverse();
      const total = rows.reduce((sum, row) => sum + row[2], 0);
      return [time(group, group.x[i]), rows.map(([c, n, v]) => [c, n, `${number(v)} /min, ${number((100 * v) / total)} %`])];
    }
    const rows = chart.rows;
    const worker = Math.min(rows.length - 1, Math.max(0, Math.floor(y * rows.length)));
    const column = Math.min(rows[0].length - 1, Math.max(0, Math.floor((x / group.end) * rows[0].length)));
    const code = rows[worker][column];
    const of = code === "-" ? null : parseInt(code, 36);
    return [`worker ${worker}, ${time(group, x)}`, of === null ? [["transparent", "ran nothing", ""]] : [[chart.colours[of], "mostly " + chart.names[of], ""]]];
  }

  function show(heading, rows, x, y) {
    tip.replaceChildren();
    const strong = document.createElement("strong");
    strong.textContent = heading;
    const table = document.createElement("table");
    for (const [colour, name, value] of rows) {
      const line = table.insertRow();
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = colour;
      const cell = line.insertCell();
      cell.append(swatch, name);
      line.insertCell().textContent = value;
    }
    tip.append(strong, table);
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    tip.style.left = Math.max(6, x + 16 + width > innerWidth - 6 ? x - 16 - width : x + 16) + "px";
    tip.style.top = Math.max(6, Math.min(innerHeight - height - 6, y - height / 2)) + "px";
  }

  const boxes = all("[data-chart]").map((box) => ({
    box,
    plot: box.querySelector(".plot"),
    chart: data.charts[box.dataset.chart],
    hair: null,
    at: null,
  }));
  const range = (b) => (b.chart.group === undefined ? [0, b.chart.end] : zoom[b.chart.group]);
  const same = (b) => boxes.filter((other) => other === b || ["group", "family"].some((key) => b.chart[key] !== undefined && other.chart[key] === b.chart[key]));

  function hair(b, x) {
    const [low, high] = range(b);
    if (!b.hair) {
      b.hair = document.createElement("div");
      b.hair.className = "hair";
      b.plot.append(b.hair);
    }
    b.hair.hidden = x === null || x < low || x > high;
    if (x !== null) b.hair.style.left = (100 * (x - low)) / (high - low) + "%";
  }

  function point(b, x, part, clientX, clientY, aloud) {
    if (b.chart.kind === "axis") x = b.chart.at[nearest(b.chart.at, x)];
    b.at = x;
    for (const other of same(b)) hair(other, x);
    const [heading, rows] = reading(b.chart, x, part);
    show(heading, rows, clientX, clientY);
    if (aloud) said.textContent = heading + ": " + rows.map(([, n, v]) => `${n} ${v}`).join(", ");
  }

  function leave(b) {
    tip.hidden = true;
    for (const other of same(b)) hair(other, null);
    if (b.chart.kind === "axis") b.at = null;
  }

  function rescale(group) {
    const [low, high] = zoom[group], end = data.groups[group].end;
    const raw = (high - low) / 7, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    for (const b of boxes) {
      if (b.chart.group !== group) continue;
      b.plot.querySelector("svg").setAttribute("viewBox", `${(2000 * low) / end} 0 ${(2000 * (high - low)) / end} 1000`);
      const marks = b.plot.querySelector(".xts");
      marks.replaceChildren();
      for (let k = Math.ceil(low / step - 1e-9), n = 0; k * step <= high * (1 + 1e-9); k++, n++) {
        const mark = document.createElement("span");
        const part = (k * step - low) / (high - low);
        mark.className = "xt" + (n % 2 ? " odd" : "") + (part > 0.999 ? " end" : "");
        mark.style.left = 100 * part + "%";
        mark.textContent = +(k * step).toFixed(6) + (data.groups[group].unit === "hours" ? " h" : " min");
        marks.append(mark);
      }
      b.plot.classList.toggle("open", high - low >= end * 0.999 && b.chart.kind === "place");
    }
    for (const button of all(`[data-reset="${group}"]`)) button.hidden = high - low >= end * 0.999;
  }

  function zoomTo(group, low, high) {
    const end = data.groups[group].end, width = Math.max(end / 200, Math.min(end, high - low));
    low = Math.max(0, Math.min(end - width, low));
    zoom[group] = [low, low + width];
    rescale(group);
  }

  // A finger that is lifted leaves what it pointed at on the page, until the next touch elsewhere or a scroll.
  let touched = null;
  function untouch(event) {
    if (!touched || (event.type === "pointerdown" && touched.plot.contains(event.target))) return;
    leave(touched);
    touched = null;
  }
  addEventListener("pointerdown", untouch);
  addEventListener("scroll", untouch, { passive: true });

  for (const b of boxes) {
    const where = (event) => {
      const r = b.plot.getBoundingClientRect(), [low, high] = range(b);
      const part = Math.max(0, Math.min(1, (event.clientX - r.left) / r.width));
      return [low + part * (high - low), (event.clientY - r.top) / r.height, part];
    };
    let from = null, band = null;
    b.plot.addEventListener("pointermove", (event) => {
      const [x, y, part] = where(event);
      if (from) {
        if (!band) {
          band = document.createElement("div");
          band.className = "select";
          b.plot.append(band);
        }
        band.style.left = 100 * Math.min(part, from[2]) + "%";
        band.style.width = 100 * Math.abs(part - from[2]) + "%";
      }
      point(b, x, y, event.clientX, event.clientY, false);
    });
    b.plot.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch") {
        const [x, y] = where(event);
        point(b, x, y, event.clientX, event.clientY, false);
        touched = b;
      }
      if (b.chart.group === undefined || event.pointerType === "touch" || event.button) return;
      from = where(event);
      b.plot.setPointerCapture(event.pointerId);
    });
    b.plot.addEventListener("pointerup", (event) => {
      const to = where(event);
      if (from && Math.abs(to[2] - from[2]) > 0.02) zoomTo(b.chart.group, Math.min(from[0], to[0]), Math.max(from[0], to[0]));
      from = null;
      band?.remove();
      band = null;
    });
    b.plot.addEventListener("dblclick", () => b.chart.group !== undefined && zoomTo(b.chart.group, 0, data.groups[b.chart.group].end));
    b.plot.addEventListener("pointerleave", (event) => from || event.pointerType === "touch" || leave(b));
    b.box.addEventListener("blur", () => leave(b));
    b.box.addEventListener("keydown", (event) => {
      const [low, high] = range(b), step = (high - low) / (event.shiftKey ? 10 : 60);
      let x = b.at ?? (low + high) / 2;
      if (b.chart.kind === "axis" && event.key.startsWith("Arrow")) {
        const at = b.chart.at, i = nearest(at, x); // from value to value
        if (event.key === "ArrowRight") x = b.at === null ? at[0] : at[i + 1] ?? x;
        else if (event.key === "ArrowLeft") x = b.at === null ? at.at(-1) : at[i - 1] ?? x;
        else return;
      } else if (event.key === "ArrowRight") x += step;
      else if (event.key === "ArrowLeft") x -= step;
      else if (event.key === "Escape") return leave(b);
      else if (b.chart.group !== undefined && "+-=0".includes(event.key)) {
        const half = event.key === "-" ? high - low : (high - low) / 4;
        if (event.key === "0") zoomTo(b.chart.group, 0, Infinity); else zoomTo(b.chart.group, x - half, x + half);
      } else return;
      event.preventDefault();
      const [a, z] = range(b), r = b.plot.getBoundingClientRect();
      x = Math.max(a, Math.min(z, x));
      point(b, x, 0, r.left + ((x - a) / (z - a)) * r.width, r.top + r.height / 2, true);
    });
  }

  // Dots of the fronts say what they are.
  for (const dot of all(".dot")) {
    const tell = () => {
      const r = dot.getBoundingClientRect();
      show(dot.dataset.name, dot.dataset.text.slice(dot.dataset.name.length + 2).split(", ").map((part) => ["transparent", part, ""]), r.right, r.top);
    };
    dot.addEventListener("pointerenter", tell);
    dot.addEventListener("focus", tell);
    for (const event of ["pointerleave", "blur"]) dot.addEventListener(event, () => (tip.hidden = true));
    dot.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  }

  // Switches: one for each policy, the same everywhere.
  function apply() {
    for (const button of all("[data-switch]")) button.setAttribute("aria-pressed", String(!hidden.has(+button.dataset.switch)));
    for (const element of all("[data-p]")) {
      if (hidden.has(+element.dataset.p)) element.setAttribute("hidden", ""); else element.removeAttribute("hidden");
    }
  }
  for (const button of all("[data-switch]")) {
    const p = +button.dataset.switch;
    button.addEventListener("click", (event) => {
      if (event.shiftKey || event.altKey) {
        hidden.clear();
        data.policies.forEach((_, other) => other !== p && hidden.add(other));
      } else if (hidden.has(p)) hidden.delete(p); else hidden.add(p);
      apply();
    });
    const fade = (on) => () => all(".plot path[data-p]").forEach((l) => l.classList.toggle("faded", on && +l.dataset.p !== p && !hidden.has(p)));
    button.addEventListener("pointerenter", fade(true));
    button.addEventListener("pointerleave", fade(false));
  }
  for (const button of all("[data-all]")) {
    button.addEventListener("click", () => {
      if (hidden.size) hidden.clear(); else data.policies.forEach((_, p) => p > 1 && hidden.add(p));
      apply();
    });
  }
  for (const button of all("[data-reset]")) button.addEventListener("click", () => zoomTo(+button.dataset.reset, 0, Infinity));

  // Light or dark, whatever the system says.
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  // On paper everything is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const d of closed) d.open = true;
  });
  addEventListener("afterprint", () => closed.forEach((d) => (d.open = false)));
})();
