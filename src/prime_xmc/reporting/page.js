"use strict";
(() => {
  // The legend shows and hides a configuration in all charts of its data set.
  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      const { study, configuration } = button.dataset;
      document.querySelectorAll(`#${study} .chart [data-place="${configuration}"]`).forEach((group) => {
        group.classList.toggle("hidden", !shown);
      });
    });
  });

  // A table that is wider than its box says so, with a shade at each side that has more columns.
  const cue = (box) => {
    const frame = box.parentElement;
    const rest = box.scrollWidth - box.clientWidth;
    frame.classList.toggle("wide", rest > 1);
    frame.classList.toggle("more-left", box.scrollLeft > 1);
    frame.classList.toggle("more-right", box.scrollLeft < rest - 1);
    frame.style.setProperty("--first-column", `${box.querySelector("th").offsetWidth}px`);
  };
  const observer = new ResizeObserver((entries) => entries.forEach((entry) => cue(entry.target)));
  document.querySelectorAll(".scroll").forEach((box) => {
    box.addEventListener("scroll", () => cue(box), { passive: true });
    observer.observe(box);
    cue(box);
  });
})();
