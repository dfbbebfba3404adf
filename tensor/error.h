// Typed errors. Every message says: function(arguments): argument: expected, got, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace proteus {

/// Base of everything Proteus throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Sizes that do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A dtype that the function does not take.
class DTypeError : public Error {
 public:
  using Error::Error;
};

/// A device that is absent, or tensors on different devices, or a kernel that a device lacks.
class DeviceError : public Error {
 public:
  using Error::Error;
};

/// An option or configuration value that makes no sense (exit code 2 of the command line).
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file that is missing, unreadable, malformed or not writable (exit code 3).
class FileError : public Error {
 public:
  using Error::Error;
};

/// An allocation or a disk that is full (exit code 4).
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

/// NaN or Inf where numbers were expected (exit code 5).
class NumericError : public Error {
 public:
  using Error::Error;
};

/// Autograd misuse: backward twice, a saved tensor that was changed, a wrong gradient shape.
class AutogradError : public Error {
 public:
  using Error::Error;
};

}  // namespace proteus
