// The driver's functions, by their names in its library. See driver.h.
#include "mlx-sys/src/driver.h"

#include <stdexcept>
#include <string>

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace offshoot {

#ifdef __linux__

template <typename F>
static void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (!function) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
}

Driver::Driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  if (!library) throw std::runtime_error("no CUDA driver is loaded");
  find(library, "cuCtxGetCurrent", context);
  find(library, "cuCtxSetCurrent", set_context);
  find(library, "cuMemHostAlloc", new_pinned);
  find(library, "cuMemHostRegister_v2", pin);
  find(library, "cuMemHostUnregister", unpin);
  find(library, "cuMemHostGetDevicePointer_v2", device_address);
  find(library, "cuStreamCreateWithPriority", new_stream);
  find(library, "cuMemcpyDtoHAsync_v2", copy_out);
  find(library, "cuStreamSynchronize", wait);
  find(library, "cuModuleLoadData", load_module);
  find(library, "cuModuleGetFunction", function);
  find(library, "cuFuncSetAttribute", set_attribute);
  find(library, "cuGraphCreate", new_graph);
  find(library, "cuGraphAddKernelNode_v2", add_kernel);
  add_edges = reinterpret_cast<decltype(add_edges)>(dlsym(library, "cuGraphAddDependencies_v2"));
  find(library, "cuGraphInstantiateWithFlags", instantiate);
  find(library, "cuGraphExecKernelNodeSetParams_v2", change_kernel);
  find(library, "cuGraphLaunch", launch);
  find(library, "cuGraphDestroy", drop_graph);
  find(library, "cuGraphExecDestroy", drop_executable);
}

#else

Driver::Driver() { throw std::runtime_error("CUDA is used on Linux only"); }

#endif

const Driver& driver() {
  static const Driver driver;
  return driver;
}

void check(int status, const char* what) {
  if (status == 0) return;
  throw std::runtime_error(std::string(what) + ": CUDA error " + std::to_string(status));
}

}  // namespace offshoot
