// A stub of NVIDIA's driver library: cuLaunchKernelEx records the arguments that Triton's launcher passes. The other
// functions that the launcher needs do nothing. test_launcher.py appends them.
#include <cuda.h>
#include <string.h>

int n_parameters, bytes_of[64];  // the kernel's parameters and their sizes, which the test sets
struct { long long grid[3], threads, shared, stream, function, cooperative, parameters[64]; } launched;

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  memset(&launched, 0, sizeof(launched));
  launched.grid[0] = config->gridDimX, launched.grid[1] = config->gridDimY, launched.grid[2] = config->gridDimZ;
  launched.threads = config->blockDimX, launched.shared = config->sharedMemBytes;
  launched.stream = (long long)config->hStream, launched.function = (long long)function;
  for (unsigned i = 0; i < config->numAttrs; i++)
    if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) launched.cooperative = config->attrs[i].value.cooperative;
  for (int i = 0; i < n_parameters; i++) memcpy(launched.parameters + i, parameters[i], bytes_of[i]);
  return CUDA_SUCCESS;
}
