// Private-suffix attention: one block takes the G query rows of one branch and kv head; its warps split the keys.
// grid (items, kv_heads), 128 threads, (16 + 4 * STAGES * 32) * 256 bytes of shared memory.
#ifndef STAGES
#define STAGES 2
#endif
#define WARPS 4
#define SLAB 16  // keys a warp takes at a time

extern "C" __global__ __launch_bounds__(WARPS * 32) void suffix_attention(
    const char* __restrict__ queries,  // [branches][heads][128] bf16
    const char* __restrict__ pool,     // one layer of KV
    const int* __restrict__ pages, const int* __restrict__ items,  // hw/kvtree.py, Step
    const int* __restrict__ parts, int heads, int hk, float scale,
    float* __restrict__ outputs,  // [parts][heads][128]
    float* __restrict__ sums) {   // [parts][heads], log2
  extern __shared__ __align__(1024) char memory[];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, head = blockIdx.y;
  const int* item = items + blockIdx.x * 8;
  const int branch = item[0], begin = item[2], end = item[3], slot = item[4];
  const int* list = pages + item[1];
  const int slabs = (end - begin + SLAB - 1) / SLAB;
  const int mine = slabs > warp ? (slabs - warp + WARPS - 1) / WARPS : 0;
  const u32 q_at = shared_at(memory), kv_at = q_at + 16 * ROW + warp * STAGES * 2 * SLAB * ROW;
  const u64 to_values = (u64)hk * PAGE * ROW;

  for (int i = tid; i < 16 * 16; i += WARPS * 32) {
    const int r = i >> 4, c = i & 15, ok = r < G;
    copy16(q_at + swizzled(r, c), queries + ((u64)branch * heads + head * G + (ok ? r : 0)) * ROW + c * 16, ok);
  }
  commit();
  wait<0>();
  __syncthreads();
  u32 q[8][4];
#pragma unroll
  for (int k = 0; k < 8; k++) load_matrices(q[k], q_at + swizzled(lane & 15, k * 2 + (lane >> 4)));

  auto fetch = [&](int turn) {
    const u32 to = kv_at + (turn % STAGES) * 2 * SLAB * ROW;
#pragma unroll
    for (int i = 0; i < SLAB / 2; i++) {
      const int r = i * 2 + (lane >> 4), c = lane & 15;
      const int key = begin + (warp + turn * WARPS) * SLAB + r, ok = key < end;
      const char* from = pool + token_at(list, ok ? key : begin, head, hk) + c * 16;
      copy16(to + swizzled(r, c), from, ok);
      copy16(to + SLAB * ROW + swizzled(r, c), from + to_values, ok);
    }
  };
#pragma unroll
  for (int turn = 0; turn < STAGES - 1; turn++) {
    if (turn < mine) fetch(turn);
    commit();
  }
  Rows state;
  for (int turn = 0; turn < mine; turn++) {
    wait<STAGES - 2>();
    __syncwarp();
    if (turn + STAGES - 1 < mine) fetch(turn + STAGES - 1);
    commit();
    const u32 at = kv_at + (turn % STAGES) * 2 * SLAB * ROW;
    attend<SLAB>(state, q, at, at + SLAB * ROW, end - begin - (warp + turn * WARPS) * SLAB, scale);
  }
  finish(state);
  wait<0>();
  __syncthreads();

  // The four warps' parts become one; the tiles' memory is free by now.
  float* tops = (float*)memory;             // [WARPS][G]
  float* totals = tops + WARPS * G;         // [WARPS][G]
  float* each = (float*)(memory + 16 * ROW);  // [WARPS][G][128]
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = (lane >> 2) + h * 8;
    if (row >= G) continue;
    if ((lane & 3) == 0) {
      tops[warp * G + row] = state.top[h];
      totals[warp * G + row] = state.sum[h];
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float2 pair = {state.out[i][2 * h], state.out[i][2 * h + 1]};
      *(float2*)(each + (warp * G + row) * D + i * 8 + (lane & 3) * 2) = pair;
    }
  }
  __syncthreads();
#pragma unroll
  for (int row = 0; row < G; row++) {
    float top = EMPTY, sum = 0.f, out = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w * G + row]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float weight = pow2((tops[w * G + row] - top) * scale);
      sum += weight * totals[w * G + row];
      out += weight * each[(w * G + row) * D + tid];
    }
    const u64 at = (u64)(parts[branch] + slot) * heads + head * G + row;
    outputs[at * D + tid] = sum > 0.f ? out / sum : 0.f;
    if (tid == 0) sums[at] = sum > 0.f ? __log2f(sum) + top * scale : EMPTY;
  }
}
