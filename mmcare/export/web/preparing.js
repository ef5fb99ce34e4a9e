"use strict";

// From a picture to the input of the network, as the test pipeline makes it: the same sizes, and the same pixels. A
// picture is {data, width, height, channels}, 8 bits, row by row; of four channels, the last one is left out.

const COEFFICIENT_BITS = 11; // OpenCV's fixed point numbers

// Return the size {width, height} after each step of the pipeline: MMCV's Resize, then MMSegmentation's ResizeToMultiple.
function pipelineSizes({ width, height }, { scale, keep_ratio: keepRatio, multiple }) {
  const sizes = [{ width, height }];
  if (scale && keepRatio) {
    const [long, short] = [Math.max(...scale), Math.min(...scale)];
    const factor = Math.min(long / Math.max(width, height), short / Math.min(width, height));
    sizes.push({ width: Math.trunc(width * factor + 0.5), height: Math.trunc(height * factor + 0.5) });
  } else if (scale) {
    sizes.push({ width: scale[0], height: scale[1] });
  }
  if (multiple) {
    const enlarge = (side) => Math.ceil(side / multiple) * multiple;
    const last = sizes.at(-1);
    sizes.push({ width: enlarge(last.width), height: enlarge(last.height) });
  }
  return sizes;
}

// Return the largest size in which a picture fits into another size.
function fittingSize({ width, height }, room) {
  const factor = Math.min(room.width / width, room.height / height);
  const scaled = (side) => Math.max(Math.trunc(side * factor + 0.5), 1);
  return { width: scaled(width), height: scaled(height) };
}

// Resize a picture as OpenCV does with INTER_LINEAR, pixel by pixel the same; the result has three channels.
function resize(picture, width, height) {
  const columns = taps(width, picture.width);
  // Beyond the first and the last column, OpenCV takes the column alone; beyond the rows, the row twice.
  columns.first.forEach((number, i) => {
    if (number < 0 || number >= picture.width - 1) {
      columns.first[i] = number < 0 ? 0 : picture.width - 1;
      columns.near[i] = 1 << COEFFICIENT_BITS;
      columns.far[i] = 0;
    }
  });
  const rows = taps(height, picture.height);
  const data = new Uint8Array(3 * width * height);
  const buffers = [new Int32Array(3 * width), new Int32Array(3 * width)];
  const held = [-1, -1]; // the rows that are in the buffers
  const row = (number) => {
    const clipped = Math.min(Math.max(number, 0), picture.height - 1);
    const place = clipped % 2; // two neighbours have different places
    if (held[place] !== clipped) {
      resizeRow(picture, clipped, columns, buffers[place]);
      held[place] = clipped;
    }
    return buffers[place];
  };
  for (let y = 0; y < height; y += 1) {
    const above = row(rows.first[y]);
    const below = row(rows.first[y] + 1);
    const near = rows.near[y];
    const far = rows.far[y];
    const start = 3 * width * y;
    for (let i = 0; i < 3 * width; i += 1) {
      data[start + i] = (((near * (above[i] >> 4)) >> 16) + ((far * (below[i] >> 4)) >> 16) + 2) >> 2;
    }
  }
  return { data, width, height, channels: 3 };
}

// Return, for each pixel of the result, the number of the first of two neighbours and the weights of both.
function taps(length, source) {
  const scale = 1 / (length / source);
  const first = new Int32Array(length);
  const near = new Int32Array(length);
  const far = new Int32Array(length);
  for (let i = 0; i < length; i += 1) {
    const position = Math.fround((i + 0.5) * scale - 0.5);
    first[i] = Math.floor(position);
    const weight = Math.fround(position - first[i]);
    near[i] = roundHalfToEven(Math.fround(1 - weight) * (1 << COEFFICIENT_BITS));
    far[i] = roundHalfToEven(weight * (1 << COEFFICIENT_BITS));
  }
  return { first, near, far };
}

function roundHalfToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

function resizeRow({ data, width, channels }, y, { first, near, far }, out) {
  const start = y * width * channels;
  for (let x = 0; x < first.length; x += 1) {
    const left = start + first[x] * channels;
    const right = far[x] ? left + channels : left;
    for (let c = 0; c < 3; c += 1) {
      out[3 * x + c] = data[left + c] * near[x] + data[right + c] * far[x];
    }
  }
}

// Return a picture as (3, height, width), float32, of a size; beyond its right and its lower edge is the colour `padding`.
function toTensor({ data, width, height, channels }, size, padding) {
  const area = size.width * size.height;
  const tensor = new Float32Array(3 * area);
  for (let c = 0; c < 3; c += 1) {
    const plane = tensor.subarray(c * area, (c + 1) * area);
    if (size.width !== width || size.height !== height) {
      plane.fill(padding[c]);
    }
    for (let y = 0; y < height; y += 1) {
      for (let x = 0, from = y * width * channels + c; x < width; x += 1, from += channels) {
        plane[y * size.width + x] = data[from];
      }
    }
  }
  return tensor;
}
