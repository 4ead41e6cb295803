// Log-sum-exp merge: each branch's parts over disjoint keys become one attention output, in bf16.
// grid (ceil(branches * heads / 4)), 128 threads: one warp a branch and head.
extern "C" __global__ __launch_bounds__(128) void merge_parts(
    const float* __restrict__ outputs,  // [parts][heads][128]
    const float* __restrict__ sums,     // [parts][heads], log2
    const int* __restrict__ parts, int branches, int heads,
    u32* __restrict__ merged) {  // [branches][heads][128] bf16
  const int lane = threadIdx.x & 31, at = blockIdx.x * 4 + (threadIdx.x >> 5);
  if (at >= branches * heads) return;
  const int branch = at / heads, head = at % heads, begin = parts[branch], end = parts[branch + 1];
  float top = EMPTY;
  for (int p = begin + lane; p < end; p += 32) top = fmaxf(top, sums[(u64)p * heads + head]);
#pragma unroll
  for (int i = 16; i; i >>= 1) top = fmaxf(top, __shfl_xor_sync(ALL, top, i));
  float total = 0.f;
  float4 out = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 4
  for (int p = begin; p < end; p++) {
    const u64 from = (u64)p * heads + head;
    const float sum = sums[from], weight = sum > 0.5f * EMPTY ? pow2(sum - top) : 0.f;
    const float4 part = *(const float4*)(outputs + from * D + lane * 4);
    total += weight;
    out.x = fmaf(weight, part.x, out.x);
    out.y = fmaf(weight, part.y, out.y);
    out.z = fmaf(weight, part.z, out.z);
    out.w = fmaf(weight, part.w, out.w);
  }
  const float inverse = total > 0.f ? 1.f / total : 0.f;
  const uint2 packed = {pack(out.x * inverse, out.y * inverse), pack(out.z * inverse, out.w * inverse)};
  *(uint2*)(merged + (u64)at * (D / 2) + lane * 2) = packed;
}
