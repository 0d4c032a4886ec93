// From a point of latent space to pixels. Words as in the package: z is a point of latent space, mu
// an encoded test image. "Coordinates" c are along the basis: z = basis . c; the first two span the
// plane, the rest are the sliders.
const content = JSON.parse(document.getElementById("content").textContent);
const element = (id) => document.getElementById(id);
const Z = content.latents;
const { channels, height, width } = content.image;

function floats(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Float32Array(bytes.buffer); // little-endian, as every browser's machine is
}
const basis = floats(content.basis); // Z x Z, by rows
const mu = floats(content.mu); // count x Z
const count = mu.length / Z;
const layers = content.layers.map((layer) => ({
  ...layer,
  weight: floats(layer.weight),
  bias: floats(layer.bias),
  values: new Float32Array(layer.outputs),
}));
const activations = {
  none: (v) => v,
  relu: (v) => (v > 0 ? v : 0),
  tanh: Math.tanh,
  sigmoid: (v) => 1 / (1 + Math.exp(-v)),
};

// The decoder's mean pixels at z; the array is overwritten by the next call.
function decode(z) {
  let input = z;
  for (const { weight, bias, values, inputs, outputs, activation } of layers) {
    const activate = activations[activation];
    for (let row = 0, w = 0; row < outputs; row++) {
      let sum = bias[row];
      for (let column = 0; column < inputs; column++) sum += weight[w++] * input[column];
      values[row] = activate(sum);
    }
    input = values;
  }
  return input;
}

const toZ = (c) => {
  const z = new Float32Array(Z);
  for (let i = 0, b = 0; i < Z; i++) for (let j = 0; j < Z; j++) z[i] += basis[b++] * c[j];
  return z;
};
const toCoordinates = (z) => {
  const c = new Float32Array(Z);
  for (let i = 0, b = 0; i < Z; i++) for (let j = 0; j < Z; j++) c[j] += basis[b++] * z[i];
  return c;
};
const coordinatesOf = Array.from({ length: count }, (_, n) =>
  toCoordinates(mu.subarray(n * Z, (n + 1) * Z)));
