// Tables inside <div class="browse">: a head sorts, a field above keeps the rows that have its words. Without JavaScript
// they are tables.
document.querySelectorAll(".browse table").forEach((table) => {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const text = (row, i) => row.cells[i].textContent.trim();
  const number = (words) => (/^[\d,.]+$/.test(words) ? Number(words.replaceAll(",", "")) : NaN);

  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const absent = (row) => text(row, i) === "–" || text(row, i) === "";
      const compare = (a, b) => {
        const [x, y] = [text(a, i), text(b, i)], difference = number(x) - number(y);
        return Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference;
      };
      // What is not known comes last in either order.
      const sorted = rows.toSorted((a, b) => absent(a) - absent(b) || (falling ? -1 : 1) * compare(a, b));
      body.append(...sorted);
    });
  });

  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "search this table";
  field.setAttribute("aria-label", "Search this table");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    rows.forEach((row) => {
      row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    });
  });
  const browse = table.closest(".browse");
  browse.prepend(field);
});
