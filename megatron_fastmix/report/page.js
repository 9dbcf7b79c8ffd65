// Shows the values under the pointer; the tables hold the same for those who have none.
for (const chart of document.querySelectorAll(".chart")) {
  const { first, last, series } = JSON.parse(chart.querySelector("script").textContent);
  const plot = chart.querySelector(".plot");
  const cursor = chart.querySelector(".cursor");
  const tip = chart.querySelector(".tip");
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = first + share * (last - first);
    const lines = series.map(([name, steps, values]) => {
      let nearest = 0;
      steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[nearest] - step)) nearest = i; });
      return `${name}: ${values[nearest]}`;
    });
    tip.textContent = `step ${Math.round(step)}\n${lines.join("\n")}`;
    tip.hidden = cursor.hidden = false;
    cursor.style.left = `${100 * share}%`;
    const left = plot.offsetLeft + share * box.width;
    tip.style.left = share < 0.5 ? `${left + 12}px` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `${chart.clientWidth - left + 12}px`;
  });
  plot.addEventListener("pointerleave", () => { tip.hidden = cursor.hidden = true; });
}
