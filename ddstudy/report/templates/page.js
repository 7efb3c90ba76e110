// Figures follow the width of the paper while they are printed, and what is closed is opened, except for the numbers behind
// figures, which would be most of the pages, and for the list of differences, which is the same at each table and is
// opened once for each study.
const plots = [...document.querySelectorAll(".plot")], chosen = new WeakMap(), made = new Map();
const later = window.requestIdleCallback ?? (action => setTimeout(action, 20));
// A figure is drawn when it comes into view, or when there is nothing else to do; each has its place before. Those whose
// points are trials show their outputs, choose their rows in the table, and mark those that are chosen there.
function draw(plot) {
  if (plot.data) return;
  const { data, layout } = JSON.parse(plot.nextElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
  if (!data.some(({ customdata }) => customdata)) return;
  const study = plot.closest(".study"), sheet = study.querySelector(".thumbnail");
  if (chosen.get(study)?.size) mark(plot);
  plot.on("plotly_click", async ({ points: [{ customdata }] }) => (await tableOf(study))(customdata));
  if (!sheet) return;
  const [width, height] = ["width", "height"].map(side => Number(sheet.getAttribute(side)));
  const places = placesOf(sheet), { columns } = sheet.dataset;
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
function mark(plot) {
  const numbers = chosen.get(plot.closest(".study"));
  plot.data.forEach(({ customdata }, trace) => {
    const points = customdata?.flatMap((number, point) => numbers.has(number) ? [point] : []) ?? [];
    Plotly.restyle(plot, { selectedpoints: [numbers.size ? points : null] }, [trace]);
  });
}
const placesOf = sheet => new Map(sheet ? JSON.parse(sheet.dataset.numbers).map((number, place) => [number, place]) : []);
// What DataTables looks at to know that a page is dark.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
follow();
dark.addEventListener("change", follow);
// The table of all trials is made when it comes into view, by DataTables, which stands in the page as text.
let datatables;
function tableOf(study) {
  if (!made.has(study)) made.set(study, fill(study.querySelector(".trials")));
  return made.get(study);
}
async function fill(article) {
  datatables ??= import(URL.createObjectURL(new Blob(
    [JSON.parse(document.getElementById("datatables").textContent)], { type: "text/javascript" })));
  const { default: DataTable } = await datatables;
  const study = article.closest(".study"), table = article.querySelector("table");
  const sheet = study.querySelector(".thumbnail"), places = placesOf(sheet);
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
  const rows = new DataTable(table, {
    data: JSON.parse(article.querySelector(".rows").textContent), columns, deferRender: true,
    order: JSON.parse(table.dataset.first).map(([place, way]) => [place + (sheet && place > 0 ? 1 : 0), way]), pageLength: 10, autoWidth: false, select: { style: "os", info: false },
    stateSave: document.getElementById("live") !== null, stateDuration: -1, // for a page that loads itself again
    columnControl: ["order", ["orderAsc", "orderDesc", "spacer", "search"]], ordering: { indicators: false, handler: false },
  });
  const curves = article.querySelector(".curves");
  const { iterations, fits, of } = JSON.parse(article.querySelector(".all-curves")?.textContent ?? "{}");
  if (curves) draw(curves);
  const first = curves?.data;
  const curve = (number, place) => {
    const [fit, end] = of[number], x = iterations[fits[fit][0]].filter(step => step <= end);
    const dash = ["solid", "dash", "dot", "dashdot", "longdash"][place % 5];
    return { ...first[0], name: `trial ${number}`, x, y: fits[fit][1].slice(0, x.length), line: { width: 2, dash } };
  };
  rows.on("select deselect", () => {
    const numbers = rows.rows({ selected: true }).data().toArray().map(row => row[0]);
    chosen.set(study, new Set(numbers));
    const drawn = numbers.filter(number => of?.[number]).slice(0, 20).map(curve);
    if (curves) Plotly.react(curves, drawn.length ? drawn : first, curves.layout);
    for (const plot of study.querySelectorAll(".plot")) if (plot.data?.some(({ customdata }) => customdata)) mark(plot);
  });
  return number => {
    const found = rows.row((_, row) => row[0] === number);
    if (!found.any()) return;
    rows.rows().deselect();
    found.select();
    const place = rows.rows({ search: "applied", order: "applied" }).indexes().indexOf(found.index());
    rows.page(Math.floor(Math.max(place, 0) / rows.page.len())).draw("page");
    article.scrollIntoView({ block: "nearest" });
  };
}
const appearing = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) {
    appearing.unobserve(target);
    if (target.matches(".plot")) draw(target);
    else tableOf(target.closest(".study"));
  }
}, { rootMargin: "200px" });
for (const target of [...plots, ...document.querySelectorAll(".trials")]) appearing.observe(target);
const waiting = [...plots];
const next = () => {
  draw(waiting.shift());
  if (waiting.length) later(next);
};
if (waiting.length) later(next);
// Images that are looked at closely: figures over them zoom and move in step, grey and colours follow the sliders, and the
// target is shown in the output's place and back. What a pixel is worth is read from the scale below its image.
const scheme = { margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "transparent", plot_bgcolor: "transparent" };
const coarse = matchMedia("(pointer: coarse)").matches;
function pixels(image) {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
}
function values(image, strip, most) {
  const colours = pixels(strip), levels = new Map([...colours].map((colour, level) => [colour, level]));
  const far = (one, other) => [0, 8, 16].reduce((sum, bit) => sum + Math.abs((one >> bit & 255) - (other >> bit & 255)), 0);
  const level = colour => {
    if (!levels.has(colour)) // of an image that was made smaller: the nearest one
      levels.set(colour, colours.reduce((best, other, place) => far(other, colour) < far(colours[best], colour) ? place : best, 0));
    return levels.get(colour) * most / (colours.length - 1);
  };
  const all = Float32Array.from(pixels(image), level), width = image.naturalWidth;
  return Array.from({ length: image.naturalHeight }, (_, row) => all.subarray(row * width, (row + 1) * width));
}
async function look(viewer) {
  const faces = [...viewer.querySelectorAll(".face")], plots = [];
  await Promise.all([...viewer.querySelectorAll("img")].map(image => image.decode()));
  const { naturalWidth: width, naturalHeight: height } = faces[0].querySelector("img");
  const whole = { "xaxis.range": [-0.5, width - 0.5], "yaxis.range": [height - 0.5, -0.5] };
  for (const face of faces) {
    const image = face.querySelector(".image img"), strip = face.querySelector(".scale img");
    const plot = Object.assign(document.createElement("div"), { className: "slice" });
    plot.style.aspectRatio = `${width} / ${height}`;
    image.after(plot);
    let trace = { type: "image", source: image.src, hoverinfo: "skip" };
    if (strip) {
      const zmax = parseFloat(face.querySelector(".scale").lastElementChild.textContent);
      const colours = [...pixels(strip)].map((colour, level) =>
        [level / (strip.naturalWidth - 1), `rgb(${colour & 255}, ${colour >> 8 & 255}, ${colour >> 16 & 255})`]);
      trace = { type: "heatmap", z: values(image, strip, zmax), zmin: 0, zmax, colorscale: colours, showscale: false,
        hovertemplate: "%{z:.3f} in row %{y}, column %{x}<extra></extra>" };
    }
    const axis = { visible: false, fixedrange: coarse };
    Plotly.newPlot(plot, [trace], { ...scheme, dragmode: coarse ? false : "zoom",
      xaxis: { ...axis, range: whole["xaxis.range"] }, yaxis: { ...axis, range: whole["yaxis.range"], scaleanchor: "x" },
    }, { responsive: true, displayModeBar: false, doubleClick: false });
    plots.push(plot);
  }
  const show = ranges => {
    const [left, right] = ranges["xaxis.range"], zoomed = right - left < width - 1;
    const all = { ...ranges, dragmode: zoomed ? "pan" : coarse ? false : "zoom",
      "xaxis.fixedrange": coarse && !zoomed, "yaxis.fixedrange": coarse && !zoomed };
    for (const plot of plots) Plotly.relayout(plot, all);
  };
  const move = (zoom, right = 0, down = 0) => {
    if (!zoom) return show(whole);
    const { xaxis: { range: [x0, x1] }, yaxis: { range: [y1, y0] } } = plots[0].layout;
    const [across, upright] = [Math.min((x1 - x0) * zoom, width), Math.min((y1 - y0) * zoom, height)];
    const within = (middle, size, most) => Math.min(Math.max(middle, size / 2 - 0.5), most - size / 2 - 0.5);
    const x = within((x0 + x1) / 2 + right * across, across, width), y = within((y0 + y1) / 2 + down * upright, upright, height);
    show({ "xaxis.range": [x - across / 2, x + across / 2], "yaxis.range": [y + upright / 2, y - upright / 2] });
  };
  for (const plot of plots) {
    for (const event of ["plotly_relayout", "plotly_relayouting"]) plot.on(event, change => {
      if (!("xaxis.range[0]" in change)) return; // of the others, which follow
      const { xaxis, yaxis } = event === "plotly_relayout" ? plot.layout : plot._fullLayout;
      if (event === "plotly_relayout") return show({ "xaxis.range": [...xaxis.range], "yaxis.range": [...yaxis.range] });
      for (const other of plots) if (other !== plot)
        Plotly.relayout(other, { "xaxis.range": [...xaxis.range], "yaxis.range": [...yaxis.range] });
    });
    plot.on("plotly_doubleclick", () => show(whole));
  }
  const errors = faces.map(face => Boolean(face.querySelector(".scale")?.textContent.includes("more")));
  const tools = viewer.querySelector(".tools"), flicker = tools.querySelector(".flicker");
  const [black, white, most] = ["black", "white", "most"].map(name => tools.querySelector(`.${name}`));
  tools.hidden = false;
  viewer.classList.add("zooms");
  for (const button of tools.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => move(Number(button.dataset.zoom)));
  for (const slider of [black, white, most]) slider.addEventListener("input", () => {
    if (slider === black) white.value = Math.max(white.value, Number(black.value) + 0.01);
    if (slider === white) black.value = Math.min(black.value, Number(white.value) - 0.01);
    faces.forEach((face, place) => {
      const ends = face.querySelectorAll(".scale span"), isError = errors[place];
      if (!ends.length || (slider === most) !== isError) return;
      const [zmin, zmax] = isError ? [0, Number(most.value)] : [Number(black.value), Number(white.value)];
      ends[0].textContent = zmin;
      ends[1].textContent = isError ? `${zmax} and more` : zmax;
      Plotly.restyle(plots[place], { zmin, zmax });
    });
  });
  const named = name => faces.findIndex(face => face.dataset.name === name);
  const [there, other] = [named("output"), Math.max(named("target"), named("target") < 0 ? named("measurement") : 0)];
  const own = structuredClone(plots[there].data[0]);
  flicker.addEventListener("click", () => {
    const on = flicker.ariaPressed !== "true", { z, source } = on ? plots[other].data[0] : own;
    flicker.ariaPressed = String(on);
    faces[there].querySelector(".name").textContent = on ? `${faces[other].dataset.name}, in the output's place` : "output";
    Plotly.restyle(plots[there], z ? { z: [z] } : { source: [source] });
  });
  performance.mark("images"); // can be looked at; benchmarks/views.py reads when
  const keys = { f: () => flicker.click(), "+": () => move(0.5), "=": () => move(0.5), "-": () => move(2), 0: () => move(0),
    ArrowLeft: () => move(1, -0.2), ArrowRight: () => move(1, 0.2), ArrowUp: () => move(1, 0, -0.2), ArrowDown: () => move(1, 0, 0.2) };
  addEventListener("keydown", event => {
    const does = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key], { activeElement } = document;
    const arrow = event.key.startsWith("Arrow");
    if (!does || event.ctrlKey || event.metaKey || event.altKey || activeElement.matches("input, textarea, select")) return;
    if (arrow ? activeElement !== viewer : !viewer.matches(":hover, :focus-within")) return;
    event.preventDefault();
    does();
  });
}
for (const viewer of document.querySelectorAll(".viewer")) look(viewer);
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
    for (const details of study.querySelectorAll("details:not([open], .numbers)"))
      if (!again.includes(details)) details.open = details.opened = true;
  }
  plots.forEach(draw);
  for (const plot of plots) Plotly.relayout(plot, { width: plot.closest(".wide") ? 900 : 460 });
});
addEventListener("afterprint", () => {
  for (const details of document.querySelectorAll("details")) if (details.opened) details.open = details.opened = false;
  for (const plot of plots) Plotly.relayout(plot, { width: null, autosize: true });
});
