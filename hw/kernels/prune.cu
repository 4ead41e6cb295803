// Prune and reclaim: dropped branches let go of their pages; pages nobody holds go on the free stack, in page order.
// release_pages: grid (rows), 128 threads. reclaim_pages: grid (1), 1024 threads.
extern "C" __global__ __launch_bounds__(128) void release_pages(
    const int* __restrict__ tables, int* __restrict__ lengths, int* __restrict__ refs,
    const int* __restrict__ rows,  // branches to drop
    u8* __restrict__ flags,        // [page_count up to a multiple of 8], 0 on entry; 1 where a page became free
    int stride) {
  const int row = rows[blockIdx.x], held = (lengths[row] + PAGE - 1) / PAGE;
  for (int i = threadIdx.x; i < held; i += 128) {
    const int page = tables[(u64)row * stride + i];
    if (atomicSub(refs + page, 1) == 1) flags[page] = 1;
  }
  __syncthreads();
  if (threadIdx.x == 0) lengths[row] = 0;
}

extern "C" __global__ __launch_bounds__(1024, 1) void reclaim_pages(
    u64* __restrict__ flags,  // eight pages a word; 0 on return
    int* __restrict__ free,   // the stack
    int* __restrict__ free_count, int words) {
  __shared__ int totals[32];
  const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  int base = *free_count;
  for (int at = 0; at < words; at += 1024) {
    const int word = at + tid;
    const u64 bits = word < words ? flags[word] : 0;
    const int mine = __popcll(bits);
    int upto = mine;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
      const int other = __shfl_up_sync(ALL, upto, i);
      if (lane >= i) upto += other;
    }
    if (lane == 31) totals[warp] = upto;
    __syncthreads();
    int before = 0, all = 0;
#pragma unroll
    for (int w = 0; w < 32; w++) {
      before += w < warp ? totals[w] : 0;
      all += totals[w];
    }
    int to = base + before + upto - mine;
    if (bits) {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (bits >> (8 * i) & 1) free[to++] = word * 8 + i;
      flags[word] = 0;
    }
    base += all;
    __syncthreads();
  }
  if (tid == 0) *free_count = base;
}
