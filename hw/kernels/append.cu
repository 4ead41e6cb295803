// KV append: each branch's new token goes behind its last one; the last layer's call also counts it.
// grid (branches), 256 threads.
extern "C" __global__ __launch_bounds__(256) void append_tokens(
    char* __restrict__ pool,          // one layer of KV
    const char* __restrict__ keys,    // [branches][hk][128] bf16
    const char* __restrict__ values,  // the same
    const int* __restrict__ tables,   // [branches][stride]
    int* __restrict__ lengths,        // [branches]
    int stride, int hk, int advance) {
  const int branch = blockIdx.x, length = lengths[branch];
  const int page = tables[(u64)branch * stride + length / PAGE];
  if (page < 0) return;
  for (int i = threadIdx.x; i < 2 * hk * 16; i += 256) {
    const int side = i / (hk * 16), head = i / 16 % hk, c = i & 15;
    const char* from = (side ? values : keys) + ((u64)branch * hk + head) * ROW + c * 16;
    char* to = pool + ((((u64)page * 2 + side) * hk + head) * PAGE + length % PAGE) * ROW + c * 16;
    *(uint4*)to = *(const uint4*)from;
  }
  __syncthreads();
  if (advance && threadIdx.x == 0) lengths[branch] = length + 1;
}
