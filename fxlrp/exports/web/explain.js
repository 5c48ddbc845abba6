// The page: a dropped photograph is explained here, by the ONNX explainer; nothing is sent anywhere.

import { heatmap, input, overlay, seen, shown } from "./picture.js";

const byId = (id) => document.getElementById(id), status = (text) => { byId("status").textContent = text; };
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL(".", location.href).href;
const about = await (await fetch("about.json")).json();
document.title = byId("title").textContent = `What ${about.title} sees`;
byId("made").textContent = `fxlrp ${about.fxlrp}`;
status("Loading the model …");
const session = await ort.InferenceSession.create("explainer.onnx");
const takesTarget = session.inputNames.includes("target"), inputName = session.inputNames.find((n) => n !== "target");
const name = (number) => about.classes?.[number] ?? `class ${number}`;
let picture = null, busy = false;
status("Drop a photograph here, or choose one.");
byId("file").disabled = false;
byId("file-label").classList.add("ready");

// RGB bytes of an image, a video frame or a canvas.
function bytes(source, width, height) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8ClampedArray(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) for (let c = 0; c < 3; c++) data[j++] = rgba[i + c];
  return { data, width, height };
}

// Explain what the model sees, for a class; -1: the predicted one.
async function explain(target = -1) {
  if (busy || !picture) return null;
  busy = true;
  status("Explaining …");
  await new Promise((done) => setTimeout(done, 20)); // lets the page be drawn
  try {
    const began = performance.now(), shape = [1, about.channels, about.height, about.width];
    const given = { [inputName]: new ort.Tensor("float32", input(picture, about), shape) };
    if (takesTarget) given.target = new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]);
    const found = await session.run(given), heat = heatmap(found.relevance.data, about);
    show(found, heat, performance.now() - began);
    window.explanation = { relevance: found.relevance.data, heat, output: found.output?.data };
    return window.explanation;
  } catch (error) {
    status(`This did not work: ${error.message}`);
    throw error;
  } finally {
    busy = false;
  }
}

function show(found, heat, milliseconds) {
  const { data, limit } = overlay(picture, shown(heat, about)), canvas = byId("map"), photo = byId("photo");
  for (const each of [canvas, photo]) [each.width, each.height] = [picture.width, picture.height];
  canvas.getContext("2d").putImageData(new ImageData(data, picture.width), 0, 0);
  const plain = new Uint8ClampedArray(picture.width * picture.height * 4).fill(255);
  for (let i = 0; i < plain.length / 4; i++) plain.set(picture.data.subarray(3 * i, 3 * i + 3), 4 * i);
  photo.getContext("2d").putImageData(new ImageData(plain, picture.width), 0, 0);
  const explained = Number(found.explained_class?.data[0] ?? -1), output = Array.from(found.output?.data ?? []);
  const top = Math.max(...output), sum = output.reduce((total, value) => total + Math.exp(value - top), 0);
  const ranked = output.map((value, number) => [Math.exp(value - top) / sum, number]).sort((a, b) => b[0] - a[0]);
  byId("classes").replaceChildren(...ranked.slice(0, 5).map(([probability, number]) => {
    const button = document.createElement("button");
    button.textContent = `${(100 * probability).toFixed(1)} %  ${name(number)}`;
    button.setAttribute("aria-pressed", String(number === explained));
    button.addEventListener("click", () => explain(number));
    return button;
  }));
  const start = found.start?.data[0], total = heat.reduce((a, b) => a + b, 0);
  byId("facts").textContent = `${total.toPrecision(4)} of ${start?.toPrecision(4)} arrived at the picture; ` +
    `colours end at ${limit.toPrecision(2)} a pixel.`;
  canvas.setAttribute("aria-label", `Evidence for ${name(explained)}: red for it, blue against it`);
  byId("result").hidden = false;
  status(`Why ${name(explained)}: explained here in ${(milliseconds / 1000).toFixed(1)} s.`);
}

async function take(blob) {
  let image;
  try {
    image = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    status("This is no picture that the browser can read.");
    return null;
  }
  picture = seen(bytes(image, image.width, image.height), about);
  return explain();
}

byId("file").addEventListener("change", (event) => event.target.files[0] && take(event.target.files[0]));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
byId("mix").addEventListener("input", (event) => { byId("map").style.opacity = event.target.value / 100; });

// The camera, if the browser has one and the visitor allows it: a press takes one picture.
if (navigator.mediaDevices?.getUserMedia) {
  byId("camera").hidden = false;
  byId("camera").addEventListener("click", async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
      const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true });
      await video.play();
      picture = seen(bytes(video, video.videoWidth, video.videoHeight), about);
      await explain();
    } catch (error) {
      status(`The camera gives no picture: ${error.message}`);
    } finally {
      stream?.getTracks().forEach((track) => track.stop());
    }
  });
}
window.take = take;
window.ready = true;
