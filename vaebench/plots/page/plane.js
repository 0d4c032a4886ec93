// The latent plane: test images as points, classes, the prior's contours; and what is shown of it.
let reach = 3.2; // the plane shows -reach .. reach both ways
for (const [x, y] of coordinatesOf) reach = Math.max(reach, 1.03 * Math.abs(x), 1.03 * Math.abs(y));
const here = new Float32Array(Z); // coordinates of the cross
let chosen = -1; // index of a test image
const hiddenClasses = new Set();
const frames = []; // milliseconds that each of the last redraws took
let drawing = false;

const plane = element("plane");
const names = Z === 2 ? ["z₁", "z₂"] : ["1st direction", "2nd direction"];
const number = (v) => v.toFixed(2).replace("-", "−");
const colour = (n) => content.colours[(content.labels[n] ?? 0) % content.colours.length];
const shown = (n) => !hiddenClasses.has(content.labels[n]);

function drawPoints() {
  const canvas = element("points");
  const side = plane.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(side * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const look = getComputedStyle(document.documentElement);
  const ink = look.getPropertyValue("--ink");
  const panel = look.getPropertyValue("--panel");
  const across = (v) => ((v + reach) / (2 * reach)) * side;
  const down = (v) => side - across(v);
  context.globalAlpha = 0.8;
  for (let n = 0; n < count; n++) {
    if (!shown(n)) continue;
    context.fillStyle = colour(n);
    context.beginPath();
    const [x, y] = coordinatesOf[n];
    context.arc(across(x), down(y), side > 450 ? 2.6 : 1.9, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  drawContours(context, across, down, ink);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = "bold 17px system-ui, sans-serif";
  context.lineWidth = 4;
  context.strokeStyle = panel;
  context.fillStyle = ink;
  content.classes.forEach((name, k) => {
    if (hiddenClasses.has(k)) return;
    const [x, y] = content.places[k];
    context.strokeText(name, across(x), down(y));
    context.fillText(name, across(x), down(y));
  });
}

function drawContours(context, across, down, ink) {
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = 0.8;
  for (const inside of [0.5, 0.9, 0.99]) {
    const radius = Math.sqrt(-2 * Math.log(1 - inside)); // holds this part of a 2-D normal
    context.beginPath();
    context.arc(across(0), down(0), across(radius) - across(0), 0, 7);
    context.stroke();
  }
  context.font = "12px system-ui, sans-serif";
  context.textBaseline = "alphabetic";
  const side = down(-reach);
  for (let v = -Math.floor(reach); v <= reach; v++) {
    if (v % Math.ceil(reach / 4)) continue;
    const words = String(v).replace("-", "−");
    context.fillRect(across(v), side - 5, 1, 5);
    context.fillRect(0, down(v), 5, 1);
    context.textAlign = "center";
    context.fillText(words, across(v), side - 9);
    context.textAlign = "left";
    context.fillText(words, 9, down(v) + 4);
  }
  context.textAlign = "right";
  context.fillText(names[0] + " →", side - 6, side - 24);
  context.textAlign = "left";
  context.fillText("↑ " + names[1], 6, 16);
}

const position = (c) => {
  const part = (v) => ((v + reach) / (2 * reach)) * plane.clientWidth;
  return `translate(${part(c[0])}px, ${plane.clientWidth - part(c[1])}px)`;
};
