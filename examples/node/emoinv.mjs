// The page's modules with Node's runtime under them: a model folder of `python -m export browser`, and WAV files.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { openModel } from "../browser/hear.js";
import { readCalibration } from "../browser/score.js";

// $EMOINV_NODE_MODULES names a node_modules elsewhere; otherwise `npm install` has made one here.
const modules = process.env.EMOINV_NODE_MODULES ?? path.join(import.meta.dirname ?? ".", "node_modules");
const ort = createRequire(path.join(path.resolve(modules), "x"))(path.resolve(modules, "onnxruntime-node"));
const { default: loadFvad } = await import(pathToFileURL(path.resolve(modules, "@echogarden/fvad-wasm/fvad.js")).href);

export const readJson = (file) => JSON.parse(fs.readFileSync(file, "utf8"));

/** The model of a folder, checked against its calibration. */
export async function openFolder(folder) {
  const calibration = readCalibration(readJson(path.join(folder, "calibration.json")));
  const bytes = fs.readFileSync(path.join(folder, calibration.model.file));
  const options = { intraOpNumThreads: 1, interOpNumThreads: 1 };
  return openModel(ort, await loadFvad(), bytes, calibration, options);
}

/** The samples of a WAV file of 16-bit PCM, one channel, at the model's rate; anything else is refused. */
export function readWav(file, sampleRate) {
  const content = fs.readFileSync(file);
  let format = null;
  if (content.toString("latin1", 0, 4) !== "RIFF" || content.toString("latin1", 8, 12) !== "WAVE") {
    throw new Error(`${file}: expected a WAV file`);
  }
  for (let at = 12; at + 8 <= content.length;) {
    const [name, size] = [content.toString("latin1", at, at + 4), content.readUInt32LE(at + 4)];
    at += 8;
    if (name === "fmt ") {
      format = [
        content.readUInt16LE(at),
        content.readUInt16LE(at + 2),
        content.readUInt32LE(at + 4),
        content.readUInt16LE(at + 14),
      ];
    }
    if (name === "data") {
      if (String(format) !== String([1, 1, sampleRate, 16])) {
        const got = `format, channels, Hz, bits ${format}`;
        throw new Error(`${file}: expected 16-bit PCM, 1 channel, ${sampleRate} Hz, got ${got}; convert it first`);
      }
      const count = Math.floor(Math.min(size, content.length - at) / 2);
      return Float32Array.from({ length: count }, (_, i) => content.readInt16LE(at + 2 * i) / 32768);
    }
    at += size + (size % 2);
  }
  throw new Error(`${file}: no samples`);
}
