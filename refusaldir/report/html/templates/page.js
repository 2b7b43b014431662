"use strict";
(() => {
  const root = document.documentElement;
  const $ = (query, from = document) => from.querySelector(query);
  const $$ = (query, from = document) => [...from.querySelectorAll(query)];
  const make = (name, text = "", className = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const tip = $("#tip");
  const say = $("#say");

  /* Theme: as the system, light, dark. */
  const themes = { auto: "as the system", light: "light", dark: "dark" };
  const button = $("#theme");
  const keep = (value) => {
    try { if (value) localStorage.setItem("refusaldir-theme", value); else return localStorage.getItem("refusaldir-theme"); } catch { /* Not kept then. */ }
    return null;
  };
  const setTheme = (name) => {
    if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
    $("span", button).textContent = themes[name];
    button.dataset.now = name;
  };
  setTheme(keep() in themes ? keep() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const names = Object.keys(themes);
    const next = names[(names.indexOf(button.dataset.now) + 1) % names.length];
    setTheme(next);
    keep(next);
  });

  /* Figures: what a place says, on pointing and by arrow keys. */
  const figures = new Map();
  const shown = { figure: null, index: -1, byKey: false };

  const readFigure = (element) => {
    const marks = new Map();
    for (const mark of $$("[data-i]", element)) marks.set(Number(mark.dataset.i), mark);
    const tips = JSON.parse($("script.tips", element).textContent);
    const places = new Map();
    tips.forEach(([title], i) => places.set(title, [...(places.get(title) || []), i]));
    figures.set(element, { marks, tips, places, columns: Number(element.dataset.columns), link: element.dataset.link });
  };

  const clear = () => {
    for (const mark of $$(".on")) mark.classList.remove("on");
    tip.hidden = true;
    shown.figure = null;
    shown.index = -1;
  };

  const lit = (element, index) => {
    const { marks, tips, link } = figures.get(element);
    marks.get(index)?.classList.add("on");
    if (!link) return;
    const place = tips[index][0];
    for (const [other, data] of figures) {
      if (other === element || data.link !== link) continue;
      for (const i of data.places.get(place) || []) data.marks.get(i)?.classList.add("on");
    }
  };

  const fill = (element, index) => {
    const [title, lines] = figures.get(element).tips[index];
    const hidden = new Set($$('.key[aria-pressed="false"]', element).map((key) => key.dataset.series));
    tip.replaceChildren(make("strong", title));
    const words = [title];
    for (const [series, name, value] of lines) {
      if (series && hidden.has(series)) continue;
      const row = make("div");
      row.append(make("span", name), make("b", value));
      if (value) { tip.append(row); words.push(`${name}: ${value}`); }
    }
    return words.join("; ");
  };

  const show = (element, index, x, y) => {
    if (shown.figure !== element || shown.index !== index) {
      clear();
      lit(element, index);
      fill(element, index);
      shown.figure = element;
      shown.index = index;
    }
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 16 + width > innerWidth - 8 ? x - width - 16 : x + 16;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.min(Math.max(8, y + 16), innerHeight - height - 8)}px`;
  };

  const nearest = (element, x, y) => {
    let best = null;
    let least = 14;
    for (const [i, mark] of figures.get(element).marks) {
      if (mark.closest(".off")) continue;
      const box = mark.getBoundingClientRect();
      const far = Math.hypot(box.left + box.width / 2 - x, box.top + box.height / 2 - y);
      if (far < least) { least = far; best = i; }
    }
    return best;
  };

  const pointed = (event) => {
    shown.byKey = false;
    const element = event.target.closest?.("figure");
    const stage = event.target.closest?.(".stage");
    if (!element || !stage || !figures.has(element)) return clear();
    const mark = event.target.closest("[data-i]");
    let index = mark ? Number(mark.dataset.i) : null;
    if (index === null && element.hasAttribute("data-near")) index = nearest(element, event.clientX, event.clientY);
    if (index === null) return clear();
    show(element, index, event.clientX, event.clientY);
  };
  document.addEventListener("pointermove", pointed);
  document.addEventListener("pointerdown", pointed);
  document.addEventListener("scroll", () => { if (shown.figure && !shown.byKey) clear(); else tip.hidden = true; }, { passive: true });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return clear();
    const stage = event.target.closest?.(".stage");
    if (!stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const element = stage.closest("figure");
    const { tips, columns, marks } = figures.get(element);
    const row = columns || 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row };
    let index = shown.figure === element ? shown.index : -1;
    if (event.key in steps) {
      index = index < 0 ? 0 : index + steps[event.key];
    } else if (event.key === "Home") index = 0;
    else if (event.key === "End") index = tips.length - 1;
    else return;
    event.preventDefault();
    if (index < 0 || index >= tips.length) return;
    const box = (marks.get(index) || stage).getBoundingClientRect();
    shown.byKey = true;
    show(element, index, box.left + box.width / 2, box.top + Math.min(box.height / 2, 60));
    say.textContent = fill(element, index);
  });
  document.addEventListener("focusout", (event) => { if (event.target.closest?.(".stage")) clear(); });

  /* Series that can be hidden. */
  const toggle = (key) => {
    const on = key.getAttribute("aria-pressed") === "false";
    key.setAttribute("aria-pressed", String(on));
    for (const mark of $$(".plot [data-series]", key.closest("figure"))) {
      if (mark.dataset.series === key.dataset.series) mark.classList.toggle("off", !on);
    }
  };

  /* Saving: a figure as SVG with its colours written out, its table as CSV. */
  const save = (name, type, text) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const styles = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "font-family", "font-size", "font-weight", "text-anchor"];
  const asSvg = (element) => {
    const theme = root.dataset.theme;
    root.dataset.theme = "light";
    const drawn = $(".plot", element);
    const copy = drawn.cloneNode(true);
    const originals = [drawn, ...$$("*", drawn)];
    [copy, ...$$("*", copy)].forEach((node, i) => {
      const computed = getComputedStyle(originals[i]);
      if (computed.display === "none") node.setAttribute("display", "none");
      for (const name of styles) {
        const value = computed.getPropertyValue(name);
        if (value && node !== copy) node.setAttribute(name, value);
      }
      node.removeAttribute("class");
    });
    for (const node of $$('[display="none"], [fill="rgba(0, 0, 0, 0)"][stroke="none"]', copy)) node.remove();
    if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
    const [, , width, height] = drawn.getAttribute("viewBox").split(" ");
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = $("h4", element).textContent;
    const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    ground.setAttribute("width", width);
    ground.setAttribute("height", height);
    ground.setAttribute("fill", "#ffffff");
    copy.prepend(title, ground);
    return new XMLSerializer().serializeToString(copy);
  };
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const asCsv = (table) => {
    const rows = $$("tr:not(.texts-row)", table).map((row) => [...row.cells].map((cell) => quoted(cell.dataset.v ?? cell.textContent)).join(","));
    return `${rows.join("\n")}\n`;
  };

  /* Tables that can be sorted. */
  const worth = (cell) => {
    if (cell.dataset.v === undefined) return cell.textContent;
    return cell.dataset.v === "" ? Infinity : Number(cell.dataset.v);
  };
  const sort = (head) => {
    const table = head.closest("table");
    const column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    closeTexts(table);
    for (const other of $$("th", table)) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map((row) => [worth(row.cells[column]), row]);
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
    rows.sort(([a], [b]) => {
      if (a === Infinity || b === Infinity) return (a === Infinity) - (b === Infinity);
      return up ? compare(a, b) : compare(b, a);
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };

  /* Texts of flipped prompts: in the page only once they are asked for. */
  const closeTexts = (table) => {
    for (const row of $$(".texts-row", table)) row.remove();
    for (const read of $$(".read", table)) read.setAttribute("aria-expanded", "false");
  };
  const openText = (read) => {
    const row = read.closest("tr");
    const open = read.getAttribute("aria-expanded") === "true";
    if (open) row.nextElementSibling.remove();
    else {
      const texts = JSON.parse($("script.texts", read.closest(".flips")).textContent);
      const [prompt, baseLabel, base, tunedLabel, tuned] = texts[read.textContent];
      const grid = make("div", "", "texts-grid");
      for (const [title, text] of [["Prompt", prompt], [`Base: ${baseLabel.replaceAll("_", " ")}`, base], [`Tuned: ${tunedLabel.replaceAll("_", " ")}`, tuned]]) {
        const part = make("div");
        part.append(make("h5", title), make("p", text || "(nothing)"));
        grid.append(part);
      }
      const cell = make("td");
      cell.colSpan = row.cells.length;
      cell.append(grid);
      const line = make("tr", "", "texts-row");
      line.append(cell);
      row.after(line);
    }
    read.setAttribute("aria-expanded", String(!open));
  };
  const reveal = (control) => {
    const flips = control.closest(".flips");
    const open = control.getAttribute("aria-expanded") === "true";
    const table = $("table", flips);
    const texts = JSON.parse($("script.texts", flips).textContent);
    closeTexts(table);
    for (const row of table.tBodies[0].rows) {
      const cell = row.cells[0];
      const name = cell.textContent;
      if (!open && Object.hasOwn(texts, name)) {
        const read = make("button", name, "read");
        read.type = "button";
        read.setAttribute("aria-expanded", "false");
        cell.replaceChildren(read);
      } else cell.textContent = name;
    }
    control.setAttribute("aria-expanded", String(!open));
    control.textContent = open ? "Show the texts" : "Hide the texts";
    say.textContent = open ? "The texts are hidden." : "Each prompt’s id now opens its texts.";
  };

  document.addEventListener("click", (event) => {
    const control = event.target.closest?.("button");
    if (!control) return;
    const element = control.closest("figure");
    if (control.matches(".key")) toggle(control);
    else if (control.dataset.save === "csv") save(`${element.dataset.key}.csv`, "text/csv", asCsv($("table", element)));
    else if (control.dataset.save === "svg") save(`${element.dataset.key}.svg`, "image/svg+xml", asSvg(element));
    else if (control.matches(".reveal")) reveal(control);
    else if (control.matches(".read")) openText(control);
    else if (control.matches("th button")) sort(control.closest("th"));
    else if (control.matches("[data-copy]")) {
      const text = $("code", control.parentElement).textContent;
      const done = () => { control.textContent = "Copied"; };
      const select = () => getSelection().selectAllChildren($("code", control.parentElement));
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, select); else select();
    }
  });

  /* A panel when it appears: what only works with this script is offered now. */
  const seen = "IntersectionObserver" in window ? new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of $$(".contents a")) {
        if (link.hash === `#${entry.target.id}`) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  }, { rootMargin: "-15% 0px -75% 0px" }) : null;
  const prepare = () => {
    figures.clear();
    for (const element of $$("figure")) readFigure(element);
    for (const tool of $$("button.tool[hidden]")) tool.hidden = false;
    for (const head of $$("th[scope=col]")) {
      if ($("button", head)) continue;
      const cells = $$(`tbody td:nth-child(${head.cellIndex + 1})`, head.closest("table"));
      if (cells.length && cells.every((cell) => cell.matches(".number"))) head.classList.add("number");
      const name = head.textContent;
      const control = make("button", name.trim() || "name");
      control.type = "button";
      if (!name.trim()) control.classList.add("unseen");
      head.replaceChildren(control);
    }
    if (seen) for (const part of $$(".answers > section")) seen.observe(part);
    const name = $("#choose")?.selectedOptions[0].textContent;
    if (name) $("#chosen").textContent = name;
  };

  /* Several tuned models: the others are kept compressed until they are chosen. */
  const choose = $("#choose");
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  if (choose) {
    const first = $("#panel").innerHTML;
    choose.selectedIndex = choose.options.length - 1;
    choose.addEventListener("change", async () => {
      clear();
      const packed = $(`script.packed[data-panel="${choose.value}"]`);
      $("#panel").innerHTML = packed ? await unpack(packed.textContent) : first;
      prepare();
      say.textContent = `Now shown: ${choose.selectedOptions[0].textContent}`;
    });
  }
  prepare();
})();
