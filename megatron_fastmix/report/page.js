// The values under the pointer or the keyboard's cursor; the tables hold the same.
const SHOWN = 12; // lines in the tooltip, the largest values first
for (const chart of document.querySelectorAll(".chart")) {
  const { first, last, steps, series } = JSON.parse(chart.querySelector("script").textContent);
  const stepsOf = (i) => (Array.isArray(steps[0]) ? steps[i] : steps);
  const plot = chart.querySelector(".plot");
  const cursor = chart.querySelector(".cursor");
  const tip = chart.querySelector(".tip");
  let at = last;
  const nearest = (list, step) => list.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(list[best] - step) ? i : best), 0);
  const swatch = (style) => {
    const space = plot.querySelector("svg").namespaceURI;
    const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
    svg.setAttribute("viewBox", "0 0 24 8"); svg.setAttribute("class", "key");
    path.setAttribute("d", "M0 4H24"); path.setAttribute("class", `line ${style}`);
    svg.append(path);
    return svg;
  };
  const show = (step) => {
    at = Math.min(last, Math.max(first, step));
    const share = last > first ? (at - first) / (last - first) : 0;
    const values = series
      .map(([name, style, numbers], i) => [name, style, numbers[nearest(stepsOf(i), at)]])
      .sort((a, b) => b[2] - a[2]);
    const lines = values.slice(0, SHOWN).map(([name, style, value]) => {
      const line = document.createElement("div");
      const text = document.createElement("span"), number = document.createElement("b");
      text.textContent = name; number.textContent = value;
      line.append(swatch(style), text, number);
      return line;
    });
    const head = document.createElement("div");
    const more = values.length > SHOWN ? `, the largest ${SHOWN} of ${values.length}` : "";
    head.textContent = `step ${Math.round(at)}${more}`;
    tip.replaceChildren(head, ...lines);
    tip.hidden = cursor.hidden = false;
    cursor.style.left = `${100 * share}%`;
    const width = plot.getBoundingClientRect().width;
    const left = plot.offsetLeft + share * width;
    tip.style.left = share < 0.5 ? `${left + 12}px` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `${chart.clientWidth - left + 12}px`;
  };
  const hide = () => { tip.hidden = cursor.hidden = true; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show(first + ((event.clientX - box.left) / box.width) * (last - first));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const list = stepsOf(0), place = nearest(list, at);
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: list.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(list[Math.min(list.length - 1, Math.max(0, to))]);
  });
  chart.querySelector(".csv").addEventListener("click", (event) => {
    const quote = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const every = [...new Set(series.flatMap((_, i) => stepsOf(i)))].sort((a, b) => a - b);
    const columns = series.map(([, , values], i) => new Map(stepsOf(i).map((s, j) => [s, values[j]])));
    const rows = every.map((s) => [s, ...columns.map((column) => column.get(s) ?? "")].join(","));
    const text = [["step", ...series.map(([name]) => quote(name))].join(","), ...rows, ""].join("\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = event.target.dataset.name;
    link.click();
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const pre = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "Copied";
    } catch { // a page opened from a file may not write the clipboard
      getSelection().selectAllChildren(pre);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
for (const tools of document.querySelectorAll(".tools")) {
  const find = tools.querySelector(".find"), choice = tools.querySelector(".show");
  const rows = [...tools.parentElement.querySelectorAll(".sources tbody tr")];
  let lighter = tools.parentElement.querySelector(".lighter");
  const listLighter = () => { // rows of thousands of sources, which the page opens without
    const body = rows[0].parentElement, made = document.createDocumentFragment();
    for (const [[group, pull, many, move], texts] of JSON.parse(lighter.textContent)) {
      const row = rows[0].cloneNode(true);
      Object.assign(row.dataset, { group, pull, many, move });
      texts.forEach((text, i) => { row.children[i].textContent = text; });
      row.lastElementChild.className = many === "true" ? "fair" : "";
      rows.push(row);
      made.append(row);
    }
    body.append(made);
    lighter = null;
  };
  const filter = () => {
    if (lighter) listLighter();
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean), chosen = choice?.value ?? "";
    let count = 0;
    for (const row of rows) {
      const name = row.querySelector("th").textContent.toLowerCase();
      const kind = chosen.startsWith("=") ? row.dataset.group === chosen.slice(1)
        : chosen === "" || (chosen === "many" ? row.dataset.many === "true" : chosen === "pull" ? row.dataset.pull : row.dataset.move === chosen);
      row.hidden = !(kind && words.every((word) => name.includes(word)));
      count += !row.hidden;
    }
    tools.querySelector(".count").textContent = `${count} source${count === 1 ? "" : "s"}`;
  };
  find.addEventListener("input", filter);
  choice?.addEventListener("change", filter);
}
// On paper nobody can unfold or search: everything is there.
addEventListener("beforeprint", () => {
  for (const row of document.querySelectorAll(".sources tr[hidden]")) row.hidden = false;
});
