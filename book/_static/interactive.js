// Puts an interactive plot in place of a picture. Without this program, or in a notebook, the picture stays.
document.addEventListener("DOMContentLoaded", () => {
  const draw = (place) => {
    const plot = JSON.parse(place.querySelector("script").textContent);
    const color = getComputedStyle(document.body).color, none = "rgba(0, 0, 0, 0)";
    const axis = {gridcolor: "rgba(128, 128, 128, 0.3)", zeroline: false};
    const layout = {...plot.layout, font: {color}, paper_bgcolor: none, plot_bgcolor: none};
    for (const name of ["xaxis", "yaxis"]) layout[name] = {...axis, ...layout[name]};
    const options = {responsive: true, displayModeBar: false};
    return Plotly.react(place, plot.data, layout, options);
  };
  const places = [...document.querySelectorAll(".interactive")];
  for (const place of places) {
    place.hidden = false;
    draw(place).then(() => {
      place.parentElement.querySelector("img").hidden = true;
      place.on("plotly_click", (event) => { location.href = event.points[0].customdata; });
    });
  }
  new MutationObserver(() => places.forEach(draw))
    .observe(document.documentElement, {attributes: true, attributeFilter: ["data-theme"]});
});
