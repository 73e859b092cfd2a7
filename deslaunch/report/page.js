"use strict";

// Search, sorting and paging of the table. The page is readable without it.
(() => {
  const PAGE = 100;
  const number = new Intl.NumberFormat("en-US");

  for (const time of document.querySelectorAll("time[datetime]")) {
    showLocalTime(time);
  }

  const data = document.getElementById("data");

  if (data && "DecompressionStream" in window) {
    unpack(data.textContent).then(begin);
  }

  function showLocalTime(time) {
    time.title = `${new Date(time.dateTime).toLocaleString()} local time`;
  }

  // base 64 → gzip → the columns in JSON.

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(plain).json();
  }

  // Cells.

  function duration(ms) {
    if (ms < 1000) return `${ms} ms`;
    if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`.replace(".0 s", " s");
    const units = [[86400000, "d", 3600000, "h"], [3600000, "h", 60000, "min"], [60000, "min", 1000, "s"]];
    const [unit, name, part, partName] = units.find(([least]) => ms >= least);
    const rest = Math.floor(ms % unit / part);
    return `${number.format(Math.floor(ms / unit))} ${name}${rest ? ` ${rest} ${partName}` : ""}`;
  }

  function content(column, value) {
    if (column.kind === "time") {
      const time = document.createElement("time");
      time.dateTime = new Date(value).toISOString();
      time.textContent = time.dateTime.slice(0, 19).replace("T", " ");
      showLocalTime(time);
      return time;
    }

    const made = document.createElement(column.name === "state" ? "span" : "bdi");

    if (column.name === "state") {
      made.className = "state";
      made.dataset.state = value.split(",")[0];
    }

    if (column.name === "job") {
      [made.textContent, made.title = ""] = value.split("\n");
      return made;
    }

    made.textContent = column.kind === "duration" ? duration(value)
      : column.kind === "number" ? number.format(value) : value;
    return made;
  }

  function cell(column, row) {
    const made = document.createElement("td");
    made.className = column.kind;
    made.dataset.label = column.label;
    made.dataset.column = column.name;

    if (column.values[row] !== null) {
      made.append(content(column, column.values[row]));
    }

    return made;
  }

  // Search, sorting, pages.

  function begin(columns) {
    const rows = columns[0].values.length;
    const find = document.getElementById("find");
    const state = document.getElementById("state");
    const states = columns.find((column) => column.name === "state").values;
    const body = document.querySelector(".rows tbody");
    const heads = [...document.querySelectorAll(".rows th")];
    let texts = null;
    let order = Array.from({ length: rows }, (_, row) => row);
    let shown = order;
    let page = 0;
    let waiting = 0;

    function search() {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      texts = texts || (words.length ? textsOf(columns, rows) : null);
      shown = order.filter((row) => (!state.value || states[row] === state.value)
        && words.every((word) => texts[row].includes(word)));
      page = 0;
      show();
    }

    function show() {
      const pages = Math.max(1, Math.ceil(shown.length / PAGE));
      const part = shown.slice(page * PAGE, page * PAGE + PAGE);
      body.replaceChildren(...part.map((row) => {
        const made = document.createElement("tr");
        made.append(...columns.map((column) => cell(column, row)));
        return made;
      }));
      document.getElementById("count").textContent = shown.length === rows
        ? `${number.format(rows)} rows` : `${number.format(shown.length)} of ${number.format(rows)} rows`;
      document.getElementById("page").textContent =
        `page ${number.format(page + 1)} of ${number.format(pages)}`;
      enable({ first: page > 0, back: page > 0, on: page + 1 < pages, last: page + 1 < pages });
    }

    function enable(able) {
      for (const button of document.querySelectorAll("[data-page]")) {
        button.disabled = !able[button.dataset.page];
      }
    }

    function sort(column, head) {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order = sorted(column.values, rows, down ? -1 : 1);
      search();
    }

    for (const value of [...new Set(states)].sort()) {
      state.append(new Option(value, value));
    }

    heads.forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(columns[index], head));
      head.replaceChildren(button);
    });

    find.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(search, 150);
    });
    find.form.addEventListener("submit", (event) => event.preventDefault());
    state.addEventListener("change", search);
    document.querySelector("nav.controls").addEventListener("click", (event) => {
      const last = Math.ceil(shown.length / PAGE) - 1;
      const to = { first: 0, back: page - 1, on: page + 1, last }[event.target.dataset.page];

      if (to !== undefined) {
        page = to;
        show();
        document.getElementById("sheet").scrollIntoView({ block: "nearest" });
      }
    });
    document.querySelectorAll(".controls").forEach((controls) => { controls.hidden = false; });
    search();
  }

  function textsOf(columns, rows) {
    const searched = columns.filter((column) => column.kind === "text" || column.name === "row");
    return Array.from({ length: rows }, (_, row) =>
      searched.map((column) => column.values[row] ?? "").join("\n").toLowerCase());
  }

  // Missing values come last in either order.
  function sorted(values, rows, sign) {
    return Array.from({ length: rows }, (_, row) => row).sort((one, other) => {
      const [a, b] = [values[one], values[other]];
      if (a === b) return one - other;
      if (a === null || b === null) return a === null ? 1 : -1;
      return a < b ? -sign : sign;
    });
  }
})();
