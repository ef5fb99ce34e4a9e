"use strict";

// The network, in a thread of its own, so that the page stays usable while it computes. It runs after
// preparing.js and finishing.js, in one file with them.

const SMALLEST_SIDE = 32; // of the images that a backbone takes

let ort;
let session;
let certificate;

const TASKS = { start, predict };

self.onmessage = async ({ data: { task, number, values } }) => {
  try {
    self.postMessage({ number, result: await TASKS[task](values) });
  } catch (error) {
    self.postMessage({ number, fault: error.message ?? String(error) });
  }
};

async function start({ library, wasm, model, ...given }) {
  certificate = given.certificate;
  const address = URL.createObjectURL(new Blob([library], { type: "text/javascript" }));
  ort = await import(address);
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // more need headers that only a server can send
  session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
}

// Return what the network finds in a picture, in pixels of the picture, and the milliseconds that each step took.
async function predict({ picture }) {
  const times = [performance.now()];
  const { image, size, note } = prepare(picture);
  const values = toTensor(image, size, certificate.normalization.mean);
  const tensor = new ort.Tensor("float32", values, [1, 3, size.height, size.width]);
  times.push(performance.now());
  const outputs = await session.run({ [certificate.input.name]: tensor });
  times.push(performance.now());
  const found = outputs.dets
    ? { detections: detections(outputs, image, picture, size, certificate.thresholds.rcnn?.mask_thr_binary) }
    : { labelMap: resizeLabels(outputs, size.width, image, picture) };
  for (const output of Object.values(outputs)) {
    output.dispose();
  }
  times.push(performance.now());
  const [preparation, inference, finishing] = [0, 1, 2].map((i) => times[i + 1] - times[i]);
  return { ...found, note, preparation, inference, finishing };
}

// Return a picture as the pipeline resizes it, the size of the network's input, and a note if they do not fit together.
function prepare(picture) {
  const [, , height, width] = certificate.input.shape;
  let sizes = pipelineSizes(picture, certificate.resizing);
  const last = sizes.at(-1);
  const size = { width: width ?? last.width, height: height ?? last.height };
  let note = "";
  if (last.width > size.width || last.height > size.height) {
    note = `The picture was made smaller than the model was tested with, as this file takes ${show(size)} pixels.`;
    sizes = [fittingSize(picture, size)];
  }
  let image = picture;
  for (const step of sizes) {
    if (Math.min(step.width, step.height) < 1) {
      throw new Error(`it is too narrow to be resized, with ${show(picture)} pixels`);
    }
    image = resize(image, step.width, step.height);
  }
  const divisor = certificate.config.data_preprocessor?.pad_size_divisor ?? 1;
  const padded = (side) => Math.ceil(side / divisor) * divisor;
  if (Math.min(padded(size.width), padded(size.height)) < SMALLEST_SIDE) {
    throw new Error(
      `it is too small: its ${show(picture)} pixels become ${show(size)}, and the model takes sides of at least ` +
        `${SMALLEST_SIDE}`,
    );
  }
  return { image, size, note };
}

const show = ({ width, height }) => `${width}×${height}`;
