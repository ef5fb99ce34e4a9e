"use strict";

// What the network found, on a canvas and as JSON. `found` has `detections` or a `labelMap`, as the worker returns them,
// and `shown` says which of it has at least the score of the threshold.

const OPACITY = 0.5; // of masks and label maps
const SMALLEST_DRAWING = 800; // pixels of the longer side: small pictures are enlarged, so that names can be read

function shown(found, threshold) {
  return { ...found, threshold, detections: found.detections?.filter(({ score }) => score >= threshold) };
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function draw(canvas, bitmap, found, { classes, palette }) {
  const { width, height } = bitmap;
  const longest = Math.max(width, height);
  const zoom = Math.max(Math.round(SMALLEST_DRAWING / longest), 1);
  canvas.width = zoom * width;
  canvas.height = zoom * height;
  const context = canvas.getContext("2d");
  context.scale(zoom, zoom); // from here on, in pixels of the picture
  context.drawImage(bitmap, 0, 0);
  if (found.labelMap) {
    overlay(context, { x: 0, y: 0, width, height }, (place) => palette[labelAt(found, place)]);
    return;
  }
  for (const { label, mask } of found.detections) {
    if (mask?.data.length) {
      overlay(context, mask, (place) => (mask.data[place] ? palette[label] : undefined));
    }
  }
  const unit = longest / 800;
  context.lineWidth = 2.5 * unit;
  const size = 15 * unit;
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "top";
  // The highest score comes first, and is drawn last.
  for (const { label, score, box } of [...found.detections].reverse()) {
    const [x1, y1, x2, y2] = box;
    context.strokeStyle = css(palette[label]);
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const text = `${classes[label]} ${score.toFixed(2)}`;
    const textWidth = context.measureText(text).width + size / 2;
    const left = Math.max(Math.min(x1, width - textWidth), 0);
    const top = y1 >= 1.3 * size ? y1 - 1.3 * size : y1;
    context.fillStyle = css(palette[label]);
    context.fillRect(left, top, textWidth, 1.3 * size);
    context.fillStyle = readableOn(palette[label]);
    context.fillText(text, left + size / 4, top + size / 5);
  }
}

// Colour the pixels of a part of the picture; colourAt returns a colour for a place in it, or none.
function overlay(context, { x, y, width, height }, colourAt) {
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place += 1) {
    const colour = colourAt(place);
    if (colour) {
      image.data.set(colour, 4 * place);
      image.data[4 * place + 3] = 255 * OPACITY;
    }
  }
  const layer = document.createElement("canvas"); // putImageData itself would replace what is below
  layer.width = width;
  layer.height = height;
  layer.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(layer, x, y);
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function readableOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "black" : "white";
}

// -- label maps -------------------------------------------------------------------------------------------------------

// Return the label of a pixel, or -1 if its score is below the threshold.
function labelAt({ labelMap, threshold }, place) {
  return labelMap.scores[place] < threshold ? -1 : labelMap.labels[place];
}

// Return [label, share of the picture] of each class that is shown, the largest share first.
function shares(found, classes) {
  const counts = new Uint32Array(classes);
  const pixels = found.labelMap.labels.length;
  for (let place = 0; place < pixels; place += 1) {
    counts[labelAt(found, place)] += 1; // of -1, nothing is counted
  }
  const all = Array.from(counts, (number, label) => [label, number / pixels]);
  return all.filter(([, share]) => share > 0).sort((one, other) => other[1] - one[1]);
}

// -- JSON -------------------------------------------------------------------------------------------------------------

// Return what is shown as an object. Masks are COCO's run lengths without compression, which pycocotools reads with
// frPyObjects.
function describe(found, { width, height }, { classes }) {
  const content = { width, height, threshold: found.threshold };
  if (found.labelMap) {
    content.regions = shares(found, classes.length).map(([label]) => {
      const isInside = (x, y) => labelAt(found, y * width + x) === label;
      return { label, name: classes[label], mask: runLengths(isInside, width, height) };
    });
  } else {
    content.detections = found.detections.map(({ label, score, box, mask }) => ({
      label,
      name: classes[label],
      score,
      box,
      ...(mask && { mask: runLengths((x, y) => isInMask(mask, x, y), width, height) }),
    }));
  }
  return content;
}

function isInMask({ x: left, y: top, width, height, data }, x, y) {
  const [column, row] = [x - left, y - top];
  return column >= 0 && row >= 0 && column < width && row < height && data[row * width + column] === 1;
}

// Return the lengths of the runs of pixels that are outside and inside in turn, column by column.
function runLengths(isInside, width, height) {
  const counts = [0];
  let inside = false;
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      if (isInside(x, y) !== inside) {
        inside = !inside;
        counts.push(0);
      }
      counts[counts.length - 1] += 1;
    }
  }
  return { size: [height, width], counts };
}
