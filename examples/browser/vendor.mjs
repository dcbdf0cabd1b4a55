// Copies what the page loads out of node_modules into vendor/: nothing comes from elsewhere later.

import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = path.resolve(process.argv[2] ?? path.join(here, "node_modules"));
const vendor = path.resolve(process.argv[3] ?? path.join(here, "vendor"));
const files = {
  "ort.wasm.min.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
  "ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
  "ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
  "fvad.js": "@echogarden/fvad-wasm/fvad.js",
  "fvad.wasm": "@echogarden/fvad-wasm/fvad.wasm",
  "fvad.LICENSE": "@echogarden/fvad-wasm/LICENSE",
};

fs.mkdirSync(vendor, { recursive: true });
const { dependencies } = JSON.parse(fs.readFileSync(path.join(here, "package.json"), "utf8"));
for (const [name, version] of Object.entries(dependencies)) {
  const found = JSON.parse(fs.readFileSync(path.join(modules, name, "package.json"), "utf8")).version;
  if (found !== version) throw new Error(`${name}: expected ${version}, got ${found}; run npm install again`);
}
for (const [name, source] of Object.entries(files))
  fs.copyFileSync(path.join(modules, source), path.join(vendor, name));
console.log(`wrote ${Object.keys(files).length} files to ${vendor}`);
