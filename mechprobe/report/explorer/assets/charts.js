// Courses over checkpoints: decoder norm and cosine of the features that are matched with the one that is open.
"use strict";

const NO_MATCH = "No feature of the dictionaries over checkpoints has a decoder in base like this one's.";
const CHART = { width: 330, height: 140, left: 44, right: 44, top: 12, bottom: 26 };

// Two charts with a line for every arm, and which feature of which arm's dictionary it is.
function courseCharts(courses) {
  const norms = courses.flatMap((course) => course.norms.filter(Number.isFinite));
  const cosines = courses.flatMap((course) => course.cosines.filter(Number.isFinite));
  const named = courses.map(
    ({ arm, matched, cosine }) => `feature ${matched} in arm ${inert(arm)} (cosine ${number(cosine)} with this one's decoder in base)`,
  );
  return el(
    "div.charts",
    {},
    el("p.soft", {}, `In the dictionary over checkpoints: ${named.join("; ")}.`),
    courseChart("decoder norm (L1)", courses, "norms", 0, Math.max(1e-9, ...norms) * 1.05),
    courseChart("cosine to base's decoder", courses, "cosines", cosines.some((value) => value < 0) ? -1 : 0, 1),
  );
}

function courseChart(name, courses, key, lowest, highest) {
  const { width, height, left, right, top, bottom } = CHART;
  const x = (progress) => left + (width - left - right) * progress;
  const y = (value) => top + (height - top - bottom) * (1 - (value - lowest) / (highest - lowest));
  const text = (attributes, content) => {
    const made = svg("text", attributes);
    made.textContent = content;
    return made;
  };
  const said = courses.map(
    (course) => `arm ${inert(course.arm)}: ${course.models.map((model, i) => `${inert(model)} ${number(course[key][i])}`).join(", ")}`,
  );
  const drawn = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    class: "chart",
    "aria-label": `${name} by checkpoint; ${said.join("; ")}`,
  });
  for (const tick of [lowest, (lowest + highest) / 2, highest])
    drawn.append(
      svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "rule" }),
      text({ x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)),
    );
  for (const course of courses) {
    const color = modelColor(course.arm);
    const points = course[key].map((value, i) => [x(course.progress[i]), y(value), i]).filter(([, , i]) => Number.isFinite(course[key][i]));
    drawn.append(svg("polyline", { points: points.map(([a, b]) => `${a},${b}`).join(" "), class: "course", stroke: color }));
    for (const [a, b, i] of points) {
      const title = svg("title");
      title.textContent = `${inert(course.models[i])}: ${number(course[key][i])}`;
      drawn.append(svg("circle", { cx: a, cy: b, r: 3.5, fill: color }, title));
    }
  }
  for (const [arm, place] of endPlaces(courses, key, y))
    drawn.append(text({ x: width - right + 8, y: place + 4, class: "arm" }, short(arm, 7)));
  drawn.append(
    text({ x: x(0), y: height - 6, "text-anchor": "start" }, `${short(courses[0].models[0], 12)}`),
    text({ x: x(1), y: height - 6, "text-anchor": "end" }, "end of training"),
  );
  return el("figure", {}, el("figcaption.soft", {}, name), drawn);
}

// Where the arms' names stand: at the ends of their lines, and 13 apart.
function endPlaces(courses, key, y) {
  const ends = courses
    .map((course) => [course.arm, y(course[key].filter(Number.isFinite).at(-1))])
    .filter(([, place]) => Number.isFinite(place))
    .sort((a, b) => a[1] - b[1]);
  ends.forEach((end, i) => (end[1] = i ? Math.max(end[1], ends[i - 1][1] + 13) : end[1]));
  return ends;
}
