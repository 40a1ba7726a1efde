// NVRTC, which libmlx has loaded, on threads. See program.h.
//
// MLX's side of the agreement (mlx/backend/cuda/jit_module.cpp): in the folder that
// MLX_PTX_CACHE_DIR names, NAME_HASH.ptx holds the code, and NAME_HASH.txt for each kernel its name
// and its symbol, a tab between them. HASH is that of the text, in hexadecimal digits.
#include "mlx-sys/src/program.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <mutex>
#include <semaphore>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <vector>

#include "mlx-sys/src/driver.h"
#include "mlx/mlx.h"

#ifdef __linux__
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace offshoot {

namespace {

namespace fs = std::filesystem;
namespace mx = mlx::core;

// What MLX puts before the text of a kernel.
constexpr std::string_view heavy = R"(
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

)";

// What our kernels use of it.
constexpr std::string_view light = R"(
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define INFINITY __int_as_float(0x7f800000)
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
namespace cooperative_groups {}
namespace mlx::core::cu {
template <typename T>
struct Ten {
  T at[10];
  __host__ __device__ const T& operator[](int i) const { return at[i]; }
};
using Shape = Ten<int>;
using Strides = Ten<long long>;
}
)";

// At the begin of a kernel that does not wait itself. Without effect where it is launched as usual.
constexpr std::string_view waiting = R"(
asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
asm volatile("griddepcontrol.wait;" ::: "memory");
)";

constexpr size_t longest_name = 245;

// Empty: nothing is kept.
std::string& folder() {
  static auto* folder = new std::string;
  return *folder;
}

#ifdef __linux__

// As much of NVRTC as is needed.
struct Compiler {
  int (*create)(void**, const char*, const char*, int, const char* const*, const char* const*);
  int (*add_name)(void*, const char*);
  int (*compile)(void*, int, const char* const*);
  int (*symbol)(void*, const char*, const char**);
  int (*binary_size)(void*, size_t*);
  int (*binary)(void*, char*);
  int (*log_size)(void*, size_t*);
  int (*log)(void*, char*);
  int (*destroy)(void**);
  std::vector<std::string> options;
  bool is_there = false;
  bool has_waits = false;

  Compiler() {
    void* library = nullptr;
    for (auto name : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
      if (!library) library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    }
    if (!library) return;
    is_there = find(library, "nvrtcCreateProgram", create) &&
               find(library, "nvrtcAddNameExpression", add_name) &&
               find(library, "nvrtcCompileProgram", compile) &&
               find(library, "nvrtcGetLoweredName", symbol) &&
               find(library, "nvrtcGetCUBINSize", binary_size) &&
               find(library, "nvrtcGetCUBIN", binary) &&
               find(library, "nvrtcGetProgramLogSize", log_size) &&
               find(library, "nvrtcGetProgramLog", log) &&
               find(library, "nvrtcDestroyProgram", destroy) && add_options();
  }

 private:
  template <typename F>
  static bool find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    return function != nullptr;
  }

  // The options that MLX compiles with. False where its headers are not found.
  bool add_options() {
    const auto& facts = mx::device_info(mx::Device::gpu);
    auto number = [&](const char* key) { return std::get<size_t>(facts.at(key)); };
    auto major = number("compute_capability_major"), minor = number("compute_capability_minor");
    has_waits = major >= 9;
    options = {"--device-as-default-execution-space",
               "--gpu-architecture=sm_" + std::to_string(major) + std::to_string(minor) +
                   (major >= 9 ? "a" : "")};
    Dl_info library;
    if (!dladdr(dlsym(RTLD_DEFAULT, "_ZN3mlx4core7versionEv"), &library)) return false;
    auto root = fs::path(library.dli_fname).parent_path().parent_path();
    options.push_back("--include-path=" + (root / "include" / "cccl").string());
    std::vector<fs::path> places{root.parent_path() / "nvidia" / "cu13" / "include",
                                 root.parent_path() / "nvidia" / "cuda_runtime" / "include"};
    for (auto name : {"CUDA_HOME", "CUDA_PATH"}) {
      if (auto home = std::getenv(name)) places.push_back(fs::path(home) / "include");
    }
    places.push_back("/usr/local/cuda/include");
    for (const auto& place : places) {
      if (std::error_code error; !fs::exists(place / "cuda_bf16.h", error)) continue;
      options.push_back("--include-path=" + place.string());
      return true;
    }
    return false;
  }
};

const Compiler& compiler() {
  static const Compiler compiler;
  return compiler;
}

std::string whole(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return file ? std::move(text).str() : std::string();
}

// Whole or not at all.
bool write(const fs::path& path, const std::string& text) {
  auto part = path;
  part += "." + std::to_string(getpid()) + ".part";
  std::ofstream file(part, std::ios::binary);
  file << text;
  file.close();
  std::error_code error;
  if (file) fs::rename(part, path, error);
  if (!file || error) fs::remove(part, error);
  return file && !error;
}

#endif

// Those that a thread has begun and not waited for.
thread_local std::vector<Program*> begun;

}  // namespace

#ifdef __linux__

Program* Program::begin(const std::string& name, const std::string& text, bool waits) {
  if (!text.starts_with(heavy) || !compiler().is_there) return nullptr;
  std::ostringstream module_name;
  module_name << name << '_' << std::hex << std::hash<std::string>{}(text);
  if (module_name.str().size() > longest_name) return nullptr;
  static auto* known = new std::unordered_map<std::string, Program*>;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  auto [place, is_new] = known->try_emplace(module_name.str());
  if (!is_new) return place->second;
  auto* program = place->second = new Program(module_name.str());
  std::packaged_task<Code()> task([program, name, text, waits] {
    static std::counting_semaphore<> free(std::max(1u, std::thread::hardware_concurrency()));
    free.acquire();
    auto code = program->find_or_compile(name, text, waits);
    free.release();
    return code;
  });
  program->code_ = task.get_future().share();
  std::thread(std::move(task)).detach();
  begun.push_back(program);
  return program;
}

Program::Code Program::find_or_compile(const std::string& name, std::string text,
                                       bool waits) const {
  const auto kernel = "mlx::core::cu::" + name;
  const auto place = folder().empty() ? fs::path() : fs::path(folder()) / module_name_;
  auto file = [&](const char* ending) { return fs::path(place.string() + ending); };
  if (!place.empty()) {
    Code code{whole(file(".ptx")), whole(file(".txt"))};
    auto& line = code.symbol;
    line.erase(0, std::min(line.size(), kernel.size() + 1));
    if (auto end = line.find('\n'); end != std::string::npos) line.resize(end);
    if (!code.binary.empty() && !code.symbol.empty()) return code;
  }
  const auto& c = compiler();
  text.replace(0, heavy.size(), light);
  if (c.has_waits && !waits) {
    auto body = text.find(") {\n", text.find("__global__ void " + name + "("));
    if (body == std::string::npos) return {};
    text.insert(body + 4, waiting);
  }
  std::vector<const char*> options;
  for (const auto& option : c.options) options.push_back(option.c_str());
  void* program = nullptr;
  auto file_name = module_name_ + ".cu";
  if (c.create(&program, text.c_str(), file_name.c_str(), 0, nullptr, nullptr) != 0) return {};
  Code code;
  const char* symbol = nullptr;
  size_t n_bytes = 0;
  c.add_name(program, kernel.c_str());
  if (c.compile(program, options.size(), options.data()) == 0 &&
      c.symbol(program, kernel.c_str(), &symbol) == 0 && c.binary_size(program, &n_bytes) == 0) {
    code.symbol = symbol;
    code.binary.resize(n_bytes);
    c.binary(program, code.binary.data());
  } else {
    c.log_size(program, &n_bytes);
    std::string log(n_bytes, '\0');
    c.log(program, log.data());
    std::cerr << name + " is left to MLX's compiler: " + log.substr(0, log.find('\n')) + "\n";
  }
  c.destroy(&program);
  // MLX looks for the code first and expects the names then.
  if (!code.binary.empty() && !place.empty() &&
      write(file(".txt"), kernel + "\t" + code.symbol + "\n")) {
    write(file(".ptx"), code.binary);
  }
  return code;
}

void keep_programs(rust::Str name) {
  // Code that was made of other texts must not be taken for that of these.
  std::ostringstream made_with;
  made_with << std::hex << std::hash<std::string>{}(std::string(light) + std::string(waiting));
  auto path = std::string(name.data(), name.size()) + "-" + made_with.str();
  std::error_code error;
  fs::create_directories(path, error);
  if (!fs::is_directory(path, error)) return;
  folder() = path;
  setenv("MLX_PTX_CACHE_DIR", path.c_str(), /*replace=*/1);
}

#else

Program* Program::begin(const std::string&, const std::string&, bool) { return nullptr; }
Program::Code Program::find_or_compile(const std::string&, std::string, bool) const { return {}; }
void keep_programs(rust::Str) {}

#endif

#ifdef __linux__
bool Program::waits() { return compiler().has_waits; }
#else
bool Program::waits() { return false; }
#endif

bool Program::is_made() { return !code_.get().binary.empty(); }

void* Program::function(int shared_bytes) {
  if (function_) return function_;
  const auto& code = code_.get();
  void* module = nullptr;
  check(driver().load_module(&module, code.binary.data()), "a kernel cannot be loaded");
  check(driver().function(&function_, module, code.symbol.c_str()), "a kernel cannot be found");
  constexpr int max_dynamic_shared_bytes = 8, without_asking = 48000;
  if (shared_bytes > without_asking) {
    check(driver().set_attribute(function_, max_dynamic_shared_bytes, shared_bytes),
          "a kernel cannot have its shared memory");
  }
  return function_;
}

void await_programs() {
  for (auto* program : begun) program->is_made();
  begun.clear();
}

}  // namespace offshoot
