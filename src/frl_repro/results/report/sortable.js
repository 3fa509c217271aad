for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isUp = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [p, q] = [key(a), key(b)], numbers = [parseFloat(p), parseFloat(q)];
      return numbers.some(Number.isNaN) ? p.localeCompare(q) : numbers[0] - numbers[1];
    });
    table.tBodies[0].append(...(isUp ? rows : rows.reverse()));
  }));
}
