// Loads everything that the page will ever need, then cuts the page off: after that no request leaves it.

import * as ort from "./vendor/ort.wasm.min.mjs";
import loadFvad from "./vendor/fvad.js";
import { embed, openModel } from "./hear.js";
import { Microphone } from "./microphone.js";
import { readCalibration } from "./score.js";

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is missing (${response.status}). README.md describes how to make it.`);
  return response;
}

/** {model, microphone, ms}: ms is how long 3 s of speech take here. */
export async function load() {
  // One thread: workers would have a policy of their own, and could send what they hear.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("vendor/", import.meta.url).href;
  const calibration = readCalibration(await (await get("model/calibration.json")).json());
  const bytes = new Uint8Array(await (await get(`model/${calibration.model.file}`)).arrayBuffer());
  const fvad = await loadFvad();
  const model = await openModel(ort, fvad, bytes, calibration, { executionProviders: ["wasm"] });
  const microphone = await Microphone.prepare(calibration.model.sample_rate);
  await cutOff();
  return { model, microphone, ms: await time(model) };
}

/** Forbid every further request of this page, its own server included, and see that the browser obeys. */
async function cutOff() {
  const policy = document.createElement("meta");
  policy.httpEquiv = "Content-Security-Policy";
  policy.content = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'";
  document.head.append(policy);
  const got = await fetch("model/calibration.json", { cache: "no-store" }).then(
    () => true,
    () => false,
  );
  if (got) throw new Error("This browser does not keep the page from sending. The microphone stays off.");
}

async function time(model) {
  const seconds = 3;
  const noise = Float32Array.from(
    { length: seconds * model.calibration.model.sample_rate },
    () => 0.1 * (Math.random() - 0.5),
  );
  let best = Infinity;
  for (let i = 0; i < 3; i++) {
    const start = performance.now();
    await embed(model, noise);
    best = Math.min(best, performance.now() - start);
  }
  return best;
}
