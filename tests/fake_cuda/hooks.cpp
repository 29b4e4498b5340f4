// Lets autograd run on fake CUDA tensors without a GPU: it asks CUDA whether a device has
// a context. The virtual table is copied, and this one function replaced.
#include <ATen/detail/CUDAHooksInterface.h>
#include <cstdlib>
#include <cstring>

static bool no_context(const void*, c10::DeviceIndex) { return false; }

extern "C" long patch_hooks() {
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  auto method = &at::AcceleratorHooksInterface::hasPrimaryContext;
  long raw;
  std::memcpy(&raw, &method, sizeof(raw));
  if (!(raw & 1)) return -1;  // not a virtual method of the Itanium ABI
  const long slot = (raw - 1) / sizeof(void*);
  void*** object = (void***)&hooks;
  void** old = *object;
  const int size = 256;
  void** table = (void**)std::malloc(size * sizeof(void*));
  std::memcpy(table, old - 2, size * sizeof(void*));
  table[2 + slot] = (void*)&no_context;
  *object = table + 2;
  return slot;
}
