"use strict";
for (const head of document.querySelectorAll("table.sortable th")) {
  head.querySelector("button")?.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], place = head.cellIndex;
    const text = place === 0, before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : !text;
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[place].dataset.v;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = text ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
const marked = (event, on) => {
  const here = event.target.closest?.("[data-s]");
  if (!here) return;
  for (const other of document.querySelectorAll(`[data-s="${here.dataset.s}"]`)) other.classList.toggle("hot", on);
};
document.addEventListener("pointerover", (event) => marked(event, true));
document.addEventListener("pointerout", (event) => marked(event, false));
