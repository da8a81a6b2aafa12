// The pool of threads, and what the processor has.
#include "call.h"

namespace dynaconv {

ParallelFor parallel_for = nullptr;

}  // namespace dynaconv

using namespace dynaconv;

EXPORT void dynaconv_threads(ParallelFor function) { parallel_for = function; }

// The highest level of x86-64 instructions that this processor has: 2, 3 or 4.
EXPORT int32_t dynaconv_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512cd");
  return v4 ? 4 : v3 ? 3 : 2;
#else
  return 0;
#endif
}
