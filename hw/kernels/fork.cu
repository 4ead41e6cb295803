// Copy-on-write fork: children share the parent's full pages and get a copy of the partial one, in all layers at once.
// grid (layers * 2 * hk, children), 128 threads. No child is a parent in the same call.
extern "C" __global__ __launch_bounds__(128) void fork_branches(
    char* __restrict__ pools,  // [layers][page_count][2][hk][PAGE][128] bf16
    int* tables,               // [branches][stride]
    int* lengths,              // [branches]
    int* __restrict__ refs,    // [page_count]
    const int* __restrict__ parents, const int* __restrict__ children, const int* __restrict__ fresh,  // [children]
    int stride, int page_count, int hk) {
  const int parent = parents[blockIdx.y], child = children[blockIdx.y], to_page = fresh[blockIdx.y];
  const int length = lengths[parent], whole = length / PAGE, rest = length % PAGE;
  const int* from_table = tables + (u64)parent * stride;
  if (rest) {
    const u64 layer = blockIdx.x / (2 * hk), part = blockIdx.x % (2 * hk);
    const u64 from_page = from_table[whole];
    const uint4* from = (const uint4*)(pools + ((layer * page_count + from_page) * 2 * hk + part) * PAGE * ROW);
    uint4* to = (uint4*)(pools + ((layer * page_count + to_page) * 2 * hk + part) * PAGE * ROW);
    for (int i = threadIdx.x; i < rest * 16; i += 128) to[i] = from[i];
  }
  if (blockIdx.x) return;
  int* to_table = tables + (u64)child * stride;
  for (int i = threadIdx.x; i < whole; i += 128) {
    const int page = from_table[i];
    to_table[i] = page;
    atomicAdd(refs + page, 1);
  }
  if (threadIdx.x == 0) {
    lengths[child] = length;
    if (rest) {
      to_table[whole] = to_page;
      refs[to_page] = 1;
    }
  }
}
