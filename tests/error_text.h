// The text of an exception of an expected type, so that tests can match messages.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <string>

namespace proteus::testing {

/// Runs `fn`; fails the test unless it throws a `Wanted`.
template <class Wanted, class F>
std::string message_of(F&& fn) {
  try {
    fn();
  } catch (const Wanted& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another type of exception: " << error.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace proteus::testing
