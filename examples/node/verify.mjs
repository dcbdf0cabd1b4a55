#!/usr/bin/env node
// node verify.mjs MODEL_DIR PROFILE.json RECORDING.wav [FAR]
// Prints the decision as JSON; exit status 0 on an accept alone, 1 on a reject, 2 where nothing can be decided.

import { hear } from "../browser/hear.js";
import { decide, readProfile } from "../browser/score.js";
import { openFolder, readJson, readWav } from "./emoinv.mjs";

const STATUS = { ACCEPT: 0, REJECT: 1, NO_DECISION: 2 };

async function main([folder, profileFile, recording, far = "0.01"]) {
  if (!recording) throw new Error("expected MODEL_DIR PROFILE.json RECORDING.wav [FAR]");
  const model = await openFolder(folder);
  const profile = readProfile(readJson(profileFile), model.calibration);
  const heard = await hear(model, readWav(recording, model.calibration.model.sample_rate));
  const decision = decide(model.calibration, [profile], heard, Number(far));
  console.log(JSON.stringify(decision));
  return STATUS[decision.verdict];
}

main(process.argv.slice(2)).then(
  (status) => (process.exitCode = status),
  (error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 3;
  },
);
