// Speech or not, by the law of emoinv_edge/vad.py: WebRTC's detector, levelled and gated, and a segmenter whose
// segments are the same however the stream is chunked. The thresholds of calibration.json hold for this speech.

const FRAME_MS = 30;
const AGGRESSIVENESS = 3;
const PREEMPHASIS = 0.5;
const TARGET_DB = -26;
const MAX_GAIN_DB = 20;
const MAX_CUT_DB = 10;
const DECAY_DB_PER_S = 0.3;
const GATE_DB = 4;
const FLOOR_BLOCK_S = 0.5;
const FLOOR_BLOCKS = 6;
const MAX_PEAK = 2; // a sample beyond is damaged

function roundHalfEven(x) {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** Judges one stream frame by frame. `fvad` is an instance of the module @echogarden/fvad-wasm. */
export class WebRtcDetector {
  constructor(fvad, sampleRate = 16000) {
    this.fvad = fvad;
    this.sampleRate = sampleRate;
    this.frameLength = (sampleRate * FRAME_MS) / 1000;
    this.block = Math.round((FLOOR_BLOCK_S * 1000) / FRAME_MS);
    this.pcm = fvad._malloc(2 * this.frameLength);
    this.handle = fvad._fvad_new();
    this.reset();
  }

  reset() {
    this.fvad._fvad_reset(this.handle);
    const wrong =
      this.fvad._fvad_set_mode(this.handle, AGGRESSIVENESS) ||
      this.fvad._fvad_set_sample_rate(this.handle, this.sampleRate);
    if (wrong) throw new RangeError(`expected a sample rate of 8000, 16000, 32000 or 48000, got ${this.sampleRate}`);
    this.level = null;
    this.peak = -120;
    this.floors = [];
    this.lowest = Infinity;
    this.numFrames = 0;
  }

  /** Give the memory back; the detector is of no use afterwards. */
  free() {
    this.fvad._fvad_free(this.handle);
    this.fvad._free(this.pcm);
  }

  isSpeech(frame) {
    const count = frame.length - 1;
    let mean = 0;
    let square = 0;
    for (let i = 1; i < frame.length; i++) mean += frame[i] - PREEMPHASIS * frame[i - 1];
    mean /= count;
    for (let i = 1; i < frame.length; i++) square += (frame[i] - PREEMPHASIS * frame[i - 1] - mean) ** 2;
    const energy = 10 * Math.log10(square / count + 1e-12);
    this.level = this.level === null ? energy : 0.5 * (this.level + energy);
    this.peak = Math.max(this.level, this.peak - (DECAY_DB_PER_S * FRAME_MS) / 1000);
    this.lowest = Math.min(this.lowest, this.level);
    this.numFrames += 1;
    if (this.numFrames % this.block === 0) {
      this.floors.push(this.lowest);
      if (this.floors.length > FLOOR_BLOCKS) this.floors.shift();
      this.lowest = Infinity;
    }
    const gainDb = Math.min(Math.max(TARGET_DB - this.peak, -MAX_CUT_DB), MAX_GAIN_DB);
    const gain = Math.fround(32768 * 10 ** (gainDb / 20));
    const pcm = this.fvad.HEAP16.subarray(this.pcm / 2, this.pcm / 2 + frame.length);
    for (let i = 0; i < frame.length; i++) {
      pcm[i] = Math.min(Math.max(roundHalfEven(Math.fround(frame[i] * gain)), -32768), 32767);
    }
    const speech = this.fvad._fvad_process(this.handle, this.pcm, frame.length) === 1;
    if (!speech || this.numFrames < this.block) return speech;
    return this.level > Math.min(this.lowest, ...this.floors) + GATE_DB;
  }
}

/** Cuts a stream into segments {start, end, waveform, final, damaged}; positions are samples from its start. */
export class SpeechSegmenter {
  constructor(
    detector,
    { onsetMs = 90, onsetWindowMs = 150, preRollMs = 150, hangOverMs = 300, tailMs = 60, longestMs = 30000 } = {},
  ) {
    const frames = (ms) => Math.round((ms * detector.sampleRate) / 1000 / detector.frameLength);
    this.detector = detector;
    this.length = detector.frameLength;
    this.onset = Math.max(1, frames(onsetMs));
    this.onsetWindow = Math.max(this.onset, frames(onsetWindowMs));
    this.preRoll = frames(preRollMs);
    this.hangOver = Math.max(1, frames(hangOverMs));
    this.tail = Math.min(frames(tailMs), this.hangOver);
    this.longest = frames(longestMs);
    this.startOver(0);
  }

  startOver(position) {
    this.origin = position;
    this.numFrames = 0;
    this.pending = new Float32Array(0);
    this.piece = []; // speech for sure
    this.held = []; // a pause inside the segment, or, while closed, what an onset may reach back for
    this.recent = [];
    this.open = false;
  }

  get position() {
    return this.origin + this.numFrames * this.length + this.pending.length;
  }

  get inSpeech() {
    return this.open;
  }

  process(chunk) {
    const samples = joined([this.pending, chunk]);
    const count = Math.floor(samples.length / this.length);
    this.pending = samples.slice(count * this.length);
    const out = [];
    for (let i = 0; i < count; i++) {
      const entry = sound(samples.slice(i * this.length, (i + 1) * this.length));
      this.step(entry, this.detector.isSpeech(entry.samples), out);
    }
    return out;
  }

  /** End the stream: close the open segment and start over as if new. */
  flush() {
    const out = this.gap(0);
    this.reset();
    return out;
  }

  /** The next samples were lost: closes the open segment, and moves the clock on. */
  gap(numSamples) {
    const out = [];
    if (this.open) {
      const part = this.held.length === 0 && this.pending.length > 0 ? sound(this.pending.slice()) : null;
      this.close(out, part);
    }
    this.startOver(this.position + numSamples);
    this.detector.reset();
    return out;
  }

  reset() {
    this.startOver(0);
    this.detector.reset();
  }

  step(entry, speech, out) {
    this.numFrames += 1;
    this.held.push(entry);
    if (!this.open) {
      this.recent.push(speech);
      if (this.recent.length > this.onsetWindow) this.recent.shift();
      if (this.held.length > this.onsetWindow + this.preRoll) this.held.shift();
      if (this.recent.filter(Boolean).length < this.onset) return;
      const first = this.recent.length - this.recent.indexOf(true);
      while (this.held.length > first + this.preRoll) this.held.shift();
      this.open = true;
    } else if (!speech) {
      if (this.held.length > this.hangOver) this.close(out, null);
      return;
    }
    this.take(this.held.length, out);
  }

  take(count, out) {
    for (let i = 0; i < count; i++) {
      if (this.piece.length === this.longest) this.handOut(out, false);
      if (this.piece.length === 0) this.pieceStart = this.origin + (this.numFrames - this.held.length) * this.length;
      this.piece.push(this.held.shift());
    }
  }

  close(out, part) {
    this.take(Math.min(this.tail, this.held.length), out);
    if (part !== null) this.piece.push(part);
    this.handOut(out, true);
    this.open = false;
    this.recent = [];
  }

  handOut(out, final) {
    const waveform = joined(this.piece.map((entry) => entry.samples));
    const damaged = this.piece.reduce((sum, entry) => sum + entry.damaged, 0);
    out.push({ start: this.pieceStart, end: this.pieceStart + waveform.length, waveform, final, damaged });
    this.piece = [];
  }
}

function sound(samples) {
  let damaged = 0;
  for (let i = 0; i < samples.length; i++) {
    if (!(Math.abs(samples[i]) <= MAX_PEAK)) {
      // NaN too
      samples[i] = 0;
      damaged += 1;
    }
  }
  return { samples, damaged };
}

/** Several Float32Arrays as one. */
export function joined(parts) {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** The speech of a whole recording, its pauses cut out; empty where there is none. */
export function speechOnly(fvad, waveform, sampleRate = 16000) {
  const detector = new WebRtcDetector(fvad, sampleRate);
  try {
    const segmenter = new SpeechSegmenter(detector);
    return joined([...segmenter.process(waveform), ...segmenter.flush()].map((segment) => segment.waveform));
  } finally {
    detector.free();
  }
}

const PAUSE_MS = 800; // a pause as long ends an utterance
const LONGEST_MS = 20000;
const MARGIN_S = 0.4; // of what came before and after is kept: the noise is judged from there
const SHORTEST_S = 0.4; // anything shorter is a click or a cough

/** Cuts a microphone's chunks into whole utterances, each with a little of what surrounds it. */
export class UtteranceCutter {
  constructor(fvad, sampleRate = 16000) {
    this.detector = new WebRtcDetector(fvad, sampleRate);
    this.segmenter = new SpeechSegmenter(this.detector, { hangOverMs: PAUSE_MS, longestMs: LONGEST_MS });
    this.rate = sampleRate;
    this.recent = [];
    this.first = 0; // position of the first sample in `recent`
  }

  get inSpeech() {
    return this.segmenter.inSpeech;
  }

  /** The utterances that these samples completed. */
  process(chunk) {
    this.recent.push(chunk);
    const out = this.segmenter.process(chunk).flatMap((segment) => this.cut(segment));
    const keep = ((LONGEST_MS + 2 * PAUSE_MS) / 1000 + 2 * MARGIN_S) * this.rate;
    while (this.recent.length && this.segmenter.position - this.first - this.recent[0].length > keep) {
      this.first += this.recent.shift().length;
    }
    return out;
  }

  /** The last `seconds` of what was heard: for a provisional score. */
  latest(seconds) {
    const heard = joined(this.recent);
    return heard.slice(Math.max(0, heard.length - Math.round(seconds * this.rate)));
  }

  /** End: the utterance under way, if any. */
  flush() {
    const out = this.segmenter.flush().flatMap((segment) => this.cut(segment));
    this.detector.free();
    return out;
  }

  cut({ start, end }) {
    if (end - start < SHORTEST_S * this.rate) return [];
    const margin = Math.round(MARGIN_S * this.rate);
    return [joined(this.recent).slice(Math.max(0, start - margin - this.first), end + margin - this.first)];
  }
}
