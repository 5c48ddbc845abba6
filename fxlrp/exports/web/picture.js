// From a picture to the model's input and back: Pillow's resizing, the middle, the normalisation, and colours.

// Pillow's filters and how far they reach.
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
};

// Pillow's weights are whole numbers, parts of this: a sum in floating point would round some pixels to another byte.
const ONE = 2 ** 22;

// The weights of the pixels of a line that make each pixel of a resized one, as Pillow computes them.
function weights(from, to, filter) {
  const [reach, shape] = FILTERS[filter], scale = from / to, wide = Math.max(1, scale), narrow = 1 / wide;
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach * wide + 0.5));
    const values = [];
    for (let i = first; i < end; i++) values.push(shape((i - centre + 0.5) * narrow));
    const sum = values.reduce((a, b) => a + b, 0);
    return [first, values.map((value) => Math.trunc(value / sum * ONE + 0.5 * Math.sign(value)))];
  });
}

const byte = (sum) => Math.min(255, Math.max(0, Math.floor((sum + ONE / 2) / ONE)));

// RGB bytes {data, width, height}, resized first across and then down, rounded in between as Pillow does.
export function resized(picture, width, height, filter) {
  let { data } = picture;
  if (width !== picture.width) {
    const lines = weights(picture.width, width, filter), next = new Uint8ClampedArray(width * picture.height * 3);
    for (let y = 0; y < picture.height; y++)
      for (let x = 0; x < width; x++) {
        const [first, values] = lines[x];
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let i = 0; i < values.length; i++) sum += values[i] * data[(y * picture.width + first + i) * 3 + c];
          next[(y * width + x) * 3 + c] = byte(sum);
        }
      }
    data = next;
  }
  if (height !== picture.height) {
    const lines = weights(picture.height, height, filter), next = new Uint8ClampedArray(width * height * 3);
    for (let y = 0; y < height; y++) {
      const [first, values] = lines[y];
      for (let x = 0; x < width * 3; x++) {
        let sum = 0;
        for (let i = 0; i < values.length; i++) sum += values[i] * data[(first + i) * width * 3 + x];
        next[y * width * 3 + x] = byte(sum);
      }
    }
    data = next;
  }
  return { data, width, height };
}

// What the model sees: the short side resized, the middle cut out.
export function seen(picture, about) {
  const short = Math.min(picture.width, picture.height), long = Math.max(picture.width, picture.height);
  const other = Math.trunc(about.resize * long / short);
  const [width, height] = picture.width <= picture.height ? [about.resize, other] : [other, about.resize];
  return cut(resized(picture, width, height, about.interpolation), about.width, about.height);
}

// Python rounds halves to the even number, and torchvision's CenterCrop so too.
function half(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

function cut(picture, width, height) {
  const left = half((picture.width - width) / 2), top = half((picture.height - height) / 2);
  const data = new Uint8ClampedArray(width * height * 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [u, v] = [x + left, y + top];
      if (u >= 0 && v >= 0 && u < picture.width && v < picture.height)
        for (let c = 0; c < 3; c++) data[(y * width + x) * 3 + c] = picture.data[(v * picture.width + u) * 3 + c];
    }
  return { data, width, height };
}

// (channels, height, width) of what the model sees, each step rounded to 32 bits as torch rounds it.
export function input(picture, about) {
  const pixels = about.width * about.height, values = new Float32Array(about.channels * pixels);
  const round = Math.fround, [mean, std] = [about.mean, about.std].map((each) => each.map(round));
  for (let i = 0; i < pixels; i++) {
    const [r, g, b] = picture.data.subarray(3 * i, 3 * i + 3);
    // Pillow's grey, in whole numbers.
    const channels = about.channels === 1 ? [(r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16] : [r, g, b];
    channels.forEach((value, c) => { values[c * pixels + i] = round(round(value / 255) - mean[c]) / std[c]; });
  }
  return values;
}

// The sum of relevance over channels.
export function heatmap(relevance, about) {
  const pixels = about.width * about.height, heat = new Float32Array(pixels);
  for (let i = 0; i < relevance.length; i++) heat[i % pixels] += relevance[i];
  return heat;
}

// The map as it is shown: of a model that reads patches, the mean of each patch, interpolated between their centres.
export function shown(heat, about) {
  if (!about.patch) return heat;
  const [high, wide] = about.patch, rows = Math.floor(about.height / high), columns = Math.floor(about.width / wide);
  const means = new Float32Array(rows * columns), map = new Float32Array(heat.length);
  for (let y = 0; y < rows * high; y++) for (let x = 0; x < columns * wide; x++) {
    means[Math.floor(y / high) * columns + Math.floor(x / wide)] += heat[y * about.width + x] / (high * wide);
  }
  const between = (pixel, length, count) => {
    const place = Math.max(0, (pixel + 0.5) / length - 0.5), low = Math.min(count - 1, Math.floor(place));
    return [low, Math.min(count - 1, low + 1), place - low];
  };
  for (let y = 0; y < rows * high; y++) for (let x = 0; x < columns * wide; x++) {
    const [top, bottom, down] = between(y, high, rows), [left, right, across] = between(x, wide, columns);
    const line = (row) => (1 - across) * means[row * columns + left] + across * means[row * columns + right];
    map[y * about.width + x] = (1 - down) * line(top) + down * line(bottom);
  }
  return map;
}

// Matplotlib's RdBu_r at eleven places, from blue to red.
const COLOURS = [[5, 48, 97], [33, 102, 172], [67, 147, 195], [146, 197, 222], [209, 229, 240], [247, 247, 247],
  [253, 219, 199], [244, 165, 130], [214, 96, 77], [178, 24, 43], [103, 0, 31]];

// The map over the greyed picture, as RGBA bytes, and where its colours end.
export function overlay(picture, heat) {
  const { width, height } = picture, smooth = blurred(heat, width, height);
  const sorted = Float32Array.from(smooth, Math.abs).sort();
  const limit = sorted[Math.ceil(0.995 * sorted.length) - 1] || sorted[sorted.length - 1];
  const data = new Uint8ClampedArray(width * height * 4);
  for (let i = 0; i < heat.length; i++) {
    const value = limit ? Math.max(-1, Math.min(1, smooth[i] / limit)) : 0, opacity = 0.9 * Math.abs(value);
    const place = (value + 1) * 5, low = Math.min(9, Math.floor(place)), share = place - low;
    const [r, g, b] = picture.data.subarray(3 * i, 3 * i + 3), grey = 0.299 * r + 0.587 * g + 0.114 * b;
    [r, g, b].forEach((own, c) => {
      const below = 0.6 * (0.3 * own + 0.7 * grey) + 0.38 * 255;
      const colour = (1 - share) * COLOURS[low][c] + share * COLOURS[low + 1][c];
      data[4 * i + c] = opacity * colour + (1 - opacity) * below;
    });
    data[4 * i + 3] = 255;
  }
  return { data, limit };
}

// By a Gaussian of one pixel.
function blurred(heat, width, height) {
  const kernel = [-2, -1, 0, 1, 2].map((x) => Math.exp(-x * x / 2)), sum = kernel.reduce((a, b) => a + b);
  const pass = (values, step, length, at) => values.map((_, i) => {
    let total = 0;
    kernel.forEach((weight, k) => {
      const place = Math.min(length - 1, Math.max(0, at(i) + k - 2));
      total += weight / sum * values[i + (place - at(i)) * step];
    });
    return total;
  });
  return pass(pass(heat, 1, width, (i) => i % width), width, height, (i) => Math.floor(i / width));
}
