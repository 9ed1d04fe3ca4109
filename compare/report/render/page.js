const byId = id => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

for (const table of all("table.results")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending";
    const sign = descending ? -1 : 1;
    const key = row => row.cells[column].dataset.key;
    const rows = [...body.rows].sort((a, b) =>
      (key(a) === "") - (key(b) === "") || sign * compare(key(a), key(b)));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...rows);
  }));
}

// The hash of the address holds an anchor, then the filter: #group-1&q=lin&without=kernel&failed=hidden
const form = byId("filters"), text = byId("filter-text"), failed = byId("hide-failed");
const families = form ? all("[name=family]", form) : [];
const splitHash = () => location.hash.slice(1).split(/&(.*)/s);

function readFilter() {
  const params = new URLSearchParams(splitHash()[1] ?? "");
  const without = (params.get("without") ?? "").split(",");
  text.value = params.get("q") ?? "";
  for (const box of families) box.checked = !without.includes(box.value);
  failed.checked = params.get("failed") === "hidden";
}

function writeFilter() {
  const params = new URLSearchParams();
  const without = families.filter(box => !box.checked).map(box => box.value);
  if (text.value) params.set("q", text.value);
  if (without.length) params.set("without", without);
  if (failed.checked) params.set("failed", "hidden");
  const filter = params.size ? `&${params}` : "";
  const hash = splitHash()[0] + filter;
  if (location.hash.slice(1) !== hash) history.replaceState(null, "", `#${hash}`);
}

function filter() {
  const words = text.value.toLowerCase().split(/\s+/);
  const shown = new Set(families.filter(box => box.checked).map(box => box.value));
  let hidden = 0, total = 0;
  for (const table of all("table.results")) {
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const name = `${row.dataset.name} ${row.dataset.family}`.toLowerCase();
      row.hidden = !words.every(word => name.includes(word)) || !shown.has(row.dataset.family)
        || (failed.checked && "failed" in row.dataset);
    }
    const here = rows.filter(row => row.hidden).length;
    byId(table.id + "-hidden").textContent = here ? `${here} of ${rows.length} rows hidden by the filter.` : "";
    hidden += here;
    total += rows.length;
  }
  byId("filter-status").textContent = hidden ? `${hidden} of ${total} rows hidden` : `All ${total} rows shown`;
}

if (form) {
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", () => { filter(); writeFilter(); });
  byId("show-all").addEventListener("click", () => {
    text.value = "";
    for (const box of families) box.checked = true;
    failed.checked = false;
    filter();
    writeFilter();
  });
  readFilter();
  filter();
}

const runDetails = JSON.parse(byId("details-of-runs").textContent);
const asText = value => JSON.stringify(value, null, 2);

function element(tag, content, properties = {}) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(content);
  return node;
}

function fill(details) {
  const run = runDetails.runs[details.dataset.run];
  const status = element("span", "", {className: "soft"});
  status.setAttribute("role", "status");
  const command = element("pre", run.command);
  const copy = element("button", "Copy the command", {type: "button", className: "plain copy"});
  copy.addEventListener("click", () => {
    getSelection().selectAllChildren(command);
    status.textContent = document.execCommand("copy") ? " copied" : " selected: copy it with your keyboard";
  });
  const blocks = {
    Measured: asText(run.measured),
    Configuration: asText({...runDetails.shared, ...run.spec}),
    Data: asText(runDetails.data[run.data]),
    Environment: asText(runDetails.environments[run.environment]),
  };
  const grid = element("div", "", {className: "blocks"});
  for (const [title, content] of Object.entries(blocks)) {
    const block = element("div", element("h4", title));
    block.append(element("pre", content));
    grid.append(block);
  }
  details.replaceChildren(
    details.firstElementChild, element("h4", "Command to reproduce"), command, copy, status,
    element("h4", "Kernel"), element("pre", run.kernel), grid);
}

document.addEventListener("toggle", event => {
  if (event.target.open && event.target.dataset.run) fill(event.target);
}, true);

function unfold(details) {
  for (let outer = details; outer; outer = outer.parentElement.closest("details")) outer.open = true;
}

function visit() {
  const target = byId(splitHash()[0]);
  if (!target) return;
  unfold(target.closest("details"));
  target.scrollIntoView();
  if (target.dataset.run) target.firstElementChild.focus({preventScroll: true});
}

for (const row of all("table.results tbody tr")) {
  const link = row.querySelector("a");
  link.addEventListener("click", () => {
    for (const details of all(`details[data-row="${row.dataset.row}"]`)) unfold(details);
    if (splitHash()[0] === link.hash.slice(1)) visit();
  });
  row.addEventListener("click", event => {
    if (!event.target.closest("a") && getSelection().isCollapsed) link.click();
  });
}

addEventListener("hashchange", () => {
  if (form) {
    if (splitHash()[1] !== undefined) readFilter();
    filter();
    writeFilter();
  }
  visit();
});
visit();

// The download is made from the image itself, so the page needs no files beside it.
for (const link of all("a.svg")) {
  link.addEventListener("click", () => {
    const source = link.closest("figure").querySelector("img").src;
    const drawing = decodeURIComponent(source.slice(source.indexOf(",") + 1));
    link.href = URL.createObjectURL(new Blob([drawing], {type: "image/svg+xml"}));
  });
}
