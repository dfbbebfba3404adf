// The pages quote what is there. A block that begins with ```cpp FILE is a part of that file,
// literally; one that begins with ```text PROGRAM is what the program of the build folder prints.
// PROTEUS_SOURCE and PROTEUS_BUILD are the folders.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace proteus {
namespace {

namespace fs = std::filesystem;
const fs::path kSource = PROTEUS_SOURCE;
const fs::path kBuild = PROTEUS_BUILD;

std::string read(const fs::path& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

struct Quote {
  std::string page;
  std::string language;
  std::string of;
  std::string text;
};

void PrintTo(const Quote& q, std::ostream* out) { *out << q.page << " quotes " << q.of; }

void collect(const fs::path& page, std::vector<Quote>& quotes) {
  std::istringstream in(read(kSource / page));
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t space = line.find(' ');
    if (!line.starts_with("```") || space == std::string::npos) continue;
    Quote quote{page.string(), line.substr(3, space - 3), line.substr(space + 1), {}};
    while (std::getline(in, line) && line != "```") quote.text += line + "\n";
    quotes.push_back(quote);
  }
}

std::vector<Quote> quotes(const std::string& language) {
  std::vector<Quote> all;
  collect("README.md", all);
  for (const char* folder : {"docs", "docs/lessons"}) {
    for (const auto& entry : fs::directory_iterator(kSource / folder)) {
      if (entry.path().extension() == ".md") collect(fs::relative(entry.path(), kSource), all);
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Quote& a, const Quote& b) { return a.page < b.page; });
  std::erase_if(all, [&](const Quote& q) { return q.language != language; });
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Quote>& info) {
  std::string name = info.param.page + "_" + info.param.of + "_" + std::to_string(info.index);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

/// What a program prints on standard output; it must end well.
std::string output_of(const std::string& program) {
  FILE* pipe = ::popen(("'" + (kBuild / program).string() + "' 2>/dev/null").c_str(), "r");
  std::string out;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) out += static_cast<char>(c);
  EXPECT_EQ(::pclose(pipe), 0) << program;
  return out;
}

struct Words {
  std::string text;                 ///< decimal fractions replaced by #
  std::vector<std::string> number;  ///< what they were
};

Words words_of(const std::string& text) {
  const auto digits = [&](std::size_t at) {
    while (at < text.size() && std::isdigit(static_cast<unsigned char>(text[at]))) ++at;
    return at;
  };
  Words out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t sign = text[at] == '-' ? 1 : 0;
    const std::size_t point = digits(at + sign);
    const bool whole = point > at + sign && point < text.size() && text[point] == '.';
    const std::size_t end = whole ? digits(point + 1) : point;
    if (whole && end > point + 1) {
      out.text += '#';
      out.number.push_back(text.substr(at, end - at));
      at = end;
    } else {
      const std::size_t next = std::max(point, at + 1);
      out.text += text.substr(at, next - at);
      at = next;
    }
  }
  return out;
}

/// Decimal fractions may differ by one in their last digit, which another processor may round
/// otherwise; everything else is the same.
bool alike(const std::string& got, const std::string& expected) {
  const Words a = words_of(got);
  const Words b = words_of(expected);
  if (a.text != b.text) return false;
  for (std::size_t i = 0; i < a.number.size(); ++i) {
    const std::size_t places = b.number[i].size() - b.number[i].find('.') - 1;
    const double unit = std::pow(10, -static_cast<double>(places));
    if (std::abs(std::stod(a.number[i]) - std::stod(b.number[i])) > 1.01 * unit) return false;
  }
  return true;
}

TEST(Alike, FindsWhatDiffers) {
  EXPECT_TRUE(alike("loss 1.23 of 4", "loss 1.24 of 4"));
  EXPECT_FALSE(alike("loss 1.23 of 4", "loss 1.25 of 4"));
  EXPECT_FALSE(alike("loss 1.23 of 4", "loss 1.23 of 5"));
  EXPECT_FALSE(alike("loss 1.23 of 4", "loss  1.23 of 4"));
  EXPECT_FALSE(alike("loss 1.23 of 4", "loss 1.23"));
}

class Code : public ::testing::TestWithParam<Quote> {};
TEST_P(Code, IsPartOfItsFile) {
  const std::string file = read(kSource / GetParam().of);
  EXPECT_NE(file.find(GetParam().text), std::string::npos)
      << GetParam().page << " does not quote " << GetParam().of << " literally:\n"
      << GetParam().text;
}
INSTANTIATE_TEST_SUITE_P(Docs, Code, ::testing::ValuesIn(quotes("cpp")), name_of);

class Output : public ::testing::TestWithParam<Quote> {};
TEST_P(Output, IsWhatTheProgramPrints) {
  const std::string got = output_of(GetParam().of);
  EXPECT_TRUE(alike(got, GetParam().text)) << GetParam().page << " says\n"
                                           << GetParam().text << GetParam().of << " prints\n"
                                           << got;
}
INSTANTIATE_TEST_SUITE_P(Docs, Output, ::testing::ValuesIn(quotes("text")), name_of);

TEST(Docs, EveryExampleIsQuoted) {
  std::set<std::string> quoted;
  for (const char* language : {"cpp", "text"}) {
    for (const Quote& q : quotes(language)) quoted.insert(fs::path(q.of).stem().string());
  }
  for (const auto& entry : fs::directory_iterator(kSource / "examples")) {
    if (entry.path().extension() != ".cpp") continue;
    EXPECT_TRUE(quoted.count(entry.path().stem().string())) << entry.path();
  }
}

TEST(Docs, TheReadmesProgramLearnsAndWrites) {
  std::istringstream out(output_of("examples/train"));
  std::vector<double> losses;
  std::string word, line;
  for (int i = 0; i < 4; ++i) {
    double loss = 0;
    out >> word >> loss;
    EXPECT_EQ(word, "loss");
    losses.push_back(loss);
  }
  EXPECT_LT(losses.back(), 0.8 * losses.front());
  std::getline(out, line);
  std::getline(out, line);
  EXPECT_EQ(line.substr(0, 4), "The ");
}

}  // namespace
}  // namespace proteus
