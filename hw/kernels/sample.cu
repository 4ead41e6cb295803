// Sampling: Gumbel-max within the top-p nucleus, one block a row; noise is Philox of (seed, step, row, token).
// grid (rows), 1024 threads. Setting: LOGITS_BF16 (1: logits are bf16, 0: float32).
#ifndef LOGITS_BF16
#define LOGITS_BF16 0
#endif
#define QUANTUM 32768.f      // likelihood is compared in steps of 1 / QUANTUM nat below the best token
#define LAST_LEVEL 1048575u  // 32 nats and more below: the last step
#define MASS 1099511627776.f  // a probability mass of 1 (of the best token) as an integer: sums do not depend on order

__device__ __forceinline__ void read4(const char* row, int block, int vocabulary, float* x) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int token = block * 4 + i;
    x[i] = __int_as_float(0xff800000);
    if (token < vocabulary) {
#if LOGITS_BF16
      x[i] = __int_as_float((int)((u32)((const unsigned short*)row)[token] << 16));
#else
      x[i] = ((const float*)row)[token];
#endif
    }
  }
}

__device__ __forceinline__ u32 level_of(float below) { return (u32)fminf(below * QUANTUM, (float)LAST_LEVEL); }

__device__ __forceinline__ void philox(u32* c, u32 k0, u32 k1) {
#pragma unroll
  for (int i = 0; i < 10; i++) {
    const u32 h0 = __umulhi(c[0], 0xD2511F53u), l0 = c[0] * 0xD2511F53u;
    const u32 h1 = __umulhi(c[2], 0xCD9E8D57u), l1 = c[2] * 0xCD9E8D57u;
    c[0] = h1 ^ c[1] ^ k0;
    c[1] = l1;
    c[2] = h0 ^ c[3] ^ k1;
    c[3] = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// The first of 1024 bins at which the mass so far reaches `target`, and the mass before it; for all threads.
__device__ __forceinline__ u32 find_bin(const u64* bins, u64* totals, u64* found, u64 target, u64* before) {
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  const u64 mine = bins[tid];
  u64 upto = mine;
#pragma unroll
  for (int i = 1; i < 32; i <<= 1) {
    const u64 other = __shfl_up_sync(ALL, upto, i);
    if (lane >= i) upto += other;
  }
  if (lane == 31) totals[warp] = upto;
  __syncthreads();
  for (int w = 0; w < warp; w++) upto += totals[w];
  if (upto >= target && upto - mine < target) {
    found[0] = (u64)tid;
    found[1] = upto - mine;
  }
  __syncthreads();
  *before = found[1];
  return (u32)found[0];
}

extern "C" __global__ __launch_bounds__(1024, 1) void sample_tokens(
    const char* __restrict__ logits,  // [rows][vocabulary]
    int vocabulary, float inverse_temperature, float top_p,
    const u32* __restrict__ key,  // seed (low, high), step: in memory, so that a captured graph can move on
    int* __restrict__ tokens) {   // [rows]
  __shared__ u64 bins[1024], totals[32], found[2];
  __shared__ float tops[32];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, blocks = (vocabulary + 3) / 4;
  const char* row = logits + (u64)blockIdx.x * vocabulary * (LOGITS_BF16 ? 2 : 4);
  float x[4];

  float top = __int_as_float(0xff800000);
  for (int b = tid; b < blocks; b += 1024) {
    read4(row, b, vocabulary, x);
    top = fmaxf(top, fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])));
  }
#pragma unroll
  for (int i = 16; i; i >>= 1) top = fmaxf(top, __shfl_xor_sync(ALL, top, i));
  if (lane == 0) tops[warp] = top;
  __syncthreads();
  top = tops[lane];
#pragma unroll
  for (int i = 16; i; i >>= 1) top = fmaxf(top, __shfl_xor_sync(ALL, top, i));

  u32 cut = LAST_LEVEL;
  if (top_p < 1.f) {
    u64 target = 0;
    u32 high = 0;
#pragma unroll 1
    for (int digit = 0; digit < 2; digit++) {
      bins[tid] = 0;
      __syncthreads();
      for (int b = tid; b < blocks; b += 1024) {
        read4(row, b, vocabulary, x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float below = (top - x[i]) * inverse_temperature;
          const u32 level = level_of(below);
          const u64 mass = (u64)(expf(-below) * MASS);
          if (mass && (digit == 0 || level >> 10 == high)) atomicAdd(bins + (digit ? level & 1023 : level >> 10), mass);
        }
      }
      __syncthreads();
      if (digit == 0) {
        u64 sum = bins[tid];
#pragma unroll
        for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(ALL, sum, i);
        if (lane == 0) totals[warp] = sum;
        __syncthreads();
        sum = totals[lane];
#pragma unroll
        for (int i = 16; i; i >>= 1) sum += __shfl_xor_sync(ALL, sum, i);
        target = (u64)((double)top_p * (double)sum);
        if (target == 0) target = 1;
        __syncthreads();
      }
      u64 before;
      const u32 bin = find_bin(bins, totals, found, target, &before);
      target -= before;
      if (digit == 0) high = bin;
      else cut = high << 10 | bin;
      __syncthreads();
    }
  }

  u64 best = 0;
  const u32 seed0 = key[0], seed1 = key[1], step = key[2];
  for (int b = tid; b < blocks; b += 1024) {
    read4(row, b, vocabulary, x);
    u32 words[4] = {(u32)b, blockIdx.x, step, 0u};
    philox(words, seed0, seed1);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float below = (top - x[i]) * inverse_temperature;
      const float uniform = ((float)(words[i] >> 9) + 0.5f) * 1.1920928955078125e-7f;
      const float score = -logf(-logf(uniform)) - below;
      const u32 bits = (u32)__float_as_int(score);
      const u32 rank = bits >> 31 ? ~bits : bits | 0x80000000u;
      const u64 entry = (u64)rank << 32 | (u32)~(b * 4 + i);
      if (b * 4 + i < vocabulary && level_of(below) <= cut && entry > best) best = entry;
    }
  }
#pragma unroll
  for (int i = 16; i; i >>= 1) {
    const u64 other = __shfl_xor_sync(ALL, best, i);
    best = other > best ? other : best;
  }
  __syncthreads();
  if (lane == 0) totals[warp] = best;
  __syncthreads();
  best = totals[lane];
#pragma unroll
  for (int i = 16; i; i >>= 1) {
    const u64 other = __shfl_xor_sync(ALL, best, i);
    best = other > best ? other : best;
  }
  if (tid == 0) tokens[blockIdx.x] = (int)~(u32)best;
}
