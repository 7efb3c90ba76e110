// Figures follow the width of the paper while they are printed, and what is closed is opened, except for the list of
// differences, which is the same at each table and is opened once for each study.
const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
}
for (const sheet of document.querySelectorAll(".thumbnail")) {
  const { columns, numbers } = sheet.dataset;
  const [width, height] = ["width", "height"].map(side => Number(sheet.getAttribute(side)));
  const places = new Map(JSON.parse(numbers).map((number, place) => [number, place]));
  for (const plot of sheet.closest(".study").querySelectorAll(".plot")) {
    plot.on("plotly_hover", ({ points, event }) => {
      const place = places.get(points[0].customdata);
      sheet.hidden = place === undefined;
      if (sheet.hidden) return;
      const left = (place % columns) * width, top = Math.floor(place / columns) * height;
      sheet.style.objectPosition = `${-left}px ${-top}px`;
      sheet.style.left = `${Math.min(event.clientX + 20, innerWidth - 2 * width - 8)}px`;
      const above = event.clientY + 40 + 2 * height > innerHeight;
      sheet.style.top = `${above ? event.clientY - 40 - 2 * height : event.clientY + 40}px`;
    });
    plot.on("plotly_unhover", () => { sheet.hidden = true; });
  }
}
// The table of all trials is made when it comes into view, by DataTables, which stands in the page as text. Rows and the
// points of figures that are of the same trial are marked together.
let datatables;
async function fill(table) {
  datatables ??= import(URL.createObjectURL(new Blob(
    [JSON.parse(document.getElementById("datatables").textContent)], { type: "text/javascript" })));
  const { default: DataTable } = await datatables;
  const study = table.closest(".study"), sheet = study.querySelector(".thumbnail");
  const places = new Map(sheet ? JSON.parse(sheet.dataset.numbers).map((number, place) => [number, place]) : []);
  const columns = JSON.parse(table.dataset.headings).map(({ title, number }) =>
    ({ title, className: number ? "number" : "words", render: DataTable.render.text() }));
  columns.forEach((column, place) => { column.data = place; });
  if (sheet) columns.splice(1, 0, { title: "output", data: null, orderable: false, searchable: false, className: "piece",
    render: (_, kind, row) => {
      const place = places.get(row[0]);
      if (kind !== "display" || place === undefined) return "";
      const piece = document.createElement("canvas"), { columns } = sheet.dataset;
      piece.width = sheet.getAttribute("width");
      piece.height = sheet.getAttribute("height");
      piece.role = "img";
      piece.ariaLabel = `output of trial ${row[0]}`;
      const left = (place % columns) * piece.width, top = Math.floor(place / columns) * piece.height;
      sheet.decode().then(() => piece.getContext("2d").drawImage(sheet, -left, -top));
      return piece;
    } });
  const made = new DataTable(table, {
    data: JSON.parse(table.closest(".trials").querySelector("script").textContent), columns, deferRender: true,
    order: JSON.parse(table.dataset.first).map(([place, way]) => [place + (sheet && place > 0 ? 1 : 0), way]), pageLength: 10, autoWidth: false,
    stateSave: document.getElementById("live") !== null, stateDuration: -1, // for a page that loads itself again select: { style: "os", info: false },
    columnControl: ["order", ["orderAsc", "orderDesc", "spacer", "search"]], ordering: { indicators: false, handler: false },
  });
  const own = [...study.querySelectorAll(".plot")].filter(plot =>
    plot.data.some(({ customdata }) => customdata?.some(number => places.has(number))));
  made.on("select deselect", () => {
    const chosen = new Set(made.rows({ selected: true }).data().toArray().map(row => row[0]));
    for (const plot of own) plot.data.forEach(({ customdata }, trace) => {
      const points = customdata?.flatMap((number, point) => chosen.has(number) ? [point] : []) ?? [];
      Plotly.restyle(plot, { selectedpoints: [chosen.size ? points : null] }, [trace]);
    });
  });
  for (const plot of own) plot.on("plotly_click", ({ points: [{ customdata }] }) => {
    const found = made.row((_, row) => row[0] === customdata);
    if (!found.any()) return;
    made.rows().deselect();
    found.select();
    const place = made.rows({ search: "applied", order: "applied" }).indexes().indexOf(found.index());
    made.page(Math.floor(Math.max(place, 0) / made.page.len())).draw("page");
    table.closest(".trials").scrollIntoView({ block: "nearest" });
  });
}
const appearing = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) {
    appearing.unobserve(target);
    fill(target.querySelector("table"));
  }
}, { rootMargin: "400px" });
for (const article of document.querySelectorAll(".trials")) appearing.observe(article);
// An image at full size, with its marks and its scale, in a dialog: Escape, a click or a key closes it, and the focus
// returns to the image.
for (const button of document.querySelectorAll("button.image")) {
  button.addEventListener("click", () => {
    const face = button.closest(".face").cloneNode(true), image = button.querySelector("img");
    const dialog = document.createElement("dialog"), words = document.createElement("p");
    words.textContent = `${image.alt}. ${button.closest("figure").querySelector("figcaption").textContent}`;
    dialog.className = "full";
    dialog.ariaLabel = image.alt;
    dialog.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    dialog.append(face, words);
    face.querySelector("button").ariaLabel = "close";
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  });
}
if (matchMedia("(width < 600px)").matches)
  for (const fold of document.querySelectorAll(".fold")) fold.open = false;
addEventListener("beforeprint", () => {
  for (const study of document.querySelectorAll(".study")) {
    const again = [...study.querySelectorAll(".differences")].slice(1);
    for (const details of study.querySelectorAll("details:not([open])"))
      if (!again.includes(details)) details.open = details.opened = true;
  }
  for (const plot of plots) Plotly.relayout(plot, { width: 640 });
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details")) if (details.opened) details.open = details.opened = false;
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
});
