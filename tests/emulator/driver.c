/* A CUDA driver that runs nothing and prints the calls that launch a kernel; cuda.bindings loads it as libcuda.so.1. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef int Result;

static void *context;

Result cuCtxGetCurrent(void **current) { return *current = context, 0; }
Result cuCtxSetCurrent(void *given) { return context = given, 0; }
Result cuDevicePrimaryCtxRetain(void **found, int device) { return *found = (void *)7, printf("retain %d\n", device), 0; }
Result cuDriverGetVersion(int *version) { return *version = 13000, 0; }
Result cuModuleLoadData(void **module, const char *image) { return *module = (void *)9, printf("load %.3s\n", image + 1), 0; }

Result cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)11;
    return printf("function %s\n", name), strcmp(name, "missing") ? 0 : 500;
}

Result cuFuncSetAttribute(void *function, int attribute, int value) { return printf("attribute %d %d\n", attribute, value), 0; }
Result cuGetErrorString(int error, const char **words) { return *words = "named symbol not found", 0; }

Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned one, unsigned one_too,
                      unsigned shared, void *stream, void **arguments, void **extra) {
    printf("launch %u %u %u, %u threads, %u bytes, stream %p: %d %g %p\n", x, y, z, threads, shared, stream,
           *(int *)arguments[0], **(float **)arguments[1], *(void **)arguments[2]);
    return 0;
}

static Result nothing(void) { return 0; }

Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
    *function = (void *)nothing;
    if (found) *found = 0;
#define OFFER(known) if (!strcmp(name, #known)) *function = (void *)known;
    OFFER(cuCtxGetCurrent) OFFER(cuCtxSetCurrent) OFFER(cuDevicePrimaryCtxRetain) OFFER(cuDriverGetVersion)
    OFFER(cuModuleLoadData) OFFER(cuModuleGetFunction) OFFER(cuFuncSetAttribute) OFFER(cuGetErrorString)
    OFFER(cuLaunchKernel)
    return 0;
}

Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
