// What is on the page and how it answers; uses decoder.js, plane.js and chart.js.

// ---- images -------------------------------------------------------------------------------------
for (const id of ["decoded", "original", "reconstruction"]) {
  element(id).width = width;
  element(id).height = height;
}
const decodedContext = element("decoded").getContext("2d", { willReadFrequently: true });
const reconstructionContext = element("reconstruction").getContext("2d");
const buffer = decodedContext.createImageData(width, height);
const [low, high] = content.range;

function paint(context, values) {
  const plane = channels === 3 ? height * width : 0; // grey: all three colours from one plane
  for (let p = 0; p < height * width; p++) {
    for (let k = 0; k < 3; k++) {
      // A clamped array rounds to the nearest integer itself.
      buffer.data[4 * p + k] = (255 * (values[p + k * plane] - low)) / (high - low);
    }
    buffer.data[4 * p + 3] = 255;
  }
  context.putImageData(buffer, 0, 0);
}

const sheet = new Image();
sheet.onload = drawOriginal;
sheet.src = content.sheet;
function drawOriginal() {
  if (chosen < 0 || !sheet.complete) return;
  const x = (chosen % content.sheetColumns) * width;
  const y = Math.floor(chosen / content.sheetColumns) * height;
  element("original").getContext("2d").drawImage(sheet, x, y, width, height, 0, 0, width, height);
}

// ---- a frame ------------------------------------------------------------------------------------
function draw() {
  const start = performance.now();
  drawing = false;
  paint(decodedContext, decode(toZ(here)));
  element("cross").style.transform = position(here);
  element("where").textContent = `${names[0]} ${number(here[0])}, ${names[1]} ${number(here[1])}`;
  frames.push(performance.now() - start);
  if (frames.length > 240) frames.shift();
}
// However many events arrive, a screen's frame decodes once.
const redraw = () => {
  if (!drawing) requestAnimationFrame(draw);
  drawing = true;
};

function moveTo(x, y) {
  here[0] = Math.min(reach, Math.max(-reach, x));
  here[1] = Math.min(reach, Math.max(-reach, y));
  redraw();
}

function choose() {
  let best = Infinity;
  for (let n = 0; n < count; n++) {
    const c = coordinatesOf[n];
    const distance = (c[0] - here[0]) ** 2 + (c[1] - here[1]) ** 2;
    if (shown(n) && distance < best) [best, chosen] = [distance, n];
  }
  if (best === Infinity) return; // every class is hidden
  paint(reconstructionContext, decode(mu.subarray(chosen * Z, (chosen + 1) * Z)));
  drawOriginal();
  here.set(coordinatesOf[chosen]);
  const name = content.classes[content.labels[chosen]];
  element("chosen").textContent = `no. ${chosen}` + (name === undefined ? "" : `, a ${name}`);
  element("ring").style.transform = position(here);
  element("ring").hidden = false;
  showSliders();
  redraw();
}

// ---- pointer, keyboard, sliders -----------------------------------------------------------------
function follow(event) {
  const box = plane.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * 2 - 1;
  const y = 1 - ((event.clientY - box.top) / box.height) * 2;
  moveTo(x * reach, y * reach);
}
let pressed = null;
plane.addEventListener("pointermove", follow);
plane.addEventListener("pointerdown", (event) => {
  pressed = [event.clientX, event.clientY];
  follow(event);
});
plane.addEventListener("pointerup", (event) => {
  // A press that wandered was a drag, not a choice.
  const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 6;
  pressed = null;
  if (still) choose();
});
const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
plane.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 0.5 : 0.1;
  if (event.key in steps) {
    moveTo(here[0] + step * steps[event.key][0], here[1] + step * steps[event.key][1]);
  } else if (event.key === "Home") moveTo(0, 0);
  else if (event.key === "Enter" || event.key === " ") choose();
  else return;
  event.preventDefault();
  // Only the keyboard is answered in words: a moving pointer would never stop talking.
  const image = event.key.startsWith("Arrow") ? "" : element("chosen").textContent;
  element("status").textContent = `${number(here[0])}, ${number(here[1])} ${image}`;
});

const sliders = [];
function showSliders() {
  for (const { input, output, axis } of sliders) {
    input.value = here[axis];
    output.textContent = number(here[axis]);
  }
}
function makeSliders() {
  element("others").hidden = Z === 2;
  for (let axis = 2; axis < Z; axis++) {
    const label = document.createElement("label");
    const name = document.createElement("span");
    const output = document.createElement("output");
    const input = document.createElement("input");
    name.textContent = `${axis + 1} (${(100 * content.shares[axis]).toFixed(1)} %)`;
    Object.assign(input, { type: "range", min: -4, max: 4, step: 0.01, value: 0 });
    input.setAttribute("aria-label", `principal direction ${axis + 1}`);
    input.addEventListener("input", () => {
      here[axis] = Number(input.value);
      output.textContent = number(here[axis]);
      redraw();
    });
    label.append(name, input, output);
    element("sliders").append(label);
    sliders.push({ input, output, axis });
  }
  element("reset").addEventListener("click", () => {
    here.fill(0, 2);
    showSliders();
    redraw();
  });
  showSliders();
}

function makeClasses() {
  content.classes.forEach((name, k) => {
    const button = document.createElement("button");
    const dot = document.createElement("i");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    dot.style.background = content.colours[k % content.colours.length];
    button.append(dot, name);
    button.addEventListener("click", () => {
      if (!hiddenClasses.delete(k)) hiddenClasses.add(k);
      button.setAttribute("aria-pressed", String(!hiddenClasses.has(k)));
      drawPoints();
    });
    element("classes").append(button);
  });
}

// ---- start --------------------------------------------------------------------------------------
element("caption").textContent = content.caption;
makeClasses();
makeSliders();
makeCurve();
new ResizeObserver(() => {
  drawPoints();
  if (chosen >= 0) element("ring").style.transform = position(coordinatesOf[chosen]);
  redraw();
}).observe(plane);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPoints);
choose(); // the test image nearest to the centre
draw();
// For tests, and for the curious at the console.
window.vaebench = {
  frames,
  reach,
  decodeAt: (z) => Array.from(decode(Float32Array.from(z))),
  state: () => ({ z: Array.from(toZ(here)), chosen, pending: drawing }),
};
