#include "train/word_split.h"

#include <fmt/format.h>

#include "tensor/error.h"

#ifdef PROTEUS_HAVE_PCRE2
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#endif

namespace proteus {

#ifdef PROTEUS_HAVE_PCRE2
namespace {

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};

// PCRE2's \s also takes U+180E, which Unicode has not counted as white space since version 6.3.
std::string with_unicode_space(std::string_view pattern) {
  constexpr std::string_view kSpace =
      "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
      "\\x{205F}\\x{3000}";
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '[') in_class = true;
    if (pattern[i] == ']') in_class = false;
    const bool escape = pattern[i] == '\\' && i + 1 < pattern.size();
    if (escape && pattern[i + 1] == 's') {
      out += in_class ? std::string(kSpace) : fmt::format("[{}]", kSpace);
      ++i;
    } else if (escape && pattern[i + 1] == 'S') {
      out += fmt::format("[^{}]", kSpace);
      ++i;
    } else {
      out += pattern[i];
      if (escape) out += pattern[++i];
    }
  }
  return out;
}

const pcre2_code& compiled(const char* pattern) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<pcre2_code, Free>> codes;
  const std::lock_guard lock(mutex);
  auto& code = codes[pattern];
  if (!code) {
    const std::string text = with_unicode_space(pattern);
    int error = 0;
    PCRE2_SIZE at = 0;
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error, &at,
                             nullptr));
    if (!code) {
      throw ConfigError(
          fmt::format("split_words(pattern): error {} at {} of '{}'", error, at, text));
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where there is none, it matches without
  }
  return *code;
}

}  // namespace

void split_words(const char* pattern, std::string_view text,
                 const std::function<void(std::string_view)>& word) {
  const pcre2_code& code = compiled(pattern);
  const std::unique_ptr<pcre2_match_data, Free> match(
      pcre2_match_data_create_from_pattern(&code, nullptr));
  if (!match) throw OutOfMemory("split_words: no memory for a match");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  for (std::size_t at = 0; at < text.size();) {
    const int found = pcre2_match(&code, subject, text.size(), at, 0, match.get(), nullptr);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
      throw ConfigError(
          fmt::format("split_words: matching failed with {} after byte {}", found, at));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match.get());
    const std::size_t begin = found < 0 ? text.size() : span[0];
    const std::size_t end = found < 0 ? text.size() : span[1];
    if (begin > at) word(text.substr(at, begin - at));
    if (end > begin) word(text.substr(begin, end - begin));
    at = std::max(end, begin);
  }
}
#else
void split_words(const char*, std::string_view, const std::function<void(std::string_view)>&) {
  throw ConfigError(
      "--tokenizer: this program was built without PCRE2, which byte-pair encoding needs (apt "
      "install libpcre2-dev, configure and build again); char and byte work");
}
#endif

}  // namespace proteus
