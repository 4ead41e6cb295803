// Shared-prefix attention: one block takes BM packed query rows of many branches through one range of shared keys.
// grid (items, kv_heads), BM * 2 threads, (BM + 4 * BN) * 256 bytes of shared memory.
#ifndef BM
#define BM 64
#endif
#ifndef BN
#define BN 64
#endif
#define THREADS (BM * 2)

extern "C" __global__ __launch_bounds__(THREADS) void prefix_attention(
    const char* __restrict__ queries,  // [branches][heads][128] bf16
    const char* __restrict__ pool,     // one layer of KV
    const int* __restrict__ order, const int* __restrict__ pages, const int* __restrict__ items,  // hw/kvtree.py, Step
    const int* __restrict__ parts, int heads, int hk, float scale,
    float* __restrict__ outputs,  // [parts][heads][128]
    float* __restrict__ sums) {   // [parts][heads], log2
  extern __shared__ __align__(1024) char memory[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, head = blockIdx.y;
  const int* item = items + blockIdx.x * 8;
  const int first = item[0], rows = item[1] * G, row0 = item[2], begin = item[4], end = item[5], slot = item[6];
  const int* list = pages + item[3];
  const int tiles = (end - begin + BN - 1) / BN;
  const u32 q_at = shared_at(memory), k_at = q_at + BM * ROW, v_at = k_at + 2 * BN * ROW;
  const u64 to_values = (u64)hk * PAGE * ROW;

  for (int i = tid; i < BM * 16; i += THREADS) {
    const int r = i >> 4, c = i & 15, row = row0 + r, ok = row < rows;
    const int branch = ok ? order[first + row / G] : 0, lane_head = ok ? row % G : 0;
    copy16(q_at + swizzled(r, c), queries + ((u64)branch * heads + head * G + lane_head) * ROW + c * 16, ok);
  }
  auto fetch = [&](int tile, int stage) {
#pragma unroll
    for (int i = tid; i < BN * 16; i += THREADS) {
      const int r = i >> 4, c = i & 15, key = begin + tile * BN + r, ok = key < end;
      const char* from = pool + token_at(list, ok ? key : begin, head, hk) + c * 16;
      const u32 to = stage * BN * ROW + swizzled(r, c);
      copy16(k_at + to, from, ok);
      copy16(v_at + to, from + to_values, ok);
    }
  };
  if (tiles > 0) fetch(0, 0);
  commit();

  Rows state;
  u32 q[8][4];
  for (int t = 0; t < tiles; t++) {
    if (t + 1 < tiles) fetch(t + 1, (t + 1) & 1);
    commit();
    wait<1>();
    __syncthreads();
    if (t == 0) {
#pragma unroll
      for (int k = 0; k < 8; k++) load_matrices(q[k], q_at + swizzled(warp * 16 + (lane & 15), k * 2 + (lane >> 4)));
    }
    const u32 stage = (t & 1) * BN * ROW;
    attend<BN>(state, q, k_at + stage, v_at + stage, end - begin - t * BN, scale);
    __syncthreads();
  }
  finish(state);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = row0 + warp * 16 + (lane >> 2) + h * 8;
    if (row >= rows) continue;
    const u64 at = (u64)(parts[order[first + row / G]] + slot) * heads + head * G + row % G;
    const float sum = state.sum[h], inverse = sum > 0.f ? 1.f / sum : 0.f;
    if ((lane & 3) == 0) sums[at] = sum > 0.f ? __log2f(sum) + state.top[h] * scale : EMPTY;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float2 pair = {state.out[i][2 * h] * inverse, state.out[i][2 * h + 1] * inverse};
      *(float2*)(outputs + at * D + i * 8 + (lane & 3) * 2) = pair;
    }
  }
}
