// Text cut into words by a regular expression (PCRE2).
#pragma once

#include <functional>
#include <string_view>

namespace proteus {

/// Calls `word` with one piece of `text` after another: what `pattern` matches, and what lies
/// between two matches (bytes that are not UTF-8) as pieces of their own; together they are the
/// text. \s means Unicode's white space. Throws ConfigError where the program was built without
/// PCRE2.
void split_words(const char* pattern, std::string_view text,
                 const std::function<void(std::string_view)>& word);

}  // namespace proteus
