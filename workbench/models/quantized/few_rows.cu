// Packed (4-bit) weights times a few rows, as decoding has them. Compiled by NVRTC; see few_rows_kernels.py.
//
// A warp has a row of weights (or several): each lane takes words of eight codes, turns them into numbers by picking
// bytes out of registers (prmt), multiplies, and the lanes add up. What a row of activations gets does not depend on how
// many there are: sums run in the same order, in float32.
//
// Two weights share a byte, the first in the high half; 64 share a scale, which may be packed itself (256 scales a
// block: a code's number times the block's scale, plus an offset).
//
// CODES: eight words, the high bytes of the sixteen numbers as bfloat16 and then the low ones. FACTOR: what numbers are
// multiplied with. HALF: activations are float16, else bfloat16.

typedef unsigned int u32;
typedef unsigned char u8;
typedef unsigned short u16;
typedef long long i64;

#define WARPS 4
#define UNROLLED 4

struct Scales {
    const u8 *packed;         // of nested ones
    const float *plain;       // else
    const float *outer, *numbers, *offset;
};

#ifdef __CUDACC_RTC__
__device__ __forceinline__ u32 pick(u32 a, u32 b, u32 which) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(which));
    return d;
}
#endif

__device__ __forceinline__ float low_half(u32 pair) {
#if HALF
    float value;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(value) : "r"(pair));
    return value;
#else
    return __uint_as_float(pair << 16);
#endif
}

__device__ __forceinline__ float high_half(u32 pair) {
#if HALF
    float value;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(pair));
    return value;
#else
    return __uint_as_float(pair & 0xffff0000u);
#endif
}

// Round to nearest, ties to even.
__device__ __forceinline__ u16 rounded(float value) {
#if HALF
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40u);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// The numbers of a word's eight codes, in the order of the weights.
__device__ __forceinline__ void eight(u32 word, float *v) {
    const u32 c[8] = {CODES};
    u32 low = word & 0x77777777u, high = word >> 1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 which = (high & 0x4444u) | 0x3210u;
        u32 h = pick(pick(c[0], c[1], low), pick(c[2], c[3], low), which);
        u32 l = pick(pick(c[4], c[5], low), pick(c[6], c[7], low), which);
        u32 pair = pick(l, h, 0x5140u);
        v[4 * half] = __uint_as_float(pair & 0xffff0000u);
        v[4 * half + 1] = __uint_as_float(pair << 16);
        pair = pick(l, h, 0x7362u);
        v[4 * half + 2] = __uint_as_float(pair & 0xffff0000u);
        v[4 * half + 3] = __uint_as_float(pair << 16);
        low >>= 16;
        high >>= 16;
    }
}

__device__ __forceinline__ float scale_of(const Scales &scales, i64 block) {
    if (scales.packed == 0) return scales.plain[block];
    return scales.numbers[scales.packed[block]] * scales.outer[block >> 8] + *scales.offset;
}

// sums[r][m] += weights row[r] · x[m], of this lane's words. x[m] is 0 where there is no such row.
template <int R, int M>
__device__ __forceinline__ void products(
    const u32 *words, const Scales &scales, const i64 *row, const u16 *const *x, int K, float (*sums)[M]) {
    const int count = K / 8, lane = threadIdx.x & 31;
    for (int start = lane; start < count; start += 32 * UNROLLED) {
        u32 word[UNROLLED][R];
        float scale[UNROLLED][R];
#pragma unroll
        for (int u = 0; u < UNROLLED; u++) {
            int at = start + 32 * u;
#pragma unroll
            for (int r = 0; r < R; r++) word[u][r] = at < count ? words[row[r] * count + at] : 0u;
        }
#pragma unroll
        for (int u = 0; u < UNROLLED; u++) {
            int at = start + 32 * u;
#pragma unroll
            for (int r = 0; r < R; r++) scale[u][r] = at < count ? scale_of(scales, row[r] * (K / 64) + at / 8) : 0.0f;
        }
#pragma unroll
        for (int u = 0; u < UNROLLED; u++) {
            int at = start + 32 * u;
            float v[R][8];
#pragma unroll
            for (int r = 0; r < R; r++) eight(word[u][r], v[r]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                uint4 pairs = make_uint4(0u, 0u, 0u, 0u);
                if (at < count && x[m]) pairs = ((const uint4 *)x[m])[at];
                float a[8] = {low_half(pairs.x), high_half(pairs.x), low_half(pairs.y), high_half(pairs.y),
                              low_half(pairs.z), high_half(pairs.z), low_half(pairs.w), high_half(pairs.w)};
#pragma unroll
                for (int r = 0; r < R; r++) {
                    float sum = v[r][0] * a[0];
#pragma unroll
                    for (int i = 1; i < 8; i++) sum = fmaf(v[r][i], a[i], sum);
                    sums[r][m] = fmaf(scale[u][r], sum, sums[r][m]);
                }
            }
        }
    }
}

template <int R, int M>
__device__ __forceinline__ void add_up(float (*sums)[M]) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int lanes = 16; lanes; lanes >>= 1) sums[r][m] += __shfl_xor_sync(0xffffffffu, sums[r][m], lanes);
}

// out [M, N] = x [M, K] Wᵀ + scale · low [M, rank] Bᵀ [N, rank] + bias
template <int R, int M>
__device__ __forceinline__ void linear(
    const u16 *x, const u32 *words, const Scales &scales, const u16 *low, const float *b, const u16 *bias, u16 *out,
    float scale, int rows, int N, int K, int rank) {
    const int lane = threadIdx.x & 31, first = blockIdx.y * M;
    i64 row[R];
    const u16 *at[M];
    float sums[R][M];
#pragma unroll
    for (int r = 0; r < R; r++) {
        row[r] = (i64)(blockIdx.x * WARPS + (threadIdx.x >> 5)) * R + r;
        if (row[r] >= N) row[r] = N - 1;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        at[m] = first + m < rows ? x + (i64)(first + m) * K : 0;
#pragma unroll
        for (int r = 0; r < R; r++) sums[r][m] = 0.0f;
    }
    products<R, M>(words, scales, row, at, K, sums);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int m = 0; m < M; m++) sums[r][m] *= FACTOR;
    for (int i = lane; i < rank; i += 32)
#pragma unroll
        for (int m = 0; m < M; m++) {
            float left = at[m] ? scale * low_half(low[(i64)(first + m) * rank + i]) : 0.0f;
#pragma unroll
            for (int r = 0; r < R; r++) sums[r][m] = fmaf(left, b[row[r] * rank + i], sums[r][m]);
        }
    add_up<R, M>(sums);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < R; r++) {
            i64 n = (i64)(blockIdx.x * WARPS + (threadIdx.x >> 5)) * R + r;
            if (lane == 0 && at[m] && n < N)
                out[(i64)(first + m) * N + n] = rounded(sums[r][m] + (bias ? low_half(bias[n]) : 0.0f));
        }
}

// The pairs (row, choice) of an expert, M at a time: next() fills pair[] with their numbers, or -1.
template <int M>
struct Pairs {
    const i64 *keys;
    i64 expert;
    int count, base;
    u32 left;

    __device__ __forceinline__ bool next(int *pair) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int m = 0; m < M; m++) {
            while (left == 0u && base + 32 < count) {
                base += 32;
                left = __ballot_sync(0xffffffffu, base + lane < count && keys[base + lane] == expert);
            }
            pair[m] = left ? base + __ffs(left) - 1 : -1;
            left &= left - 1u;
        }
        return pair[0] >= 0;
    }
};

// The expert of this block; -1 where another block has it. by_pair: block x is for the expert of pair x.
__device__ __forceinline__ i64 expert_of(const i64 *keys, int by_pair) {
    if (!by_pair) return blockIdx.x;
    const int lane = threadIdx.x & 31;
    const i64 expert = keys[blockIdx.x];
    for (int base = 0; base < (int)blockIdx.x; base += 32)
        if (__ballot_sync(0xffffffffu, base + lane < (int)blockIdx.x && keys[base + lane] == expert)) return -1;
    return expert;
}

// out [pairs, I] = weight · silu(gate) · up for the rows x [·, K] of the pairs (pair / k)
template <int M>
__device__ __forceinline__ void gate_up(
    const u16 *x, const i64 *keys, const float *weight, const u32 *words, const Scales &scales, u16 *out, int pairs,
    int I, int K, int k, int by_pair) {
    const int lane = threadIdx.x & 31;
    const i64 n = blockIdx.y * WARPS + (threadIdx.x >> 5), expert = expert_of(keys, by_pair);
    if (expert < 0 || n >= I) return;
    const i64 row[2] = {expert * 2 * I + n, expert * 2 * I + I + n};
    Pairs<M> mine = {keys, expert, pairs, -32, 0u};
    int pair[M];
    while (mine.next(pair)) {
        const u16 *at[M];
        float sums[2][M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            at[m] = pair[m] < 0 ? 0 : x + (i64)(pair[m] / k) * K;
            sums[0][m] = sums[1][m] = 0.0f;
        }
        products<2, M>(words, scales, row, at, K, sums);
        add_up<2, M>(sums);
#pragma unroll
        for (int m = 0; m < M; m++)
            if (lane == 0 && pair[m] >= 0) {
                float gate = low_half(rounded(sums[0][m] * FACTOR)), up = low_half(rounded(sums[1][m] * FACTOR));
                out[(i64)pair[m] * I + n] = rounded(gate / (1.0f + expf(-gate)) * up * weight[pair[m]]);
            }
    }
}

// out [pairs, N] = x [pairs, K] times the matrix of each pair's expert
template <int M>
__device__ __forceinline__ void down(
    const u16 *x, const i64 *keys, const u32 *words, const Scales &scales, u16 *out, int pairs, int N, int K,
    int by_pair) {
    const int lane = threadIdx.x & 31;
    const i64 n = (i64)(blockIdx.y * WARPS + (threadIdx.x >> 5)) * 2, expert = expert_of(keys, by_pair);
    if (expert < 0 || n >= N) return;
    const i64 row[2] = {expert * N + n, expert * N + (n + 1 < N ? n + 1 : n)};
    Pairs<M> mine = {keys, expert, pairs, -32, 0u};
    int pair[M];
    while (mine.next(pair)) {
        const u16 *at[M];
        float sums[2][M];
#pragma unroll
        for (int m = 0; m < M; m++) {
            at[m] = pair[m] < 0 ? 0 : x + (i64)pair[m] * K;
            sums[0][m] = sums[1][m] = 0.0f;
        }
        products<2, M>(words, scales, row, at, K, sums);
        add_up<2, M>(sums);
#pragma unroll
        for (int m = 0; m < M; m++)
            if (lane == 0 && pair[m] >= 0) {
                out[(i64)pair[m] * N + n] = rounded(sums[0][m] * FACTOR);
                if (n + 1 < N) out[(i64)pair[m] * N + n + 1] = rounded(sums[1][m] * FACTOR);
            }
    }
}

#define PACKED const u32 *words, const u8 *packed, const float *plain, const float *outer, const float *numbers, \
    const float *offset, int nested
#define SCALES Scales scales = {nested ? packed : 0, plain, outer, numbers, offset}

#define LINEAR(R, M) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) linear_##R##_##M( \
        const u16 *x, PACKED, const u16 *low, const float *b, const u16 *bias, u16 *out, double scale, int rows, \
        int N, int K, int rank, int biased) { \
        SCALES; \
        linear<R, M>(x, words, scales, low, b, biased ? bias : 0, out, (float)scale, rows, N, K, rank); \
    }

#define EXPERTS(M) \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) gate_up_##M( \
        const u16 *x, const i64 *keys, const float *weight, PACKED, u16 *out, int pairs, int I, int K, int k, \
        int by_pair) { \
        SCALES; \
        gate_up<M>(x, keys, weight, words, scales, out, pairs, I, K, k, by_pair); \
    } \
    extern "C" __global__ void __launch_bounds__(32 * WARPS) down_##M( \
        const u16 *x, const i64 *keys, PACKED, u16 *out, int pairs, int N, int K, int by_pair) { \
        SCALES; \
        down<M>(x, keys, words, scales, out, pairs, N, K, by_pair); \
    }

LINEAR(1, 1)
LINEAR(1, 4)
LINEAR(2, 1)
LINEAR(2, 4)
EXPERTS(1)
EXPERTS(4)
