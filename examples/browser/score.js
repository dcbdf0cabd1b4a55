// From a profile and an embedding to an LLR, and from the LLR to a verdict: emoinv_edge/scoring.py and calibration.py
// for the terms that need no pitch. Whatever is missing, foreign or not finite throws; no score comes out of it.

const FORMAT = 1;
const LEAST_SECONDS = 0.1;
const MAX_CIRCUMSTANCES = 1.5; // what norm and seconds may add together, in nats
const TERMS = ["cosine", "enrol_seconds", "norm_above", "norm_below", "test_seconds", "emotion_shift"];

function demand(holds, message) {
  if (!holds) throw new Error(message);
}

const finite = (values) => values.every((x) => typeof x === "number" && Number.isFinite(x));
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

function requireUnit(vector, dim, what) {
  demand(Array.from(vector).length === dim && finite(Array.from(vector)), `${what}: expected ${dim} finite numbers`);
  demand(Math.abs(Math.sqrt(dot(vector, vector)) - 1) < 1e-3, `${what}: expected unit norm`);
}

/** The values of calibration.json, checked. */
export function readCalibration(values) {
  const again = "; export it again: python -m export browser MODEL -o DIR";
  demand(values?.format === FORMAT, `calibration: expected format ${FORMAT}, got ${values?.format}${again}`);
  const names = values.terms.map((term) => term.name);
  demand(
    names.includes("cosine") && new Set(names).size === names.length,
    `calibration: expected each term once${again}`,
  );
  for (const term of values.terms) {
    demand(TERMS.includes(term.name), `calibration: the term ${term.name} is unknown here${again}`);
    demand(
      finite([term.weight, term.low, term.high]) && term.low <= term.high,
      `calibration: damaged term ${term.name}${again}`,
    );
    demand(term.name !== "cosine" || term.weight > 0, `calibration: expected a weight of the cosine above 0${again}`);
  }
  demand(
    finite([values.bias, values.supported_far, ...Object.values(values.refuse)]),
    `calibration: not finite${again}`,
  );
  demand(values.far_tables[0].num_profiles === 1, `calibration: expected a table for one profile first${again}`);
  for (const { rates, thresholds } of values.far_tables) {
    demand(
      rates.length === thresholds.length && rates.length > 1 && finite([...rates, ...thresholds]),
      `calibration: damaged table${again}`,
    );
    demand(
      rates.every((rate, i) => rate > 0 && (i === 0 || (rate < rates[i - 1] && thresholds[i] >= thresholds[i - 1]))),
      `calibration: expected falling rates and thresholds that do not fall${again}`,
    );
  }
  if (names.includes("emotion_shift"))
    requireUnit(values.emotion_axis ?? [], values.model.embedding_dim, "emotion_axis");
  return values;
}

/** The values of a profile's JSON, checked against the model, with what scoring needs of them. */
export function readProfile(values, calibration) {
  demand(values?.format === FORMAT, `profile: expected format ${FORMAT}, got ${values?.format}`);
  demand(
    typeof values.name === "string" && values.name.length > 0 && values.name.length <= 128,
    "profile: expected a name of 1 to 128 characters",
  );
  demand(values.model === calibration.model.fingerprint, `profile ${values.name}: made by another model; enrol again`);
  demand(
    Array.isArray(values.exemplars) && values.exemplars.length > 0 && values.exemplars.length <= 1024,
    `profile ${values.name}: expected exemplars`,
  );
  const dim = calibration.model.embedding_dim;
  const mean = new Float64Array(dim);
  for (const { embedding, seconds, log_norm: logNorm } of values.exemplars) {
    requireUnit(embedding, dim, `profile ${values.name}`);
    demand(
      finite([seconds]) && seconds >= 0 && (logNorm === null || finite([logNorm])),
      `profile ${values.name}: damaged`,
    );
    embedding.forEach((x, i) => (mean[i] += x / values.exemplars.length));
  }
  const length = Math.max(Math.sqrt(dot(mean, mean)), 1e-6);
  const norms = values.exemplars.map((exemplar) => exemplar.log_norm).filter((x) => x !== null);
  return {
    name: values.name,
    centroid: mean.map((x) => x / length),
    seconds: values.exemplars.reduce((sum, exemplar) => sum + exemplar.seconds, 0),
    logNorm: norms.length ? norms.reduce((sum, x) => sum + x, 0) / norms.length : null,
  };
}

/** What the terms weigh, by name. `embedding` is {vector, norm}, `seconds` those of the test's speech. */
export function evidence(calibration, profile, embedding, seconds) {
  const { vector, norm } = embedding;
  requireUnit(vector, calibration.model.embedding_dim, "embedding");
  const rise = profile.logNorm === null ? 0 : Math.log(norm) - profile.logNorm;
  const axis = calibration.emotion_axis;
  return {
    cosine: Math.min(Math.max(dot(profile.centroid, vector), -1), 1),
    enrol_seconds: Math.log(Math.max(profile.seconds, LEAST_SECONDS)),
    norm_above: Math.max(rise, 0),
    norm_below: Math.max(-rise, 0),
    test_seconds: Math.log(Math.max(seconds, LEAST_SECONDS)),
    emotion_shift: axis ? dot(axis, vector) - dot(axis, profile.centroid) : 0,
  };
}

/** The log-likelihood ratio (natural) that this is the profile's speaker. */
export function llrOf(calibration, profile, embedding, seconds) {
  const found = evidence(calibration, profile, embedding, seconds);
  let llr = calibration.bias;
  let circumstances = 0;
  for (const { name, weight, low, high } of calibration.terms) {
    demand(Number.isFinite(found[name]), `the evidence ${name} is not finite`);
    const weighed = weight * Math.min(Math.max(found[name], low), high);
    if (name.startsWith("norm_") || name.endsWith("_seconds")) circumstances += weighed;
    else llr += weighed;
  }
  return llr + Math.min(circumstances, MAX_CIRCUMSTANCES);
}

/** The LLR from which an impostor is accepted at most at the rate `far`; throws where the data do not reach so far. */
export function thresholdOf(calibration, far, numProfiles = 1) {
  demand(far > 0 && far < 1, `expected a false-accept rate between 0 and 1, got ${far}`);
  demand(
    far >= calibration.supported_far * (1 - 1e-9),
    `a false-accept rate of ${far} cannot be supported, ${calibration.supported_far.toFixed(4)} at best`,
  );
  const table = calibration.far_tables.find((each) => each.num_profiles >= numProfiles);
  demand(table !== undefined, `thresholds were measured for fewer than ${numProfiles} profiles at once`);
  const { rates, thresholds } = table;
  demand(
    far >= rates[rates.length - 1],
    `a false-accept rate of ${far} was not measured against ${numProfiles} profiles`,
  );
  if (far >= rates[0]) return thresholds[0];
  const i = rates.findIndex((rate) => rate <= far);
  const share = Math.log(far / rates[i - 1]) / Math.log(rates[i] / rates[i - 1]);
  return thresholds[i - 1] + share * (thresholds[i] - thresholds[i - 1]);
}

/** {verdict, llr, threshold, name, reason} for what `hear` gave; verdict is ACCEPT, REJECT or NO_DECISION. */
export function decide(calibration, profiles, heard, far) {
  const threshold = thresholdOf(calibration, far, profiles.length);
  const none = (reason) => ({ verdict: "NO_DECISION", llr: null, threshold, name: "", reason });
  if (heard.refusal || !heard.embedding || profiles.length === 0)
    return none(heard.refusal?.message ?? "Nobody is enrolled.");
  try {
    const llrs = profiles.map((profile) => llrOf(calibration, profile, heard.embedding, heard.quality.seconds));
    const llr = Math.max(...llrs);
    demand(Number.isFinite(llr), "the score is not finite");
    const accepted = llr >= threshold;
    const reason = `LLR ${llr.toFixed(1)} is ${accepted ? "at least" : "below"} the threshold ${threshold.toFixed(1)}.`;
    return {
      verdict: accepted ? "ACCEPT" : "REJECT",
      llr,
      threshold,
      name: profiles[llrs.indexOf(llr)].name,
      reason,
    };
  } catch (error) {
    return none(`No score: ${error.message}.`);
  }
}
