// A small judge of pages and SVG files: tags that nest, attributes that are quoted and come once,
// references that are known, ids that are unique, and nothing that would be loaded.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace proteus::testing {

class MarkupCheck {
 public:
  /// What is wrong with `text`, or an empty string.
  static std::string fault(std::string_view text) {
    MarkupCheck check(text);
    check.run();
    return check.fault_;
  }

 private:
  explicit MarkupCheck(std::string_view text) : text_(text) {}

  void fail(const std::string& what) {
    if (!fault_.empty()) return;
    fault_ = what + " near: " + std::string(text_.substr(at_ > 60 ? at_ - 60 : 0, 140));
  }

  bool skip(std::string_view begin, std::string_view end) {
    if (!text_.substr(at_).starts_with(begin)) return false;
    const std::size_t found = text_.find(end, at_);
    if (found == std::string_view::npos) {
      fail("no end of " + std::string(begin));
      at_ = text_.size();
    } else {
      at_ = found + end.size();
    }
    return true;
  }

  void run() {
    while (fault_.empty() && at_ < text_.size()) {
      if (text_[at_] != '<') {
        character();
      } else if (!skip("<!DOCTYPE", ">") && !skip("<?xml", "?>")) {
        tag();
      }
    }
    if (fault_.empty() && !open_.empty()) fail("<" + open_.back() + "> is not closed");
  }

  void character() {
    const auto byte = static_cast<unsigned char>(text_[at_]);
    if (text_[at_] == '&') {
      reference();
    } else if (byte < 0x20 && byte != '\n' && byte != '\t') {
      fail("a control character");
    }
    ++at_;
  }

  void reference() {
    for (const std::string_view known : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"}) {
      if (text_.substr(at_).starts_with(known)) return;
    }
    fail("an unknown reference");
  }

  std::string name() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 ||
                                  text_[at_] == '-' || text_[at_] == ':')) {
      ++at_;
    }
    if (at_ == begin) fail("expected a name");
    return std::string(text_.substr(begin, at_ - begin));
  }

  void tag() {
    ++at_;
    if (at_ < text_.size() && text_[at_] == '/') {
      ++at_;
      const std::string closed = name();
      if (open_.empty() || open_.back() != closed) return fail("</" + closed + "> closes another");
      open_.pop_back();
      return expect('>');
    }
    const std::string opened = name();
    std::set<std::string> attributes;
    while (fault_.empty() && at_ < text_.size() && text_[at_] == ' ') {
      ++at_;
      const std::string key = name();
      if (!attributes.insert(key).second) fail("attribute twice: " + key);
      attribute(key);
    }
    if (at_ < text_.size() && text_[at_] == '/') {
      ++at_;
      return expect('>');
    }
    expect('>');
    open_.push_back(opened);
    if (opened == "script" || opened == "style") {
      const std::size_t end = text_.find("</" + opened + ">", at_);
      if (end == std::string_view::npos) return fail("no end of <" + opened + ">");
      if (text_.substr(at_, end - at_).find("url(") != std::string_view::npos) fail("url(");
      at_ = end;
    }
  }

  void attribute(const std::string& key) {
    expect('=');
    expect('"');
    const std::size_t begin = at_;
    while (fault_.empty() && at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '<') fail("'<' in an attribute");
      character();
    }
    const std::string value(text_.substr(begin, at_ - begin));
    expect('"');
    if (key == "id" && !ids_.insert(value).second) fail("id twice: " + value);
    const bool loads = key == "src" || key == "srcset" || key == "data" || key == "action" ||
                       key == "xlink:href" || key.starts_with("on");
    if (loads || (key == "href" && !value.starts_with("#"))) fail("loads something: " + key);
  }

  void expect(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return fail(std::string("expected ") + c);
    ++at_;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::vector<std::string> open_;
  std::set<std::string> ids_;
  std::string fault_;
};

}  // namespace proteus::testing
