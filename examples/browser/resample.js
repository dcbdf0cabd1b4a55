// From the microphone's rate to the model's: a windowed sinc, the same samples however the stream is chunked.

const ZERO_CROSSINGS = 24;
const ROLL_OFF = 0.94; // of the lower rate's half: what lies above is filtered out before it can fold back

export class Resampler {
  constructor(from, to) {
    const divisor = gcd(from, to);
    this.up = to / divisor;
    this.down = from / divisor;
    this.cutoff = ROLL_OFF * Math.min(1, to / from);
    this.half = Math.ceil(ZERO_CROSSINGS / this.cutoff);
    this.kernels = new Map(); // by phase
    this.samples = new Float32Array(this.half); // silence before the start
    this.first = -this.half; // position of samples[0]
    this.next = 0; // number of the next sample to come out
  }

  process(chunk) {
    const samples = new Float32Array(this.samples.length + chunk.length);
    samples.set(this.samples);
    samples.set(chunk, this.samples.length);
    const end = this.first + samples.length;
    const out = [];
    for (;;) {
      const centre = Math.floor((this.next * this.down) / this.up);
      if (centre + this.half >= end) break;
      const kernel = this.kernel((this.next * this.down) % this.up);
      const start = centre - this.half + 1 - this.first;
      let sum = 0;
      for (let i = 0; i < kernel.length; i++) sum += kernel[i] * samples[start + i];
      out.push(sum);
      this.next += 1;
    }
    const keep = Math.floor((this.next * this.down) / this.up) - this.half + 1;
    this.samples = samples.slice(Math.max(0, keep - this.first));
    this.first = Math.max(this.first, keep);
    return Float32Array.from(out);
  }

  /** Weights of the samples around a place `phase / up` behind one of them, with sum 1. */
  kernel(phase) {
    let kernel = this.kernels.get(phase);
    if (kernel) return kernel;
    kernel = new Float64Array(2 * this.half);
    let total = 0;
    for (let i = 0; i < kernel.length; i++) {
      const t = i - this.half + 1 - phase / this.up;
      const x = Math.PI * this.cutoff * t;
      const window = Math.abs(t) < this.half ? 0.5 * (1 + Math.cos((Math.PI * t) / this.half)) : 0;
      kernel[i] = (Math.abs(x) < 1e-12 ? 1 : Math.sin(x) / x) * window;
      total += kernel[i];
    }
    for (let i = 0; i < kernel.length; i++) kernel[i] /= total;
    this.kernels.set(phase, kernel);
    return kernel;
  }
}

function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}
