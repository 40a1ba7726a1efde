// Machine code of our own CUDA kernels. MLX compiles a kernel when it is first launched, one after
// the other and with headers of its own that take seconds to read. Here every kernel is compiled
// beside the others from the moment it is first named, with the few declarations that ours use, and
// put into files where MLX looks before it compiles: both sides run the same code. Whatever goes
// wrong here leaves the kernel to MLX.
#pragma once

#include <future>
#include <string>

#include "rust/cxx.h"

namespace offshoot {

class Program {
 public:
  // Begins to compile what MLX calls `name` from the text that MLX has written for it, or to read
  // it from a file; the same one for the same text, for ever. Null where there is no compiler, or
  // the text is not MLX's. Unless the text `waits` itself, it does so at the begin.
  static Program* begin(const std::string& name, const std::string& text, bool waits);

  // Whether kernels may be launched before the ones that they depend on have ended: they let the
  // next one begin and wait for the one before.
  static bool waits();

  // Waits; whether there is code.
  bool is_made();

  // Where the device has it, for launches with so much dynamic shared memory. On the thread that
  // owns the device.
  void* function(int shared_bytes);

 private:
  struct Code {
    std::string binary;
    std::string symbol;
  };
  explicit Program(std::string module_name) : module_name_(std::move(module_name)) {}
  Code find_or_compile(const std::string& name, std::string text, bool waits) const;

  std::string module_name_;
  std::shared_future<Code> code_;
  void* function_ = nullptr;
};

// Names the folder for machine code; it must be the user's own. Before the device is first used.
void keep_programs(rust::Str folder);

// Waits for all that this thread began.
void await_programs();

}  // namespace offshoot
