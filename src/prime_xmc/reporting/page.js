"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Map(); // study -> places of the configurations that are switched off
  const drawn = new Set();

  const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const axis = (given) => ({
    ...given,
    color: property("--text"),
    gridcolor: property("--grid"),
    linecolor: property("--line"),
    zeroline: false,
    showline: true,
    ticks: "",
    title: { ...given.title, standoff: 8 },
  });

  const layout = (figure) => ({
    ...figure.layout,
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: property("--text") },
    hoverlabel: { namelength: -1, bgcolor: property("--surface"), font: { color: property("--text") }, bordercolor: property("--line") },
    margin: { l: 8, r: 14, t: 14, b: 8 },
    xaxis: axis(figure.layout.xaxis),
    yaxis: axis(figure.layout.yaxis),
  });

  const isVisible = (figure, trace) => !(hidden.get(figure.study) ?? new Set()).has(trace.meta);

  const draw = (plot) => {
    const figure = figures[plot.dataset.figure];
    const data = figure.data.map((trace) => ({ ...trace, visible: isVisible(figure, trace) }));
    Plotly.react(plot, data, layout(figure), { displaylogo: false, responsive: true, displayModeBar: false });
    drawn.add(plot);
  };

  // One task each, so that the page answers while dozens of figures are drawn.
  document.querySelectorAll(".plot").forEach((plot) => setTimeout(draw, 0, plot));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const { study } = button.dataset;
      const place = Number(button.dataset.configuration);
      const places = hidden.get(study) ?? new Set();
      hidden.set(study, places);
      const shown = places.delete(place);
      if (!shown) places.add(place);
      button.setAttribute("aria-pressed", String(shown));
      drawn.forEach((plot) => { if (figures[plot.dataset.figure].study === study) draw(plot); });
    });
  });
})();
