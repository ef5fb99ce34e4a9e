"use strict";

const MOST_PIXELS = 2 * 89_478_485; // as Pillow has it: more in a small file are an attack

const certificate = MANIFEST.certificate;
const model = { classes: certificate.classes, palette: certificate.palette ?? colours(certificate.classes.length) };
const isDetector = certificate.task === "detection";
const element = (id) => document.getElementById(id);
const threshold = element("threshold");

let current; // the picture that is shown: {name, bitmap, found, decoding}

// -- the worker -------------------------------------------------------------------------------------------------------

let ask; // ask(task, values, transferred) resolves to the worker's result

async function startWorker() {
  const total = Object.values(MANIFEST.files).flatMap(({ parts }) => parts);
  const bytes = total.reduce((sum, { size }) => sum + size, 0);
  let loaded = 0;
  const progress = (size) => {
    loaded += size;
    say(`Loading the model: ${Math.round((100 * loaded) / bytes)} % of ${megabytes(bytes)}`);
  };
  const files = {};
  for (const name of Object.keys(MANIFEST.files)) {
    files[name] = await loadFile(name, progress);
  }
  say("Starting the model …");
  const worker = new Worker(URL.createObjectURL(new Blob([files.worker], { type: "text/javascript" })));
  const waiting = new Map();
  worker.onmessage = ({ data: { number, result, fault } }) => {
    const { resolve, reject } = waiting.get(number);
    waiting.delete(number);
    if (fault) {
      reject(new Error(fault));
    } else {
      resolve(result);
    }
  };
  let number = 0;
  ask = (task, values, transferred) =>
    new Promise((resolve, reject) => {
      number += 1;
      waiting.set(number, { resolve, reject });
      worker.onerror = ({ message }) => reject(new Error(message));
      worker.postMessage({ task, number, values }, transferred);
    });
  const { library, wasm, model: content } = files;
  await ask("start", { library, wasm, model: content, certificate }, [library, wasm, content]);
}

const ready = startWorker();
ready.then(
  () => waiting || say("Ready."),
  (error) => fail(`The model cannot be loaded: ${error.message}.`),
);

// -- pictures ---------------------------------------------------------------------------------------------------------

let waiting; // the newest picture that was given, until its turn
let busy = false;

async function show(file) {
  waiting = file;
  if (busy) {
    return;
  }
  busy = true;
  try {
    await ready;
    while (waiting) {
      const next = waiting;
      waiting = undefined;
      await predict(next).catch((error) => fail(`${next.name}: ${error.message}.`));
    }
  } catch {
    // The model cannot be loaded, which has been said.
  } finally {
    busy = false;
  }
}

async function predict(file) {
  say(`Looking at ${file.name} …`);
  const start = performance.now();
  const bitmap = await decode(file);
  const { width, height } = bitmap;
  const data = pixels(bitmap);
  const decoding = performance.now() - start;
  const picture = { data, width, height, channels: 4 };
  const found = await ask("predict", { picture }, [data.buffer]);
  current?.bitmap.close();
  current = { name: file.name, bitmap, found, decoding };
  refresh();
}

// EXIF rotation is applied, and a colour profile is not, as where the model was trained.
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("this browser cannot read it as a picture, as it is damaged or of another kind");
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) {
    throw new Error(`it has ${bitmap.width}×${bitmap.height} pixels, which is too large`);
  }
  return bitmap;
}

function pixels(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

// -- what is shown ----------------------------------------------------------------------------------------------------

function refresh() {
  element("threshold-value").textContent = Number(threshold.value).toFixed(2);
  if (!current) {
    return;
  }
  const found = shown(current.found, Number(threshold.value));
  const start = performance.now();
  draw(element("picture"), current.bitmap, found, model);
  const drawing = performance.now() - start;
  const { note, preparation, inference, finishing } = current.found;
  element("latency").textContent =
    `${milliseconds(current.decoding + preparation)} for reading and resizing, ${milliseconds(inference)} for the ` +
    `network, ${milliseconds(finishing + drawing)} for drawing.`;
  const rows = isDetector
    ? found.detections.map(({ label, score }) => row(label, score.toFixed(2)))
    : shares(found, model.classes.length).map(([label, share]) => row(label, percent(share)));
  element("rows").replaceChildren(...rows);
  const summary = isDetector ? count(rows.length, "detection") : count(rows.length, "class", "classes");
  element("found").textContent = summary;
  element("picture").setAttribute("aria-label", `${current.name} with ${summary}`);
  element("result").hidden = false;
  say(`${current.name}: ${summary}. ${note}`);
}

function row(label, value) {
  const line = document.createElement("tr");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.backgroundColor = css(model.palette[label]);
  const name = document.createElement("td");
  name.append(swatch, model.classes[label]);
  const number = document.createElement("td");
  number.textContent = value;
  line.append(name, number);
  return line;
}

function say(text) {
  element("status").className = "";
  element("status").textContent = text;
}

function fail(text) {
  element("status").className = "fault";
  element("status").textContent = text;
}

// Return colours for classes without a palette, far apart in hue.
function colours(number) {
  return Array.from({ length: number }, (_, i) =>
    [0, 8, 4].map((channel) => {
      const place = (channel + (i * 137.5) / 30) % 12;
      return Math.round(255 * (0.5 - 0.4 * Math.max(-1, Math.min(place - 3, 9 - place, 1))));
    }),
  );
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const brief = (value) => (value && value < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(2))));
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

// -- the model --------------------------------------------------------------------------------------------------------

function introduce() {
  const { classes } = model;
  document.title = `${MANIFEST.name} – mmcare`;
  element("name").textContent = MANIFEST.name;
  const some = classes.length > 12 ? `${classes.slice(0, 12).join(", ")} …` : classes.join(", ");
  const verb = isDetector ? "detects" : "segments pictures into";
  element("purpose").textContent = `This model ${verb} ${count(classes.length, "class", "classes")}: ${some}.`;
  element("runtime").textContent = MANIFEST.runtime;
  element("threshold-label").textContent = isDetector ? "Lowest score" : "Lowest probability";
  element("measure").textContent = isDetector ? "score" : "share";
  threshold.value = isDetector ? 0.3 : 0;
  element("certificate").textContent = JSON.stringify(certificate, null, 2);
  for (const [name, value] of facts()) {
    const term = document.createElement("dt");
    term.textContent = name;
    const description = document.createElement("dd");
    description.textContent = value;
    element("facts").append(term, description);
  }
}

function* facts() {
  const { measured = {}, resizing, input, versions = {} } = certificate;
  const { metric, errors = {}, latency } = measured;
  if (metric) {
    const [file, pytorch] = [metric.file, metric.pytorch].map((value) => value.toFixed(4));
    yield [metric.name, `${file} with the file, ${pytorch} with PyTorch, on ${metric.images} images`];
  }
  for (const [output, { largest, tolerance }] of Object.entries(errors)) {
    yield [`error of ${output}`, `at most ${brief(largest)} from PyTorch's, of ${brief(tolerance)} allowed`];
  }
  if (latency) {
    const size = latency.shape.slice(2).reverse().join("×");
    const own = milliseconds(latency.file_ms);
    yield ["latency", `${own} for ${size} pixels where it was exported, not in a browser; PyTorch's plain form ` +
      `${milliseconds(latency.pytorch_ms)}`];
  }
  const [, , height, width] = input.shape;
  yield ["input", width && height ? `${width}×${height} pixels` : "pictures of any size from 32×32"];
  if (resizing.scale) {
    yield ["pictures are resized", `${resizing.keep_ratio ? "to fit into" : "to"} ${resizing.scale.join("×")}`];
  }
  yield* Object.entries(versions);
}

// -- files ------------------------------------------------------------------------------------------------------------

async function saveJson() {
  const { name, bitmap, found } = current;
  const description = describe(shown(found, Number(threshold.value)), bitmap, model);
  const { certificate_sha256: sha256 = null } = certificate;
  const content = { picture: name, model: MANIFEST.name, certificate_sha256: sha256, ...description };
  save(new Blob([JSON.stringify(content)], { type: "application/json" }), "json");
}

function savePicture() {
  element("picture").toBlob((blob) => save(blob, "png"));
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${current.name.replace(/\.[^.]*$/, "")}_${MANIFEST.name}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// -- events -----------------------------------------------------------------------------------------------------------

function take(files) {
  if (files.length) {
    show(files[0]);
  }
}

element("file").addEventListener("change", ({ target }) => {
  take([...target.files]);
  target.value = ""; // so that the same picture can be chosen again
});
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragged");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragged"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragged");
  take(event.dataTransfer.files);
});
threshold.addEventListener("input", refresh);
element("save-json").addEventListener("click", saveJson);
element("save-picture").addEventListener("click", savePicture);

introduce();
refresh();
