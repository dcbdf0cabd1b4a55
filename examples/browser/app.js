// The page: enrols by microphone, verifies, shows level and score. All that judges lies in the modules beside.

import { Enroller } from "./enrol.js";
import { hear } from "./hear.js";
import { load } from "./load.js";
import { decide, readProfile, thresholdOf } from "./score.js";
import { UtteranceCutter } from "./speech.js";
import { openStore } from "./store.js";

const PROVISIONAL_S = 6; // of the latest speech
const GAUGE = [-10, 10]; // LLRs at its ends
const element = (id) => document.getElementById(id);
const say = (id, text) => (element(id).textContent = text);

let model, microphone, store;
let profiles = []; // as scoring takes them
let session = null; // what the microphone is on for
let work = Promise.resolve(); // utterances are judged one after the other

/** Say what went wrong, in the section where it was asked for. */
function problem(error) {
  say("problem", error ? error.message : "");
}

/** Open the microphone for {utterance, chunk?, end}, or close it. */
async function listen(next) {
  if (session) await stop();
  problem(null);
  session = { ...next, cutter: new UtteranceCutter(model.fvad, model.calibration.model.sample_rate) };
  try {
    await microphone.start(take, (reason) => stop().then(() => problem(new Error(reason))));
    say("state", "The microphone is on.");
    next.begin();
  } catch (error) {
    await stop();
    problem(error);
  }
  controls();
}

async function stop() {
  const ended = session;
  session = null;
  if (!ended) return;
  await microphone.stop();
  element("meter").value = -60;
  say("state", "The microphone is off.");
  for (const waveform of ended.cutter.flush()) queue(ended, waveform);
  await work;
  ended.end();
  controls();
}

function queue(to, waveform) {
  work = work.then(() => to.utterance(waveform)).catch(problem);
}

function take(chunk) {
  if (!session || chunk.length === 0) return;
  const power = chunk.reduce((sum, x) => sum + x * x, 0) / chunk.length;
  element("meter").value = Math.max(-60, 10 * Math.log10(power + 1e-12));
  for (const waveform of session.cutter.process(chunk)) queue(session, waveform);
  say("state", session.cutter.inSpeech ? "Speech." : "The microphone is on. Waiting for speech.");
  session.chunk?.();
}

// ---- enrolment

async function enrol(event) {
  event.preventDefault();
  if (session) return stop();
  const name = element("name").value.trim();
  if (profiles.some((profile) => profile.name === name)) {
    return problem(new Error(`${name} is enrolled already. Remove the profile first, or choose another name.`));
  }
  const enroller = new Enroller(model);
  await listen({
    enroller,
    name,
    begin: () => say("prompt", enroller.prompt),
    utterance: async (waveform) => {
      const { message } = await enroller.add(waveform);
      element("progress").value = enroller.progress;
      element("enrol-save").disabled = !enroller.ready;
      say("prompt", `${message} ${enroller.progress >= 1 ? "That is enough. Save the profile." : enroller.prompt}`);
    },
    end: () => {
      element("progress").value = 0;
      element("enrol-save").disabled = true;
      say("prompt", "");
    },
  });
}

async function save() {
  const { enroller, name } = session ?? {};
  if (!enroller) return;
  await stop();
  try {
    await keep(enroller.profile(name));
    say("prompt", `${name} is enrolled.`);
    element("name").value = "";
  } catch (error) {
    problem(error);
  }
}

// ---- verification

async function verify() {
  if (session) return stop();
  const far = Number(element("far").value);
  let threshold;
  try {
    threshold = thresholdOf(model.calibration, far, profiles.length);
  } catch (error) {
    return problem(error);
  }
  const against = profiles;
  let busyUntil = 0;
  let judging = false;
  const provisional = {
    utterance: async (waveform) => {
      const start = performance.now();
      try {
        const decision = await judge(waveform);
        if (decision.llr === null) return;
        show(decision.llr, threshold);
        say("so-far", `So far: ${decision.name}, LLR ${decision.llr.toFixed(1)}.`);
      } finally {
        busyUntil = performance.now() + Math.max(500, 3 * (performance.now() - start));
        judging = false;
      }
    },
  };
  const judge = async (waveform) => decide(model.calibration, against, await hear(model, waveform), far);
  await listen({
    begin: () => {
      show(null, threshold);
      verdict("", "Say something.");
    },
    // A slow device gets fewer provisional scores: they take a quarter of its time at most.
    chunk: () => {
      const { cutter } = session;
      if (judging || !cutter.inSpeech || performance.now() < busyUntil) return;
      judging = true;
      const waveform = cutter.latest(PROVISIONAL_S);
      queue(provisional, waveform);
    },
    utterance: async (waveform) => {
      const decision = await judge(waveform);
      say("so-far", "");
      show(decision.llr, threshold);
      const who = { ACCEPT: `Accepted: ${decision.name}.`, REJECT: "Rejected.", NO_DECISION: "No decision." };
      verdict(decision.verdict, `${who[decision.verdict]} ${decision.reason}`);
    },
    end: () => say("so-far", ""),
  });
}

function verdict(kind, text) {
  element("verdict").className = kind;
  say("verdict", text);
}

/** The threshold that would hold now, before anything is heard. */
function preview() {
  const mark = element("threshold");
  mark.hidden = true;
  if (session || profiles.length === 0) return;
  try {
    show(null, thresholdOf(model.calibration, Number(element("far").value), profiles.length));
  } catch (error) {
    problem(error);
  }
}

function show(llr, threshold) {
  const place = (x) => `${(100 * (Math.min(Math.max(x, GAUGE[0]), GAUGE[1]) - GAUGE[0])) / (GAUGE[1] - GAUGE[0])}%`;
  element("threshold").hidden = false;
  element("threshold").style.left = place(threshold);
  element("score").style.width = llr === null ? "0" : place(llr);
  element("score").className = llr !== null && llr >= threshold ? "above" : "";
  const score = llr === null ? "No score yet" : `LLR ${llr.toFixed(1)}`;
  element("gauge").setAttribute("aria-label", `${score}; threshold ${threshold.toFixed(1)}`);
}

// ---- profiles

async function keep(values) {
  readProfile(values, model.calibration);
  await store.add(values).catch(() => {
    throw new Error(`${values.name} is enrolled already, or the browser's storage is full.`);
  });
  await list();
}

async function list() {
  const all = await store.all();
  profiles = [];
  element("profiles").replaceChildren();
  for (const values of all) {
    const item = document.createElement("li");
    const name = document.createElement("span");
    item.append(name);
    try {
      profiles.push(readProfile(values, model.calibration));
      name.textContent = values.name;
      item.append(button("Export", values.name, () => download(values)));
    } catch (error) {
      name.textContent = `${values.name}: cannot be used (${error.message})`;
    }
    item.append(button("Remove", values.name, () => store.remove(values.name).then(list).catch(problem)));
    element("profiles").append(item);
  }
  element("nobody").hidden = all.length > 0;
  if (session && !session.enroller) await stop(); // who was removed is not accepted any more
  preview();
  controls();
}

function button(text, name, action) {
  const made = document.createElement("button");
  made.className = "plain";
  made.textContent = text;
  made.setAttribute("aria-label", `${text} ${name}`);
  made.addEventListener("click", action);
  return made;
}

function download(values) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(values)], { type: "application/json" }));
  link.download = "profile.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function importProfile() {
  const [file] = element("import").files;
  problem(null);
  try {
    if (file) await keep(JSON.parse(await file.text()));
  } catch (error) {
    problem(new Error(`This profile cannot be imported: ${error.message}`));
  }
  element("import").value = "";
}

// ---- start

function controls() {
  const enrolling = Boolean(session?.enroller);
  element("enrol-start").textContent = enrolling ? "Stop enrolling" : "Start enrolling";
  element("enrol-start").disabled = Boolean(session) && !enrolling;
  element("name").disabled = Boolean(session);
  element("verify-start").textContent = session && !enrolling ? "Stop listening" : "Start listening";
  element("verify-start").disabled = enrolling || profiles.length === 0;
  element("far").disabled = Boolean(session);
  element("import").disabled = false;
}

async function main() {
  try {
    store = await openStore();
    let ms;
    ({ model, microphone, ms } = await load());
    await list();
    element("enrol").addEventListener("submit", enrol);
    element("enrol-save").addEventListener("click", save);
    element("verify-start").addEventListener("click", verify);
    element("import").addEventListener("change", importProfile);
    element("far").addEventListener("change", preview);
    for (const event of ["click", "submit", "change"]) {
      document.addEventListener(event, ({ target }) => target.closest("section")?.append(element("problem")), true);
    }
    say("ready", `Ready. 3 s of speech take ${ms.toFixed(0)} ms here. This page has cut itself off from the network.`);
  } catch (error) {
    say("ready", "The page cannot work.");
    problem(error);
  }
}

main();
