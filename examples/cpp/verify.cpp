// verify MODEL_DIR PROFILE.json SPEECH.wav [FAR]: prints LLR, threshold and verdict of speech without pauses.
// Exit status 0 on an accept alone, 1 on a reject, 2 where nothing can be decided or something is wrong.
// README.md describes how to build it, and what your program must do before: find the speech.

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <onnxruntime_cxx_api.h>
#include <string>
#include <vector>

#include "sha256.hpp"
#include "wav.hpp"

using Json = nlohmann::json;
using Vector = std::vector<double>;

double dot(const Vector& a, const Vector& b) {
  require(a.size() == b.size(), "expected vectors of one size");
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

void requireUnit(const Vector& v, size_t dim) {
  require(v.size() == dim && std::abs(std::sqrt(dot(v, v)) - 1) < 1e-3, "expected an embedding of unit norm");
}

Json readJson(const std::string& path) {
  const Json values = Json::parse(readBytes(path));
  require(values.at("format") == 1, path + ": expected format 1");
  return values;
}

void refuseUnusable(const std::vector<float>& speech, const Json& refuse, double rate) {
  double power = 0, clipped = 0;
  for (float x : speech) power += double(x) * x, clipped += std::abs(x) >= refuse.at("clip_level").get<double>();
  require(speech.size() >= refuse.at("least_speech_s").get<double>() * rate, "too little speech");
  require(speech.size() <= refuse.at("most_speech_s").get<double>() * rate, "too much speech; cut it");
  require(10 * std::log10(power / speech.size() + 1e-12) >= refuse.at("least_level_dbfs").get<double>(), "too quiet");
  require(clipped <= refuse.at("most_clipped").get<double>() * speech.size(), "clipped");
}

double thresholdOf(const Json& calibration, double far) {
  const double supported = calibration.at("supported_far");
  require(far < 1 && far >= supported * (1 - 1e-9), "this false-accept rate cannot be supported");
  const Json table = calibration.at("far_tables").at(0);
  const Vector rates = table.at("rates"), llrs = table.at("thresholds");
  require(rates.size() == llrs.size() && far >= rates.back(), "this false-accept rate was not measured");
  size_t i = 0;
  while (rates[i] > far) i++;
  if (i == 0) return llrs[0];
  return llrs[i - 1] + std::log(far / rates[i - 1]) / std::log(rates[i] / rates[i - 1]) * (llrs[i] - llrs[i - 1]);
}

double llrOf(const Json& calibration, const Json& profile, const Vector& unit, double norm, double seconds) {
  Vector mean(unit.size(), 0.0);
  double enrolled = 0, logNorm = 0, known = 0;
  for (const Json& exemplar : profile.at("exemplars")) {
    const Vector embedding = exemplar.at("embedding");
    requireUnit(embedding, unit.size());
    for (size_t i = 0; i < mean.size(); i++) mean[i] += embedding[i];
    enrolled += exemplar.at("seconds").get<double>();
    if (!exemplar.at("log_norm").is_null()) logNorm += exemplar.at("log_norm").get<double>(), known += 1;
  }
  const double length = std::sqrt(dot(mean, mean)), rise = known > 0 ? std::log(norm) - logNorm / known : 0;
  require(length > 0, "the profile holds no embedding");
  for (double& x : mean) x /= length;
  const Json& held = calibration.at("emotion_axis");
  const Vector axis = held.is_null() ? Vector(unit.size(), 0.0) : held.get<Vector>();
  const std::map<std::string, double> evidence = {
      {"cosine", dot(mean, unit)}, {"emotion_shift", dot(axis, unit) - dot(axis, mean)},
      {"norm_above", std::max(rise, 0.0)}, {"norm_below", std::max(-rise, 0.0)},
      {"test_seconds", std::log(std::max(seconds, 0.1))}, {"enrol_seconds", std::log(std::max(enrolled, 0.1))}};
  double llr = calibration.at("bias"), bounded = 0;  // what norm and seconds add together: 1.5 nats at most
  for (const Json& term : calibration.at("terms"))   // a term that is unknown here throws
    (term["name"] == "cosine" || term["name"] == "emotion_shift" ? llr : bounded) +=
        double(term["weight"]) * std::clamp(evidence.at(term["name"]), double(term["low"]), double(term["high"]));
  return require(std::isfinite(llr += std::min(bounded, 1.5)), "the score is not finite"), llr;
}

int main(int count, char** given) try {
  require(count >= 4, "expected MODEL_DIR PROFILE.json SPEECH.wav [FAR]");
  const std::string folder = given[1];
  const Json calibration = readJson(folder + "/calibration.json"), model = calibration.at("model");
  const Json profile = readJson(given[2]);
  require(profile.at("model") == model.at("fingerprint"), "the profile was made by another model; enrol again");
  std::vector<float> speech = readWav(given[3], model.at("sample_rate"));
  refuseUnusable(speech, calibration.at("refuse"), model.at("sample_rate"));
  const double threshold = thresholdOf(calibration, count > 4 ? std::stod(given[4]) : 0.01);

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING);
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  // The very bytes that were compared are opened: the file may be another one a moment later.
  const std::string bytes = readBytes(folder + "/" + model.at("file").get<std::string>());
  require(sha256(bytes) == model.at("sha256"), "expected the model with the calibration's SHA-256; export it again");
  Ort::Session session(env, bytes.data(), bytes.size(), options);
  const std::array<int64_t, 2> shape{1, int64_t(speech.size())};
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value waveform = Ort::Value::CreateTensor<float>(memory, speech.data(), speech.size(), shape.data(), 2);
  const char *input = "waveform", *output = "embedding";
  std::vector<Ort::Value> found = session.Run(Ort::RunOptions{nullptr}, &input, &waveform, 1, &output, 1);
  const float* values = found[0].GetTensorData<float>();
  Vector unit(values, values + found[0].GetTensorTypeAndShapeInfo().GetElementCount());
  const double norm = std::sqrt(dot(unit, unit));
  require(std::isfinite(norm) && norm > 1e-6, "the model gave no usable embedding");
  for (double& x : unit) x /= norm;
  requireUnit(unit, model.at("embedding_dim"));
  const double llr = llrOf(calibration, profile, unit, norm, speech.size() / model.at("sample_rate").get<double>());
  const bool accepted = llr >= threshold;
  std::cout << Json{{"llr", llr}, {"threshold", threshold}, {"verdict", accepted ? "ACCEPT" : "REJECT"}} << "\n";
  return accepted ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << "no decision: " << error.what() << "\n";
  return 2;
}
