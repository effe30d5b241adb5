// Tables of class "sortable" can be sorted: by a button in each column's head, or by a list on a narrow screen.
// The page is complete without this.
(() => {
  const chosen = {};  // of each table, by its place on the page: the column and the direction

  const valueOf = (row, column) => {
    const cell = row.cells[column], given = cell.dataset.sort;
    if (given === undefined) return cell.textContent.trim();
    return given === "" ? null : Number(given);
  };

  const compared = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);  // what is not known comes last
    return typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
  };

  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map(row => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => a === null || b === null || !descending ? compared(a, b) : compared(b, a));
    body.append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (place === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };

  const prepare = () => document.querySelectorAll("table.sortable").forEach((table, number) => {
    const list = document.createElement("select"), label = document.createElement("label");
    label.className = "sorter";
    label.append("Sort by ", list);
    const choose = (column, descending) => {
      chosen[number] = {column, descending};
      list.value = `${column} ${descending}`;
      sort(table, column, descending);
    };
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const first = table.tBodies[0].rows[0];
      if (!first || head.classList.contains("unsorted")) return;
      const name = head.textContent.trim(), isText = first.cells[column].dataset.sort === undefined;
      for (const descending of isText ? [false, true] : [true, false])
        list.add(new Option(`${name}, ${isText ? (descending ? "z to a" : "a to z") : (descending ? "highest first" : "lowest first")}`, `${column} ${descending}`));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = chosen[number];
        choose(column, now && now.column === column ? !now.descending : !isText);
      });
    });
    list.selectedIndex = -1;
    list.addEventListener("change", () => {
      const [column, descending] = list.value.split(" ");
      choose(Number(column), descending === "true");
    });
    table.parentNode.before(label);
    if (chosen[number]) choose(chosen[number].column, chosen[number].descending);
  });

  prepare();
  document.addEventListener("fedsa:replaced", prepare);
})();
