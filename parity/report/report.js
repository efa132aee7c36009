// The table of records, the matrix that filters it, and the copy buttons. The page reads without any of it.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const place = Object.fromEntries(data.columns.map((name, index) => [name, index]));
const numeric = new Set(data.numeric);

const dark = matchMedia("(prefers-color-scheme: dark)");
const followTheme = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", followTheme);
followTheme();

function significant(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value ?? "");
  const size = Math.abs(value);
  return size < 1e-4 || size >= 1e6 ? value.toExponential(2).replace("+", "") : String(Number(value.toPrecision(3)));
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

// DataTables takes strings for HTML, when it shows them and when it searches them: it gets them escaped in both.
const escaped = (text) => element("i", text).innerHTML.replaceAll('"', "&quot;");

function sortable(name, value) {
  if (name === "verdict") return `${data.bad.includes(value) ? 0 : 1} ${value}`;
  if (!numeric.has(name)) return value;
  return value === "nan" ? Infinity : value === null ? -Infinity : Number(String(value).replace("inf", "Infinity"));
}

function cell(name) {
  return (value, purpose) => {
    if (purpose === "sort" || purpose === "type") return sortable(name, value);
    if (purpose === "filter" && numeric.has(name)) return value === null ? "" : Math.min(sortable(name, value), Number.MAX_VALUE);
    if (purpose === "display" && name === "verdict") return escaped(`${data.glyphs[value] ?? "?"} ${value}`);
    return escaped(purpose === "display" ? significant(value) : String(value ?? ""));
  };
}

function copyButton(command, button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(command);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

function details(row) {
  const box = element("div", "", "details");
  const list = box.appendChild(element("dl"));
  data.columns.forEach((name, index) => {
    if (name === "row" || name === "reproducer" || row[index] === null || row[index] === "") return;
    list.append(element("dt", name), element("dd", String(row[index])));
  });
  if (row[place.reproducer]) {
    const command = box.appendChild(element("div", "", "command"));
    const text = command.appendChild(element("pre", row[place.reproducer]));
    copyButton(text, command.appendChild(element("button", "Copy", "copy")));
  }
  return box;
}

function download(rows) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const line = (row) => row.slice(1).map((value) => quoted(String(value ?? ""))).join(",") + "\r\n";
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([data.columns, ...rows].map(line), { type: "text/csv" }));
  link.download = `parity-${data.run}.csv`;
  link.click();
}

function records(DataTable) {
  const table = new DataTable("#table", {
    data: data.rows,
    columns: data.columns.map((name) => ({
      title: name === "row" ? "layer or family" : name.replaceAll("_", " "),
      type: numeric.has(name) ? "num" : "string",
      className: numeric.has(name) ? "number" : name,
      visible: data.visible.includes(name),
      render: cell(name),
    })),
    columnControl: [
      { target: 0, content: ["order"] },
      { target: 1, content: ["search"] },
    ],
    ordering: { indicators: false, handler: true },
    order: [[place.verdict, "asc"], [place.error_ratio, "desc"]],
    createdRow: (line, row) => {
      if (row[place.verdict] in data.glyphs) line.classList.add(row[place.verdict]);
      if (row[place.verdict] === "fail" && row[place.message].startsWith(data.expected)) line.classList.add("expected");
      line.tabIndex = 0;
    },
    autoWidth: false,
    pageLength: 25,
    layout: {
      topStart: {
        buttons: [
          { text: "Download CSV", action: () => download(table.rows({ search: "applied", order: "applied" }).data().toArray()) },
          { extend: "colvis", text: "Columns" },
        ],
      },
      topEnd: "search",
      bottomStart: ["pageLength", "info"],
      bottomEnd: "paging",
    },
  });
  table.on("click keydown", "tbody > tr", (event) => {
    const row = table.row(event.target.closest("tr"));
    if (!row.data() || String(getSelection()) || (event.type === "keydown" && event.key !== "Enter")) return;
    row.child.isShown() ? row.child.hide() : row.child(details(row.data()), "child").show();
  });
  return table;
}

function filterFromMatrix(table) {
  const note = document.querySelector(".filter");
  const show = (wanted) => {
    const matches = (_, row) => Object.entries(wanted).every(([name, value]) => row[place[name]] === value);
    table.search.fixed("matrix", wanted && matches).draw();
    note.hidden = !wanted;
    if (wanted) note.firstChild.textContent = `Only ${Object.values(wanted).join(" · ")}`;
  };
  note.querySelector("button").addEventListener("click", () => show(null));
  for (const link of document.querySelectorAll(".matrix a")) {
    link.addEventListener("click", () => show({ ...link.dataset }));
  }
}

for (const box of document.querySelectorAll(".command")) copyButton(...box.children);
const library = URL.createObjectURL(new Blob([read("library")], { type: "text/javascript" }));
filterFromMatrix(records((await import(library)).default));
