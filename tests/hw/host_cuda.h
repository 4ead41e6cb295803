// Enough of CUDA to run the kernels' own source on a CPU: every thread of a block a fiber, warps in step at collectives.
// Built with -DLATE, asynchronous copies land only when they are waited for; without it, at once.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <functional>
#include <utility>
#include <vector>
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n)
#define __shared__ __attribute__((section("block_memory"))) static
struct Index { int x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static Index threadIdx, blockIdx;
// What a kernel declares __shared__ lies in a section of its own, so that every block finds it full of garbage.
extern "C" char __start_block_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_block_memory[] __attribute__((weak, visibility("hidden")));
alignas(1024) static char memory[1 << 18];

struct Copy { unsigned to; const void* from; int ok; };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  std::vector<std::vector<Copy>> groups;
  bool done;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::function<void()> body;
static int arrived[33], round_of[33], block_threads, progress;
// 0: all threads in turn. 1, 2: one warp as far as it gets before the next, from the first or from the last. 3 and more:
// warps picked at random (the seed), each as far as it gets: what one warp may do before another has done its part.
static int schedule;
// The barrier or wait (by number, in the order of the source) that is left out, where the source was numbered.
static int left_out = -1;
extern "C" void set_knobs(int order, int barrier) { schedule = order, left_out = barrier; }

static void pause_here() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }
static void meet(int place, int count) {
  const int mine = round_of[place];
  if (++arrived[place] == count) arrived[place] = 0, round_of[place]++;
  while (round_of[place] == mine) pause_here();
  progress++;
}
static void __syncthreads() { meet(32, block_threads); }
static void __syncwarp() { meet(threadIdx.x >> 5, 32); }
template <class T> static const T* exchange(const T& mine) {
  static T all[32][2][32];
  static int side[1024];
  const int warp = threadIdx.x >> 5;
  T* const here = all[warp][side[threadIdx.x] ^= 1];
  here[threadIdx.x & 31] = mine;
  __syncwarp();
  return here;
}
template <class T> static T __shfl_xor_sync(unsigned, T v, int mask) { return exchange(v)[(threadIdx.x & 31) ^ mask]; }
template <class T> static T __shfl_up_sync(unsigned, T v, int by) {
  const int lane = threadIdx.x & 31;
  return exchange(v)[lane < by ? lane : lane - by];
}
template <class T, class U> static T atomicAdd(T* at, U v) { T old = *at; *at += v; return old; }
static int atomicSub(int* at, int v) { int old = *at; *at -= v; return old; }
static int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
static int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
#define __log2f log2f

// What stands for the inline assembly of common.cu.
static unsigned shared_at(const void* p) { return (unsigned)((const char*)p - memory); }
static void land(const Copy& c) { c.ok ? (void)memcpy(memory + c.to, c.from, 16) : (void)memset(memory + c.to, 0, 16); }
static void copy16(unsigned to, const void* from, int ok) {
  if (to % 16 || (size_t)from % 16) abort();
  const Copy c = {to, from, ok};
#ifdef LATE
  fibers[threadIdx.x].groups.back().push_back(c);
#else
  land(c);
#endif
}
static void commit() { fibers[threadIdx.x].groups.emplace_back(); }
template <int left> static void wait() {
  auto& groups = fibers[threadIdx.x].groups;
  while ((int)groups.size() > left + 1) {
    for (const Copy& c : groups.front()) land(c);
    groups.erase(groups.begin());
  }
}
static unsigned short half_at(unsigned at) { unsigned short v; memcpy(&v, memory + at, 2); return v; }
static void load_matrices(unsigned* r, unsigned at) {
  const unsigned* rows = exchange(at);
  const int lane = threadIdx.x & 31;
  for (int m = 0; m < 4; m++) memcpy(r + m, memory + rows[8 * m + lane / 4] + 4 * (lane % 4), 4);
}
static void load_transposed(unsigned* r, unsigned at) {
  const unsigned* rows = exchange(at);
  const int lane = threadIdx.x & 31, i = 2 * (lane % 4);
  for (int m = 0; m < 4; m++)
    r[m] = half_at(rows[8 * m + i] + 2 * (lane / 4)) | (unsigned)half_at(rows[8 * m + i + 1] + 2 * (lane / 4)) << 16;
}
struct Operands { unsigned a[4], b[2]; };
static float low(unsigned x) { return __int_as_float((int)(x << 16)); }
static float high(unsigned x) { return __int_as_float((int)(x & 0xffff0000u)); }
static void mma(float* c, const unsigned* a, unsigned b0, unsigned b1) {
  const Operands* all = exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = threadIdx.x & 31;
  for (int e = 0; e < 4; e++) {
    const int row = lane / 4, column = 2 * (lane % 4) + (e & 1);
    for (int k = 0; k < 4; k++)
      for (int far = 0; far < 2; far++) {
        const unsigned x = all[row * 4 + k].a[far * 2 + (e >> 1)], y = all[column * 4 + k].b[far];
        c[e] += low(x) * low(y) + high(x) * high(y);
      }
  }
}
static unsigned rounded(float x) {
  const unsigned b = (unsigned)__float_as_int(x);
  return (b + 0x7fff + (b >> 16 & 1)) >> 16;
}
static unsigned pack(float lower, float upper) { return rounded(lower) | rounded(upper) << 16; }
static float pow2(float x) { return exp2f(x); }

static void enter() {
  body();
  fibers[threadIdx.x].done = true;
  pause_here();
}
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** p, std::index_sequence<I...>) { kernel(*(A*)p[I]...); }
template <class... A> static void run(void (*kernel)(A...), int x, int y, int threads, void** p) {
  blockIdx = {x, y};
  block_threads = threads;
  body = [=] { call(kernel, p, std::index_sequence_for<A...>{}); };
  memset(memory, 0xff, sizeof memory);
  if (__start_block_memory) memset(__start_block_memory, 0xff, __stop_block_memory - __start_block_memory);
  memset(arrived, 0, sizeof arrived);
  if (fibers.size() != (size_t)threads) fibers = std::vector<Fiber>(threads);
  for (Fiber& f : fibers) {
    f.stack.resize(1 << 16);
    f.groups.assign(1, {});
    f.done = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    makecontext(&f.context, enter, 0);
  }
  const int warps = (threads + 31) / 32;
  int left = threads;
  const auto step = [&](int i) {
    if (fibers[i].done) return;
    threadIdx = {i, 0};
    swapcontext(&scheduler, &fibers[i].context);
    left -= fibers[i].done;
    progress += fibers[i].done;
  };
  srand(schedule + x + 1000 * y);
  while (left) {
    if (!schedule) {
      for (int i = 0; i < threads; i++) step(i);
      continue;
    }
    for (int w = 0; w < warps; w++) {
      const int warp = schedule == 1 ? w : schedule == 2 ? warps - 1 - w : rand() % warps;
      do {
        progress = 0;
        for (int i = warp * 32; i < threads && i < warp * 32 + 32; i++) step(i);
      } while (progress);
    }
  }
}
