// One recording on its way to a score, as emoinv_edge/utterance.py takes it: its speech, what was measured of it,
// and an embedding or the reason why not. Nothing that cannot be judged gets a score.

import { speechOnly } from "./speech.js";

const FRAME_S = 0.04;
const HOP_S = 0.02;
const SILENT_DBFS = -120;

/** The model and its calibration, refused where the file is not the one that the calibration was made for. */
export async function openModel(ort, fvad, bytes, calibration, options = {}) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (sha256 !== calibration.model.sha256) {
    throw new Error(`expected the model with SHA-256 ${calibration.model.sha256}, got ${sha256}; export both anew`);
  }
  const session = await ort.InferenceSession.create(bytes, options);
  return { ort, fvad, session, calibration };
}

/** The embedding {vector, norm} of speech, mono at the model's rate; throws where the model gives nothing usable. */
export async function embed(model, speech) {
  const { input, output, least_samples: least, embedding_dim: dim } = model.calibration.model;
  if (speech.length < least) throw new Error(`expected at least ${least} samples, got ${speech.length}; speak longer`);
  const waveform = new model.ort.Tensor("float32", speech, [1, speech.length]);
  const values = (await model.session.run({ [input]: waveform }))[output].data;
  const norm = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  if (values.length !== dim || !Number.isFinite(norm) || norm < 1e-6) {
    throw new Error(`the model gave an embedding of ${values.length} numbers and norm ${norm}, which means nothing`);
  }
  return { vector: Float32Array.from(values, (x) => x / norm), norm };
}

/** {speech, quality, embedding, refusal}: either `embedding` or `refusal` {code, message} is null. */
export async function hear(model, waveform, { leastSpeechS, leastSnrDb } = {}) {
  const { refuse, model: file } = model.calibration;
  const broken = damaged(waveform);
  if (broken) return { speech: new Float32Array(0), quality: null, embedding: null, refusal: broken };
  const mono = waveform.map((x) => Math.min(Math.max(x, -1), 1));
  const speech = speechOnly(model.fvad, mono, file.sample_rate);
  const quality = measure(mono, speech, file.sample_rate, refuse.clip_level);
  let refusal = unusable(quality, refuse, leastSpeechS ?? refuse.least_speech_s, leastSnrDb ?? refuse.least_snr_db);
  if (refusal) return { speech, quality, embedding: null, refusal };
  try {
    return { speech, quality, embedding: await embed(model, speech), refusal: null };
  } catch (error) {
    refusal = { code: "no_embedding", message: `The model gave no usable embedding (${error.message}).` };
    return { speech, quality, embedding: null, refusal };
  }
}

function damaged(waveform) {
  if (waveform.length === 0) return { code: "empty", message: "No audio: the recording is empty." };
  let peak = 0;
  for (const x of waveform) {
    if (!Number.isFinite(x)) return { code: "not_finite", message: "Not finite: the recording is damaged." };
    peak = Math.max(peak, Math.abs(x));
  }
  if (peak === 0) return { code: "silent", message: "Silent: every sample is zero. Is the microphone muted?" };
  if (peak > 2) throw new RangeError(`expected samples in [-1, 1], got a peak of ${peak}; divide by full scale`);
  return null;
}

/** Seconds of speech, signal-to-noise ratio, level and clipping, as emoinv_edge/quality.py measures them. */
export function measure(waveform, speech, sampleRate, clipLevel) {
  const heard = speech.length ? speech : waveform;
  const power = heard.reduce((sum, x) => sum + x * x, 0) / heard.length;
  return {
    seconds: speech.length / sampleRate,
    snrDb: snrDb(waveform, sampleRate),
    levelDbfs: Math.max(SILENT_DBFS, 10 * Math.log10(Math.max(power, 1e-12))),
    clippedFraction: waveform.reduce((count, x) => count + (Math.abs(x) >= clipLevel ? 1 : 0), 0) / waveform.length,
  };
}

function snrDb(waveform, sampleRate) {
  const hop = Math.round(HOP_S * sampleRate);
  if (waveform.length < Math.round(FRAME_S * sampleRate)) return 0;
  const powers = [];
  for (let at = 0; at + hop <= waveform.length; at += hop) {
    const block = waveform.subarray(at, at + hop);
    const mean = block.reduce((sum, x) => sum + x, 0) / hop;
    powers.push(block.reduce((sum, x) => sum + (x - mean) ** 2, 0) / hop);
  }
  const db = powers.slice(1).map((power, i) => 10 * Math.log10(Math.max(0.5 * (power + powers[i]), 1e-12)));
  if (db.length < 5) return 0;
  db.sort((a, b) => a - b);
  const percentile = (share) => {
    const place = share * (db.length - 1);
    const low = Math.floor(place);
    return db[low] + (place - low) * (db[Math.min(low + 1, db.length - 1)] - db[low]);
  };
  const noise = 10 ** (percentile(0.05) / 10);
  const speech = 10 ** (percentile(0.9) / 10) - noise;
  return Math.min(Math.max(10 * Math.log10(Math.max(speech, 1e-13) / Math.max(noise, 1e-12)), -10), 60);
}

function unusable(quality, refuse, leastSpeechS, leastSnrDb) {
  const { seconds, snrDb: snr, levelDbfs, clippedFraction } = quality;
  if (!(levelDbfs >= refuse.least_level_dbfs)) {
    return {
      code: "too_quiet",
      message: `Too quiet (${levelDbfs.toFixed(0)} dBFS): come closer, or raise the gain.`,
    };
  }
  if (!(seconds >= leastSpeechS)) {
    return {
      code: "too_short",
      message: `Too little speech: ${seconds.toFixed(1)} s, ${leastSpeechS} s are needed.`,
    };
  }
  if (!(seconds <= refuse.most_speech_s)) {
    return {
      code: "too_long",
      message: `Too much speech: ${seconds.toFixed(1)} s, ${refuse.most_speech_s} s at most; cut it.`,
    };
  }
  if (!(clippedFraction <= refuse.most_clipped)) {
    return { code: "clipped", message: "Clipped: lower the microphone's gain, or step back." };
  }
  if (!(snr >= leastSnrDb)) {
    return {
      code: "too_noisy",
      message: `Too noisy (${snr.toFixed(0)} dB): come closer, or go where it is quieter.`,
    };
  }
  return null;
}
