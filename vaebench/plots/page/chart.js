// The training curve, as SVG.
function makeCurve() {
  const svg = element("curve");
  const add = (kind, attributes, words) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = words ?? "";
    svg.append(made);
  };
  const series = ["test", "train"]
    .map((name) => [name, content.epochs.map((epoch) => epoch[`${name}_elbo`])])
    .filter(([, values]) => values.every((v) => v !== null));
  const all = series.flatMap(([, values]) => values);
  const [bottom, top] = [Math.min(...all), Math.max(...all)];
  const last = content.epochs.length - 1;
  const x = (k) => 44 + (last ? (k / last) * 262 : 131);
  const y = (v) => 150 - ((v - bottom) / (top - bottom || 1)) * 125;
  // The step is 1, 2 or 5 times a power of ten, so that there are three to seven ticks.
  const rough = (top - bottom || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((f) => f * power >= rough) * power;
  for (let v = Math.ceil(bottom / step) * step; v <= top; v += step) {
    add("line", { class: "tick", x1: 44, x2: 306, y1: y(v), y2: y(v) });
    const words = v.toFixed(Math.max(0, -Math.floor(Math.log10(step)))).replace("-", "−");
    add("text", { x: 40, y: y(v) + 4, "text-anchor": "end" }, words);
  }
  for (let k = 0; k <= last; k += Math.max(1, Math.ceil(last / 8))) {
    add("text", { x: x(k), y: 168, "text-anchor": "middle" }, content.epochs[k].epoch);
  }
  add("text", { x: 175, y: 186, "text-anchor": "middle" }, "epoch");
  add("text", { x: 4, y: 12 }, "ELBO, nats per image");
  let above = -Infinity;
  for (const [name, values] of series.sort((a, b) => b[1][last] - a[1][last])) {
    add("polyline", { class: name, points: values.map((v, k) => `${x(k)},${y(v)}`).join(" ") });
    if (name === "test") values.forEach((v, k) => add("circle", { cx: x(k), cy: y(v), r: 3 }));
    above = Math.max(y(values[last]) + 4, above + 13); // names do not overlap
    add("text", { class: name, x: 314, y: above }, name);
  }
}
