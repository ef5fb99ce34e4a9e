"use strict";

// The files that the page needs besides its scripts: the model, the runtime and the worker. A page that is opened from a
// disk may load scripts and nothing else, so the files are scripts: parts of their gzip stream in base64, each of which
// calls receive().

const received = [];

// eslint-disable-next-line no-unused-vars
function receive(text) {
  received.push(decodeBase64(text));
}

function decodeBase64(text) {
  if (Uint8Array.fromBase64) {
    return Uint8Array.fromBase64(text);
  }
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i += 1) {
    bytes[i] = characters.charCodeAt(i);
  }
  return bytes;
}

// Return the content of a file as an ArrayBuffer. The parts are loaded one after the other; progress is called after
// each with its number of bytes on the disk.
async function loadFile(name, progress) {
  const file = MANIFEST.files[name];
  const parts = [];
  for (const part of file.parts) {
    await loadScript(part.path);
    parts.push(received.pop());
    progress(part.size);
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  if (content.byteLength !== file.size) {
    throw new Error(`${name} has ${content.byteLength} bytes instead of ${file.size}`);
  }
  return content;
}

function loadScript(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => {
      script.remove();
      if (received.length === 1) {
        resolve();
      } else {
        reject(new Error(`${path} is damaged`));
      }
    };
    script.onerror = () => reject(new Error(`${path} cannot be loaded`));
    document.head.append(script);
  });
}
