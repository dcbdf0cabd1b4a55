// Utterances of one speaker, until a profile can be made: emoinv_edge/enrolment.py with prompts in a fixed order.

import { embed, hear } from "./hear.js";
import { llrOf, readProfile } from "./score.js";

const WINDOW_S = 1.6; // of the search for a second voice inside one utterance

export const PROMPTS = [
  "Say a few sentences as you normally speak.",
  "Now say something with excitement, as if you had won a prize.",
  "Now louder, as if to somebody across the room.",
  "Now softly, as if somebody were asleep nearby.",
  "Now annoyed, as if you had to repeat yourself.",
];

export class Enroller {
  constructor(model) {
    this.model = model;
    this.rules = model.calibration.enrol;
    this.exemplars = [];
  }

  get seconds() {
    return this.exemplars.reduce((sum, exemplar) => sum + exemplar.seconds, 0);
  }

  /** 0 to 1: both the seconds and the number of utterances count. */
  get progress() {
    return Math.min(1, this.seconds / this.rules.target_s, this.exemplars.length / this.rules.target_utterances);
  }

  get ready() {
    return this.exemplars.length > 0 && this.seconds >= this.rules.least_profile_s;
  }

  get prompt() {
    return PROMPTS[this.exemplars.length % PROMPTS.length];
  }

  /** Take one utterance or refuse it: {accepted, message}. */
  async add(waveform) {
    const rules = this.rules;
    const heard = await hear(this.model, waveform, {
      leastSpeechS: rules.least_speech_s,
      leastSnrDb: rules.least_snr_db,
    });
    if (heard.refusal) return { accepted: false, message: heard.refusal.message };
    if (this.exemplars.length >= rules.most_utterances) return { accepted: false, message: "The profile is full." };
    const { vector, norm } = heard.embedding;
    const doubt = await this.doubt(heard);
    if (doubt) return { accepted: false, message: doubt };
    this.exemplars.push({
      embedding: Array.from(vector),
      seconds: heard.quality.seconds,
      log_norm: Math.log(norm),
    });
    return { accepted: true, message: `Good: ${heard.quality.seconds.toFixed(1)} s of speech.` };
  }

  /** The profile as JSON values. */
  profile(name) {
    if (!this.ready)
      throw new Error(`expected ${this.rules.least_profile_s} s of speech, got ${this.seconds.toFixed(1)} s; say more`);
    return { format: 1, name, model: this.model.calibration.model.fingerprint, exemplars: this.exemplars };
  }

  async doubt(heard) {
    const cosines = this.exemplars.map((each) =>
      each.embedding.reduce((sum, x, i) => sum + x * heard.embedding.vector[i], 0),
    );
    if (cosines.some((cosine) => cosine > this.rules.duplicate_cosine)) {
      return "This recording, or a copy of it, was given before. Say something new.";
    }
    if (await this.mixed(heard.speech)) return "There seems to be a second voice in this recording. Record it alone.";
    if (this.exemplars.length && this.llr(this.exemplars, heard.embedding, heard.quality.seconds) < this.limit) {
      return "This does not sound like the speaker of the earlier utterances. If it is, say it closer to your normal voice first.";
    }
    return null;
  }

  get limit() {
    const prior = this.rules.same_speaker_prior;
    return Math.log((1 - prior) / prior);
  }

  llr(exemplars, embedding, seconds) {
    const { calibration } = this.model;
    const values = { format: 1, name: "speaker", model: calibration.model.fingerprint, exemplars };
    return llrOf(calibration, readProfile(values, calibration), embedding, seconds);
  }

  /** Whether some stretch of the utterance speaks against the rest of it. */
  async mixed(speech) {
    const rate = this.model.calibration.model.sample_rate;
    const count = Math.floor(speech.length / (WINDOW_S * rate));
    if (count < 2) return false;
    const pieces = [];
    for (let i = 0, at = 0; i < count; i++) {
      const length = Math.floor(speech.length / count) + (i < speech.length % count ? 1 : 0);
      const embedding = await embed(this.model, speech.slice(at, at + length));
      pieces.push({ embedding, seconds: length / rate });
      at += length;
    }
    const exemplars = pieces.map(({ embedding: { vector, norm }, seconds }) => ({
      embedding: Array.from(vector),
      seconds,
      log_norm: Math.log(norm),
    }));
    return pieces.some(
      ({ embedding, seconds }, i) =>
        this.llr(
          exemplars.filter((_, k) => k !== i),
          embedding,
          seconds,
        ) < this.limit,
    );
  }
}
