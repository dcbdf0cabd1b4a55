// The microphone as chunks of mono samples at the model's rate.

import { Resampler } from "./resample.js";

const REASONS = {
  NotAllowedError:
    "The microphone was refused. Allow it for this page in the address bar, then press the button again.",
  NotFoundError: "No microphone was found. Connect one, then press the button again.",
  NotReadableError: "Another program holds the microphone. Close it, then press the button again.",
};

export class Microphone {
  /** Ready the audio thread; its script is loaded here, before the page cuts itself off. */
  static async prepare(sampleRate) {
    if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
      throw new Error("This page needs a browser with a microphone, and https or localhost.");
    }
    const context = new AudioContext();
    await context.audioWorklet.addModule("capture.js");
    return new Microphone(context, sampleRate);
  }

  constructor(context, sampleRate) {
    this.context = context;
    this.sampleRate = sampleRate;
    this.stream = null;
  }

  /** Hand chunks to `take` until `stop`; `lost` is called with a reason if the microphone goes away. */
  async start(take, lost) {
    // The browser's own processing changes voices, and differs from browser to browser.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be opened (${error.name}).`);
    }
    const resampler = new Resampler(this.context.sampleRate, this.sampleRate);
    this.source = this.context.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(this.context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.node.port.onmessage = ({ data }) => this.stream && take(resampler.process(data));
    this.source.connect(this.node);
    for (const track of this.stream.getTracks()) track.onended = () => lost("The microphone went away.");
    await this.context.resume();
  }

  async stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.source?.disconnect();
    this.node?.port.close();
    await this.context.suspend();
  }
}
