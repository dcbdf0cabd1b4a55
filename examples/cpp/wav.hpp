// Recordings for the example: 16-bit PCM, one channel, at the model's rate; anything else is refused.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error(message);
}

inline std::string readBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), path + ": cannot be read");
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

inline std::vector<float> readWav(const std::string& path, uint32_t rate) {
  const std::string content = readBytes(path);
  const bool wav = content.size() >= 12 && content.substr(0, 4) == "RIFF" && content.substr(8, 4) == "WAVE";
  require(wav, path + ": expected a WAV file");
  bool known = false;
  for (size_t at = 12; at + 8 <= content.size();) {
    uint32_t size;
    std::memcpy(&size, &content[at + 4], 4);
    std::string name = content.substr(at, 4);
    at += 8;
    size_t length = std::min<size_t>(size, content.size() - at);
    if (name == "fmt " && length >= 16) {
      uint16_t format, channels, bits;
      uint32_t hz;
      std::memcpy(&format, &content[at], 2), std::memcpy(&channels, &content[at + 2], 2);
      std::memcpy(&hz, &content[at + 4], 4), std::memcpy(&bits, &content[at + 14], 2);
      known = format == 1 && channels == 1 && bits == 16 && hz == rate;
    } else if (name == "data") {
      require(known, path + ": expected 16-bit PCM, 1 channel, " + std::to_string(rate) + " Hz; convert it first");
      std::vector<int16_t> steps(length / 2);
      std::memcpy(steps.data(), content.data() + at, 2 * steps.size());
      std::vector<float> samples(steps.begin(), steps.end());
      for (float& x : samples) x /= 32768.0f;
      return samples;
    }
    at += size + size % 2;
  }
  throw std::runtime_error(path + ": no samples");
}
