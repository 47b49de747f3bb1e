// Lets a reader sort and filter the tables of class sortable. Without this program they stay as they are.
document.addEventListener("DOMContentLoaded", async () => {
  const {jQuery} = await dataTables;
  const number = (cell) => parseFloat(cell.split("<br>")[0].replace(/<[^>]*>|,/g, ""));
  const order = (sign) => (a, b) => {  // cells without a number stand last in both directions
    const [x, y] = [number(a), number(b)];
    return isNaN(x) - isNaN(y) || sign * (isNaN(x) ? a.localeCompare(b) : x - y);
  };
  jQuery.fn.dataTable.type("measured", "order", {asc: order(1), desc: order(-1)});
  const complete = ({rows}) => {  // what stands once for several rows is needed in each, as they change places
    for (let k = 1; k < rows.length; k++)
      [...rows[k].cells].forEach((cell, c) => { cell.innerHTML ||= rows[k - 1].cells[c].innerHTML; });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    complete(table.tBodies[0]);
    const names = table.tBodies[0].rows[0].querySelectorAll("th").length;
    const measured = {targets: [...Array(table.tBodies[0].rows[0].cells.length).keys()].slice(names), type: "measured", searchable: false};
    const none = {topStart: null, topEnd: null, bottomStart: null, bottomEnd: null};
    const sorted = jQuery(table).DataTable({autoWidth: false, columnDefs: [measured], layout: none, order: [], paging: false, titleRow: table.tHead.rows.length - 1});
    sorted.on("order", () => table.classList.toggle("ordered", sorted.order().length > 0));
    const field = Object.assign(document.createElement("input"), {type: "search", className: "filter", placeholder: "Filter, such as ethanol mace"});
    field.setAttribute("aria-label", "Filter the rows of the table by their names");
    field.addEventListener("input", () => sorted.search(field.value).draw());
    table.closest("[style*=overflow]").before(field);
  }
});
