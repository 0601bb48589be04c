"use strict";
// Trials are marked with data-trial and known by the JSON in #trials; everything else that can be pointed at says
// what it is in data-tip. Nothing here computes what is drawn.
(() => {
  const find = (query) => [...document.querySelectorAll(query)];
  const trials = JSON.parse(document.getElementById("trials")?.textContent ?? "{}");
  const tip = document.getElementById("tip");

  const marked = new Map();
  for (const item of find("[data-trial]")) {
    const key = item.dataset.trial;
    marked.set(key, [...(marked.get(key) ?? []), item]);
  }
  const mark = (key, on) => (marked.get(key) ?? []).forEach((item) => item.classList.toggle("on", on));

  let pointed = null;
  document.addEventListener("pointermove", (event) => {
    const item = event.target.closest?.("[data-trial], [data-tip]");
    const key = item?.dataset.trial ?? null;
    if (key !== pointed) {
      if (pointed !== null) mark(pointed, false);
      if (key !== null) mark(key, true);
      pointed = key;
    }
    const words = item?.dataset.tip ?? (item?.ownerSVGElement ? trials[key] : undefined);
    tip.style.display = words ? "block" : "none";
    if (!words) return;
    tip.textContent = words;
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(4, event.clientX + 16 + width > innerWidth ? event.clientX - 16 - width : event.clientX + 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  });

  const show = (key) => {
    const chosen = find("[data-portrait]").filter((item) => item.dataset.portrait === key);
    if (!chosen.length) return;
    find("[data-portrait]").forEach((item) => { item.style.display = chosen.includes(item) ? "" : "none"; });
    find("[data-show]").forEach((item) => item.classList.toggle("chosen", item.dataset.show === key));
  };
  document.addEventListener("click", (event) => {
    const item = event.target.closest("[data-show], [data-trial], [data-copy]");
    if (item?.dataset.copy !== undefined) {
      const code = item.parentElement.querySelector("code");
      getSelection().selectAllChildren(code);
      navigator.clipboard?.writeText(code.textContent).catch(() => {});
      item.textContent = "copied";
    } else if (item) {
      show(item.dataset.show ?? item.dataset.trial);
    }
  });

  // Parallel coordinates: drag along an axis to keep the lines that cross it there, click it to keep all again.
  for (const chart of find("#choices")) {
    const lines = [...chart.querySelectorAll("[data-heights]")].map((item) => [
      item.dataset.trial, item.dataset.heights.split(",").map(Number),
    ]);
    const kept = new Map();
    const filter = () => {
      for (const [key, heights] of lines) {
        const off = [...kept].some(([axis, [low, high]]) => heights[axis] < low || heights[axis] > high);
        (marked.get(key) ?? []).forEach((item) => item.ownerSVGElement && item.classList.toggle("off", off));
      }
    };
    for (const handle of chart.querySelectorAll("[data-axis]")) {
      const axis = Number(handle.dataset.axis);
      const brush = handle.cloneNode();
      brush.setAttribute("class", "brush");
      brush.removeAttribute("data-axis");
      const height = (event) =>
        new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).y;
      let start = null;
      handle.addEventListener("pointerdown", (event) => {
        start = height(event);
        handle.setPointerCapture(event.pointerId);
      });
      handle.addEventListener("pointermove", (event) => {
        if (start === null) return;
        const [low, high] = [start, height(event)].sort((a, b) => a - b);
        if (high - low < 3) return;
        kept.set(axis, [low, high]);
        brush.setAttribute("y", low);
        brush.setAttribute("height", high - low);
        handle.before(brush);
        filter();
      });
      handle.addEventListener("pointerup", (event) => {
        if (Math.abs(height(event) - start) < 3) {
          kept.delete(axis);
          brush.remove();
          filter();
        }
        start = null;
      });
    }
  }
})();
