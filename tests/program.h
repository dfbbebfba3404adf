// The program `proteus` as others script it: started in a folder, with its output in files there.
// PROTEUS_PROGRAM is its path.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include "tests/temporary_folder.h"

namespace proteus::testing {

using Args = std::vector<std::string>;
/// A model that trains in no time.
inline const Args kSmall = {"--layers", "1",         "--width", "32",     "--batch",
                            "2",        "--threads", "1",       "--quiet"};

struct Outcome {
  int code = -1;  ///< the exit code, or 128 + the signal that ended it
  std::string out;
  std::string err;
};

class Program {
 public:
  /// `prepare` runs in the new process: limits, another standard input.
  Program(const TemporaryFolder& folder, Args args, const std::function<void()>& prepare = {})
      : folder_(folder) {
    args.insert(args.begin(), PROTEUS_PROGRAM);
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    const std::string out = folder.file("stdout");
    const std::string err = folder.file("stderr");
    pid_ = ::fork();
    if (pid_ != 0) return;
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    ::dup2(::open(out.c_str(), flags, 0600), 1);
    ::dup2(::open(err.c_str(), flags, 0600), 2);
    if (prepare) prepare();
    if (::chdir(folder.path().c_str()) == 0) ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  void interrupt() const { ::kill(pid_, SIGINT); }
  void kill() const { ::kill(pid_, SIGKILL); }

  Outcome wait() const {
    int status = 0;
    ::waitpid(pid_, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            folder_.read("stdout"), folder_.read("stderr")};
  }

 private:
  const TemporaryFolder& folder_;
  pid_t pid_ = -1;
};

inline Outcome run(const TemporaryFolder& folder, const Args& args,
                   const std::function<void()>& prepare = {}) {
  return Program(folder, args, prepare).wait();
}

inline Args joined(Args args, const Args& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

inline std::string some_text(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += "To be, or not to be: that is the question.\n";
  return text;
}

}  // namespace proteus::testing
