#!/usr/bin/env node
// node vectors.mjs MODEL_DIR: whether this machine's port gives what the test vectors of the folder say.

import path from "node:path";
import { Enroller } from "../browser/enrol.js";
import { hear } from "../browser/hear.js";
import { evidence, llrOf, readProfile, thresholdOf } from "../browser/score.js";
import { SpeechSegmenter, WebRtcDetector } from "../browser/speech.js";
import { openFolder, readJson, readWav } from "./emoinv.mjs";

const folder = process.argv[2];
const model = await openFolder(folder);
const { calibration } = model;
const rate = calibration.model.sample_rate;
const expected = readJson(path.join(folder, "vectors", "vectors.json"));
const profile = readProfile(expected.profile, calibration);
let wrong = 0;

function check(what, holds, got) {
  if (!holds) wrong += 1;
  console.log(`${holds ? "pass" : "FAIL"}  ${what}${got === undefined ? "" : `: ${got}`}`);
}

/** The segments of a recording, given in chunks of some length. */
function segments(waveform, length) {
  const segmenter = new SpeechSegmenter(new WebRtcDetector(model.fvad, rate));
  const found = [];
  for (let at = 0; at < waveform.length; at += length) {
    found.push(...segmenter.process(waveform.subarray(at, at + length)));
  }
  return JSON.stringify([...found, ...segmenter.flush()].map(({ start, end }) => [start, end]));
}

for (const [far, threshold] of Object.entries(expected.thresholds)) {
  check(`threshold for ${far}`, Math.abs(thresholdOf(calibration, Number(far)) - threshold) < 1e-9);
}
const enroller = new Enroller(model);
for (let i = 1; i <= expected.profile.exemplars.length; i++) {
  const { accepted, message } = await enroller.add(readWav(path.join(folder, "vectors", `enrol-${i}.wav`), rate));
  check(`enrol-${i}.wav`, accepted, message);
}
const enrolled = readProfile(enroller.profile("ana"), calibration);
const alike = enrolled.centroid.reduce((sum, x, i) => sum + x * profile.centroid[i], 0);
check("profile", alike > 0.995 && Math.abs(enrolled.seconds - profile.seconds) < 0.05, `cosine ${alike.toFixed(6)}`);
for (const item of expected.items) {
  const waveform = readWav(path.join(folder, "vectors", item.file), rate);
  for (const length of [waveform.length, 1, 479, 480, 4097]) {
    const found = segments(waveform, length);
    check(`${item.file}: segments, chunks of ${length}`, found === JSON.stringify(item.segments), found);
  }
  const heard = await hear(model, waveform);
  check(`${item.file}: refusal`, (heard.refusal?.code ?? undefined) === item.refusal, heard.refusal?.code ?? "none");
  if (item.speech_s !== undefined) {
    const { seconds, snrDb, levelDbfs, clippedFraction } = heard.quality;
    const db = [snrDb - item.snr_db, levelDbfs - item.level_dbfs];
    const others = [seconds - item.speech_s, clippedFraction - item.clipped_fraction];
    check(`${item.file}: quality`, db.every((x) => Math.abs(x) < 0.1) && others.every((x) => Math.abs(x) < 0.01));
  }
  if (item.llr === undefined) continue;
  const cosine = heard.embedding.vector.reduce((sum, x, i) => sum + x * item.embedding[i], 0);
  check(`${item.file}: embedding`, cosine > 0.995, `cosine ${cosine.toFixed(6)}`);
  const found = evidence(calibration, profile, { vector: item.embedding, norm: item.norm }, item.speech_s);
  const near = ([name, value]) => Math.abs(found[name] - value) < 1e-4;
  check(`${item.file}: evidence`, Object.entries(item.evidence).every(near));
  const llr = llrOf(calibration, profile, heard.embedding, heard.quality.seconds);
  const off = Math.abs(llr - item.llr);
  check(`${item.file}: LLR`, off <= expected.tolerance_llr, `${llr.toFixed(4)}, expected ${item.llr.toFixed(4)}`);
}
process.exitCode = wrong ? 1 : 0;
