// A page about a running study asks for its status every two seconds, while it is seen, and for itself again when there
// are newer results: at the same place, and not while its reader moves about in it, or when told not to.
{
  const live = document.getElementById("live"), [follow, newer, said] = live.querySelectorAll("input, a, strong");
  const parts = new Map(), blocks = new Map();
  function show({ studies }) {
    for (const { name, progress, best, history } of studies) { // the latter two only where they have changed
      if (!blocks.has(name)) {
        const block = live.appendChild(document.createElement("div"));
        block.className = "now";
        blocks.set(name, ["div", "div", "div"].map(kind => block.appendChild(document.createElement(kind))));
      }
      const [first, second, third] = blocks.get(name);
      for (const [place, html] of [[first, progress], [second, best]]) // what stays is not touched
        if (html !== undefined && parts.get(place) !== html) parts.set(place, place.innerHTML = html);
      if (history) {
        third.className = "plot";
        Plotly.react(third, history.data, history.layout, { responsive: true, displayModeBar: false });
      }
    }
    const [{ done, total }] = studies;
    document.title = `${done}/${total} ${document.title.replace(/^\d+\/\d+ /, "")}`;
  }
  // the panel that is at the top of the window, and how far it has been scrolled
  const places = [...document.querySelectorAll("main [id]")];
  const details = () => [...document.querySelectorAll("main details")].map(each => {
    const place = each.closest("[id]");
    return [each, `${place.id} ${[...place.querySelectorAll("details")].indexOf(each)}`];
  });
  function leave() {
    const seen = places.find(place => place !== live && place.tagName === "ARTICLE" && place.getBoundingClientRect().bottom > 0);
    const open = details().flatMap(([each, name]) => each.open ? [name] : []);
    const place = scrollY ? { id: seen?.id, top: seen?.getBoundingClientRect().top } : {};
    sessionStorage.setItem("place", JSON.stringify({ ...place, open, follow: follow.checked, shown: last }));
    location.reload();
  }
  function comeBack({ id, top, open }) {
    for (const [each, name] of details()) if (open.includes(name)) each.open = true;
    if (id) scrollBy({ top: document.getElementById(id)?.getBoundingClientRect().top - top || 0, behavior: "instant" });
  }
  let last, moved = 0;
  async function look() {
    if (!document.hidden) try {
      const answer = await fetch(`status?${last?.known ?? ""}`);
      if (!answer.ok) throw new Error(await answer.text());
      const now = await answer.json();
      said.textContent = "";
      show(now);
      const whole = Object.fromEntries(last?.studies.map(study => [study.name, study]) ?? []);
      last = { ...now, studies: now.studies.map(study => ({ ...whole[study.name], ...study })) };
      newer.hidden = last.version === live.dataset.version;
      const busy = Date.now() - moved < 3000 || document.querySelector("dialog[open]") || getSelection().toString();
      if (!newer.hidden && follow.checked && !busy) return leave();
    } catch (error) {
      said.textContent = error instanceof TypeError ? "The server has ended; this page stays as it is." : error.message;
    }
    setTimeout(look, 2000);
  }
  history.scrollRestoration = "manual";
  for (const kind of ["pointermove", "keydown", "scroll"]) addEventListener(kind, () => { moved = Date.now(); });
  newer.addEventListener("click", event => { event.preventDefault(); leave(); });
  const before = JSON.parse(sessionStorage.getItem("place"));
  if (before) {
    sessionStorage.removeItem("place");
    follow.checked = before.follow;
    show(last = before.shown);
    comeBack(before);
    // once more: images have their sizes now, and tables their rows
    const rows = [...document.querySelectorAll(".trials")].map(article => tableOf(article.closest(".study")));
    addEventListener("load", () => Promise.all(rows).then(() => comeBack(before)));
  }
  look();
}
