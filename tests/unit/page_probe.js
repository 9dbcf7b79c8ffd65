// Looks at a laid-out page, at every width and in every medium, for what a reader would stumble on.
const near = 1; // pixels

function visible(element) {
  return element.checkVisibility({ checkVisibilityCSS: true }) && !element.closest(".unseen, .skip");
}

function overlaps(elements, what) {
  const boxes = elements.filter(visible).map((element) => [element, element.getBoundingClientRect()]);
  const found = [];
  for (const [i, [one, a]] of boxes.entries()) {
    for (const [other, b] of boxes.slice(i + 1)) {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > near && down > near && !one.contains(other)) {
        found.push(`${what}: ${one.textContent.trim().slice(0, 30)} / ${other.textContent.trim().slice(0, 30)}`);
      }
    }
  }
  return found;
}

function overflows(root) {
  const found = [];
  const wide = root.documentElement.scrollWidth, room = root.defaultView.innerWidth;
  if (wide > room) found.push(`page: ${wide} in ${room}`);
  for (const cell of root.querySelectorAll("th, td, dd, h2, h3, .findings li, button")) {
    if (visible(cell) && cell.scrollWidth > cell.clientWidth + near && cell.clientWidth) {
      found.push(`${cell.tagName}: ${cell.textContent.trim().slice(0, 40)}`);
    }
  }
  // A table stays within its panel, or in a box that scrolls there.
  for (const table of root.querySelectorAll(".panel table")) {
    const panel = table.closest(".panel").getBoundingClientRect();
    const box = table.closest(".scroll").getBoundingClientRect();
    if (visible(table) && (box.right > panel.right + near || box.left < panel.left - near)) {
      found.push(`table: ${table.textContent.trim().slice(0, 40)}`);
    }
  }
  return found;
}

function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}

function contrasts(root) {
  const colour = (text) => text.match(/[\d.]+/g).map(Number);
  const found = new Set();
  for (const element of root.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!says || !visible(element) || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    let under = element;
    while (under && (colour(root.defaultView.getComputedStyle(under).backgroundColor)[3] ?? 1) === 0) under = under.parentElement;
    const back = under ? colour(root.defaultView.getComputedStyle(under).backgroundColor) : [255, 255, 255];
    const [low, high] = [luminance(colour(root.defaultView.getComputedStyle(element).color)), luminance(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
}

function use(root, medium) {
  for (const sheet of root.styleSheets) {
    for (const rule of sheet.cssRules) {
      if (!(rule instanceof root.defaultView.CSSMediaRule)) continue;
      rule.original ??= rule.media.mediaText;
      const about = { dark: "(prefers-color-scheme: dark)", print: "print" }[medium];
      const ours = /prefers-color-scheme|print/.test(rule.original);
      if (ours) rule.media.mediaText = rule.original === about ? "all" : "not all";
    }
  }
  if (medium === "print") root.defaultView.dispatchEvent(new Event("beforeprint"));
}

function look(root) {
  const found = { overflow: overflows(root), contrast: contrasts(root), overlap: [] };
  found.overlap.push(...overlaps([...root.querySelectorAll(".panel, .chart, h1, .lead, nav, footer")], "panels"));
  for (const plot of root.querySelectorAll(".plot")) {
    for (const kind of [".y span", ".x span", ".ends span"]) found.overlap.push(...overlaps([...plot.querySelectorAll(kind)], kind));
  }
  for (const row of root.querySelectorAll("tr")) found.overlap.push(...overlaps([...row.children], "cells"));
  for (const marks of root.querySelectorAll(".marks")) found.overlap.push(...overlaps([...marks.children], "marks"));
  return found;
}

function behave(root) {
  const plot = root.querySelector(".plot"), tip = root.querySelector(".tip");
  plot.dispatchEvent(new root.defaultView.KeyboardEvent("keydown", { key: "End", cancelable: true }));
  const values = [...tip.querySelectorAll("b")].map((b) => Number(b.textContent));
  const find = root.querySelector(".find");
  let left = null;
  if (find) {
    find.value = find.dataset.try ?? "01";
    find.dispatchEvent(new root.defaultView.Event("input"));
    left = [...root.querySelectorAll(".sources tbody tr")].filter((row) => !row.hidden).map((row) => row.querySelector("th").textContent);
    find.value = "";
    find.dispatchEvent(new root.defaultView.Event("input"));
  }
  const levels = [...root.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1]));
  return {
    values, swatches: tip.querySelectorAll("svg").length, left, copies: root.querySelectorAll(".copy").length,
    csv: root.querySelectorAll(".csv").length, charts: root.querySelectorAll(".chart").length,
    skipped: levels.some((level, i) => i > 0 && level > levels[i - 1] + 1),
    labels: root.querySelectorAll(".chart:first-of-type .ends span").length,
  };
}

onload = () => {
  const result = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const root = frame.contentDocument;
    result[`behaviour ${frame.width}`] = behave(root);
    root.querySelector(".plot").dispatchEvent(new root.defaultView.PointerEvent("pointerleave"));
    for (const medium of ["light", "dark", "print"]) {
      use(root, medium);
      result[`${medium} ${frame.width}`] = look(root);
    }
  }
  document.querySelector("#result").textContent = JSON.stringify(result);
};
