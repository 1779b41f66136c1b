"use strict";
(() => {
  const units = {ns: 1e-9, "µs": 1e-6, ms: 1e-3, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, k: 1e3, M: 1e6};
  const number = /^[^\p{L}\d]*?(-?[\d,.]+(?:e[-+]?\d+)?)\s?(ns|µs|ms|s|B|[KMGT]iB|k|M|×|%)?(?=$|[\s(–])/u;
  const value = (row, i) => {
    const cell = row.cells[i];
    if (cell.classList.contains("na")) return null;
    const text = cell.firstChild?.textContent.trim() ?? "";
    const found = number.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) * (units[found[2]] ?? 1) : text;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const sort = (table, i, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, i), row]);
    rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : down ? compare(b, a) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((th, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = th.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, i, down);
      });
    });
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 8) continue;
    const bar = document.createElement("div");
    bar.className = "find";
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "Filter, e.g. block fwd";
    input.setAttribute("aria-label", "Filter rows");
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = [...row.cells].map((c) => c.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((w) => text.includes(w));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
    bar.append(input, count);
    table.parentElement.before(bar);
  }

  for (const details of document.querySelectorAll("details.again")) {
    details.addEventListener("toggle", () => {
      if (details.querySelector("button")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        const code = details.querySelector("code");
        try {
          await navigator.clipboard.writeText(code.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(code);
          button.textContent = "Selected";
        }
      });
      details.append(button);
    });
  }

  const nav = document.querySelector("nav");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.createElement("button");
  toggle.type = "button";
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => (toggle.textContent = isDark() ? "Light" : "Dark");
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();
  nav.append(toggle);

  for (const key of document.querySelectorAll("#keys .k")) {
    const backend = key.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide in all figures";
    key.replaceWith(button);
    button.append(key);
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(show));
      for (const g of document.querySelectorAll("figure [data-b]")) {
        if (g.dataset.b === backend) g.style.display = show ? "" : "none";
      }
    });
  }
})();
