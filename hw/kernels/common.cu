// What all kernels share: asynchronous copies, bf16 tensor-core tiles, and one step of online softmax attention.
// Needs no header. Settings: PAGE (tokens a page), G (query heads a kv head). Layout of one layer of KV:
// [pages][2][kv_heads][PAGE][128] bf16, so that one kv head's page of keys is PAGE * 256 contiguous bytes.
#ifndef PAGE
#define PAGE 16
#endif
#ifndef G
#define G 4
#endif
#define D 128
#define ROW 256                 // bytes of one token of one kv head
#define EMPTY (-1e30f)          // log2 of the sum of exponentials over no keys
#define ALL 0xffffffffu
typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;

__device__ __forceinline__ u32 shared_at(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory; zeros where ok is 0.
__device__ __forceinline__ void copy16(u32 to, const void* from, int ok) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(ok ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory"); }

__device__ __forceinline__ void load_matrices(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_transposed(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void mma(float* c, const u32* a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ u32 pack(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float pow2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A tile has rows of 256 bytes; chunk c of 16 bytes of row r lies at chunk c ^ (r & 7): no bank conflicts.
__device__ __forceinline__ u32 swizzled(int row, int chunk) { return (u32)(row * ROW + ((chunk ^ (row & 7)) << 4)); }

// Byte offset of token `key` of a page list, kv head `head`, in a layer's pool (keys; values lie hk * PAGE * ROW on).
__device__ __forceinline__ u64 token_at(const int* pages, int key, int head, int hk) {
  return (((u64)pages[key / PAGE] * 2 * hk + head) * PAGE + key % PAGE) * ROW;
}

// The running state of 16 query rows of one warp: unnormalised outputs, row maxima, this lane's share of the row sums.
struct Rows {
  float out[16][4], top[2], sum[2];
  __device__ __forceinline__ Rows() {
#pragma unroll
    for (int i = 0; i < 16; i++) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.f;
    top[0] = top[1] = EMPTY;
    sum[0] = sum[1] = 0.f;
  }
};

// Attend 16 rows to the first `valid` (at least 1) of N keys; `scale` is log2(e) / sqrt(128).
template <int N> __device__ __forceinline__ void attend(Rows& s, const u32 (*q)[4], u32 keys, u32 values, int valid, float scale) {
  const int lane = threadIdx.x & 31;
  float x[N / 8][4];
#pragma unroll
  for (int j = 0; j < N / 8; j++) x[j][0] = x[j][1] = x[j][2] = x[j][3] = 0.f;
#pragma unroll
  for (int k = 0; k < 8; k++)
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
      u32 b[4];
      load_matrices(b, keys + swizzled(j * 16 + (lane & 7) + ((lane >> 4) << 3), k * 2 + ((lane >> 3) & 1)));
      mma(x[2 * j], q[k], b[0], b[1]);
      mma(x[2 * j + 1], q[k], b[2], b[3]);
    }
  if (valid < N) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (j * 8 + (lane & 3) * 2 + (e & 1) >= valid) x[j][e] = EMPTY;
  }
  float shift[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float top = s.top[h];
#pragma unroll
    for (int j = 0; j < N / 8; j++) top = fmaxf(top, fmaxf(x[j][2 * h], x[j][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
    const float fade = pow2((s.top[h] - top) * scale);
    s.top[h] = top;
    s.sum[h] *= fade;
    shift[h] = top * scale;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      s.out[i][2 * h] *= fade;
      s.out[i][2 * h + 1] *= fade;
    }
  }
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    u32 p[4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float* y = x[2 * j + h];
#pragma unroll
      for (int e = 0; e < 4; e++) y[e] = pow2(fmaf(y[e], scale, -shift[e >> 1]));
      s.sum[0] += y[0] + y[1];
      s.sum[1] += y[2] + y[3];
      p[2 * h] = pack(y[0], y[1]);
      p[2 * h + 1] = pack(y[2], y[3]);
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
      u32 b[4];
      load_transposed(b, values + swizzled(j * 16 + (lane & 15), n * 2 + (lane >> 4)));
      mma(s.out[2 * n], p, b[0], b[1]);
      mma(s.out[2 * n + 1], p, b[2], b[3]);
    }
  }
}

// After the last key: the whole row's sum in each of its four lanes.
__device__ __forceinline__ void finish(Rows& s) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    s.sum[h] += __shfl_xor_sync(ALL, s.sum[h], 1);
    s.sum[h] += __shfl_xor_sync(ALL, s.sum[h], 2);
  }
}
