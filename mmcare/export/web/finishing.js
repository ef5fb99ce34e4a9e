"use strict";

// From the outputs of the network, which are in pixels of its image, to what is in the picture. `size` is that of the
// outputs' maps, which may have a padding to the right of the image and below it.

// Return the detections, the highest score first: {label, score, box} and, with masks, a mask {x, y, width, height,
// data}, which has 1 where the object is in this part of the picture.
function detections({ dets, labels, mask_probs: masks }, image, picture, size, least) {
  const [scaleX, scaleY] = [image.width / picture.width, image.height / picture.height];
  const isPadded = size.width > image.width || size.height > image.height;
  const found = [];
  labels.data.forEach((label, i) => {
    if (label < 0) {
      return; // fewer detections than places
    }
    const [left, top, right, bottom, score] = dets.data.subarray(5 * i, 5 * i + 5);
    const [x1, x2] = [clip(left, image.width), clip(right, image.width)];
    const [y1, y2] = [clip(top, image.height), clip(bottom, image.height)];
    if (isPadded && (x1 === x2 || y1 === y2)) {
      return; // outside of the picture
    }
    const box = [x1 / scaleX, y1 / scaleY, x2 / scaleX, y2 / scaleY];
    const detection = { label: Number(label), score, box };
    if (masks) {
      const cells = masks.dims.at(-1);
      const cut = masks.data.subarray(i * cells * cells, (i + 1) * cells * cells);
      const whole = [left / scaleX, top / scaleY, right / scaleX, bottom / scaleY];
      detection.mask = drawMask(cut, cells, whole, picture, least);
    }
    found.push(detection);
  });
  return found;
}

const clip = (value, most) => Math.min(Math.max(value, 0), most);

// Return the part of a picture with the mask of a box: bilinear interpolation of the probabilities of its cells, and then
// at least `least`.
function drawMask(probabilities, cells, [x1, y1, x2, y2], picture, least) {
  const columns = cellWeights(x1, x2, picture.width, cells);
  const rows = cellWeights(y1, y2, picture.height, cells);
  const [width, height] = [columns.first.length, rows.first.length];
  const data = new Uint8Array(width * height);
  for (let row = 0, to = 0; row < height; row += 1) {
    const above = rows.first[row] * cells;
    const below = rows.second[row] * cells;
    for (let column = 0; column < width; column += 1, to += 1) {
      const [left, right] = [columns.first[column], columns.second[column]];
      const [before, after] = [columns.before[column], columns.after[column]];
      const upper = probabilities[above + left] * before + probabilities[above + right] * after;
      const lower = probabilities[below + left] * before + probabilities[below + right] * after;
      data[to] = upper * rows.before[row] + lower * rows.after[row] >= least ? 1 : 0;
    }
  }
  return { x: columns.start, y: rows.start, width, height, data };
}

// Return the pixels that cells between two places reach, from `start` on, and for each the two cells between whose
// centres it lies, with their weights; beyond the first and the last centre, weights fall to 0 within a cell.
function cellWeights(begin, end, pixels, cells) {
  const extent = Math.max(end - begin, 1e-6);
  const margin = extent / cells / 2;
  const start = clip(Math.floor(begin - margin), pixels);
  const length = clip(Math.ceil(end + margin), pixels) - start;
  const first = new Int32Array(length);
  const second = new Int32Array(length);
  const before = new Float32Array(length);
  const after = new Float32Array(length);
  for (let i = 0; i < length; i += 1) {
    const position = ((start + i + 0.5 - begin) / extent) * cells - 0.5;
    const cell = Math.floor(position);
    first[i] = clip(cell, cells - 1);
    second[i] = clip(cell + 1, cells - 1);
    before[i] = cell >= 0 && cell < cells ? 1 - (position - cell) : 0;
    after[i] = cell >= -1 && cell < cells - 1 ? position - cell : 0;
  }
  return { start, first, second, before, after };
}

// Return the label of each pixel of the picture and its probability: {labels, scores}.
//
// The model resizes its logits and takes the highest. The network returns the highest class only, with its probability
// p: log(p / (1 - p)) is the distance of its logit from the others', which is resized for each class.
function resizeLabels({ output, scores }, stride, image, picture) {
  const margins = scores.data.map((score) => {
    const probability = Math.min(Math.max(score, 0.5), 1 - 1e-7);
    return Math.log(probability / (1 - probability)) + 1e-3; // more than nothing where no class has a half
  });
  const labels = Int32Array.from(output.data, Number);
  const columns = neighbours(picture.width, image.width);
  const rows = neighbours(picture.height, image.height);
  const map = {
    labels: new Uint16Array(picture.width * picture.height),
    scores: new Float32Array(picture.width * picture.height),
  };
  const places = new Int32Array(4);
  const weights = new Float32Array(4);
  for (let y = 0, to = 0; y < picture.height; y += 1) {
    for (let x = 0; x < picture.width; x += 1, to += 1) {
      const [across, down] = [columns.weight[x], rows.weight[y]];
      places[0] = rows.first[y] * stride + columns.first[x];
      places[1] = rows.first[y] * stride + columns.second[x];
      places[2] = rows.second[y] * stride + columns.first[x];
      places[3] = rows.second[y] * stride + columns.second[x];
      weights[0] = (1 - across) * (1 - down);
      weights[1] = across * (1 - down);
      weights[2] = (1 - across) * down;
      weights[3] = across * down;
      let best = 0;
      let highest = -Infinity;
      for (let i = 0; i < 4; i += 1) {
        const label = labels[places[i]];
        let value = 0;
        for (let j = 0; j < 4; j += 1) {
          value += weights[j] * (labels[places[j]] === label ? margins[places[j]] : -margins[places[j]]);
        }
        if (value > highest || (value === highest && label < labels[places[best]])) {
          best = i;
          highest = value;
        }
      }
      map.labels[to] = labels[places[best]];
      map.scores[to] = scores.data[places[best]];
    }
  }
  return map;
}

// Return, for each of `length` pixels, the two of `source` pixels between which it lies, and the weight of the second.
function neighbours(length, source) {
  const first = new Int32Array(length);
  const second = new Int32Array(length);
  const weight = new Float32Array(length);
  for (let i = 0; i < length; i += 1) {
    const position = clip(((i + 0.5) * source) / length - 0.5, source - 1);
    first[i] = Math.floor(position);
    second[i] = Math.min(first[i] + 1, source - 1);
    weight[i] = position - first[i];
  }
  return { first, second, weight };
}
