// Packed (4-bit) weights times a few rows, as decoding has them. Compiled by NVRTC; see few_rows_kernels.py.
//
// A block has 16 rows of weights, and its warps share the blocks of 64 weights that these consist of. A lane turns two
// words of eight codes into pairs of numbers by picking bytes out of registers (prmt): they are what it has to bring to
// a product of the tensor cores (mma m16n8k16: 16 rows of weights, 8 of activations), if the order of the weights within
// a block is the lanes' own and activations are read in the same. Sums are float32, a block's is scaled when it is
// complete. What a row of activations gets does not depend on how many there are: sums run in the same order.
//
// Two weights share a byte, the first in the high half; 64 share a scale, which may be packed itself (256 scales a
// block: a code's number times the block's scale, plus an offset).
//
// CODES: eight words, the high bytes of the sixteen numbers (in the activations' type) and then the low ones. FACTOR:
// what numbers are multiplied with. HALF: activations are float16, else bfloat16.

typedef unsigned int u32;
typedef unsigned char u8;
typedef unsigned short u16;
typedef long long i64;

#define WARPS 8
#define UNROLLED 4

struct Scales {
    const u8 *packed;  // nested ones
    const float *plain, *outer, *numbers, *offset;
};

#ifdef __CUDACC_RTC__
__device__ __forceinline__ u32 pick(u32 a, u32 b, u32 which) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(which));
    return d;
}

__device__ __forceinline__ void mma(float *sum, const u32 *a, u32 b0, u32 b1) {
#if HALF
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
#endif
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float number(u16 bits) {
#if HALF
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return __uint_as_float((u32)bits << 16);
#endif
}

// To nearest, ties to even.
__device__ __forceinline__ u16 rounded(float value) {
    u16 bits;
#if HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    return bits;
}
#endif

// The numbers of a word's eight codes as four pairs, in the order of the weights, the first in the low half.
__device__ __forceinline__ void pairs_of(u32 word, u32 *pair) {
    const u32 c[8] = {CODES};
    u32 low = word & 0x77777777u, high = word >> 1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 which = (high & 0x4444u) | 0x3210u;
        u32 h = pick(pick(c[0], c[1], low), pick(c[2], c[3], low), which);
        u32 l = pick(pick(c[4], c[5], low), pick(c[6], c[7], low), which);
        pair[2 * half] = pick(l, h, 0x4051u);
        pair[2 * half + 1] = pick(l, h, 0x6273u);
        low >>= 16;
        high >>= 16;
    }
}

template <bool NESTED>
__device__ __forceinline__ float scale_of(const Scales &scales, u32 block) {
    if (!NESTED) return scales.plain[block];
    return fmaf(scales.numbers[scales.packed[block]], scales.outer[block >> 8], *scales.offset);
}

// Adds what UNROLLED blocks of weights give, from `start` on, every WARPS-th. ALL: they are all there.
template <int R, int T, bool NESTED, bool ALL>
__device__ __forceinline__ void some_products(
    const uint2 *const (*words)[2], const u32 (*rows)[2], const Scales *scales, const uint4 *const *x, int start,
    int count, float (*sums)[T][4]) {
    uint2 word[UNROLLED][R][2];
    float scale[UNROLLED][R][2];
#pragma unroll
    for (int u = 0; u < UNROLLED; u++) {
        const int wanted = start + WARPS * u, block = ALL || wanted < count ? wanted : count - 1;
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                word[u][r][i] = words[r][i][block * 4];
                scale[u][r][i] = scale_of<NESTED>(scales[r], rows[r][i] + block);
            }
    }
#pragma unroll
    for (int u = 0; u < UNROLLED; u++) {
        const int block = start + WARPS * u;
        if (!ALL && block >= count) break;
        u32 a[R][2][8];  // of rows g and g + 8: eight pairs
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                pairs_of(word[u][r][i].x, a[r][i]);
                pairs_of(word[u][r][i].y, a[r][i] + 4);
            }
#pragma unroll
        for (int t = 0; t < T; t++) {
            uint4 b[2] = {make_uint4(0u, 0u, 0u, 0u), make_uint4(0u, 0u, 0u, 0u)};
            if (x[t]) {
                b[0] = x[t][block * 8];
                b[1] = x[t][block * 8 + 1];
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int w = 0; w < 2; w++) {
                    const u32 one[4] = {a[r][0][4 * w], a[r][1][4 * w], a[r][0][4 * w + 1], a[r][1][4 * w + 1]};
                    mma(sum, one, b[w].x, b[w].y);
                    const u32 two[4] = {a[r][0][4 * w + 2], a[r][1][4 * w + 2], a[r][0][4 * w + 3], a[r][1][4 * w + 3]};
                    mma(sum, two, b[w].z, b[w].w);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) sums[r][t][i] = fmaf(scale[u][r][i >> 1], sum[i], sums[r][t][i]);
            }
        }
    }
}

// Adds what this warp's blocks of weights give to sums[r][t]: of tile r of 16 rows of weights (from first[r] on, `there`
// of them) and tile t of 8 rows of activations. x[t]: this lane's row (lane / 4) of the tile, or null.
template <int R, int T, bool NESTED>
__device__ __forceinline__ void products(
    const u32 *const *words, const Scales *scales, const i64 *first, int there, const u16 *const *x, int K,
    float (*sums)[T][4]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3, count = K / 64;
    const uint2 *at[R][2];
    u32 rows[R][2];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            rows[r][i] = (u32)(first[r] + min(g + 8 * i, there - 1)) * (u32)count;  // what is beyond is not stored
            at[r][i] = (const uint2 *)words[r] + (i64)rows[r][i] * 4 + c;
        }
    const uint4 *from[T];
#pragma unroll
    for (int t = 0; t < T; t++) from[t] = x[t] ? (const uint4 *)x[t] + 2 * c : 0;
    int start = threadIdx.x >> 5;
    for (; start + WARPS * (UNROLLED - 1) < count; start += WARPS * UNROLLED)
        some_products<R, T, NESTED, true>(at, rows, scales, from, start, count, sums);
    if (start < count) some_products<R, T, NESTED, false>(at, rows, scales, from, start, count, sums);
}

// Sums of all warps, in shared memory: parts [warps][values][32 lanes].
template <int VALUES>
__device__ __forceinline__ void put(float *parts, const float *sums) {
#pragma unroll
    for (int i = 0; i < VALUES; i++) parts[((threadIdx.x >> 5) * VALUES + i) * 32 + (threadIdx.x & 31)] = sums[i];
    __syncthreads();
}

template <int VALUES>
__device__ __forceinline__ float added_up(const float *parts, int value, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[(w * VALUES + value) * 32 + lane];
    return sum * FACTOR;
}

// out [M, N] = x [M, K] Wᵀ + scale · low [M, rank] Bᵀ [N, rank] + bias
template <int T, bool NESTED>
__device__ __forceinline__ void linear(
    const u16 *x, const u32 *words, const Scales &scales, const u16 *low, const float *b, const u16 *bias, u16 *out,
    float scale, int M, int N, int K, int rank) {
    __shared__ float parts[WARPS * T * 4 * 32];
    const i64 first[1] = {(i64)blockIdx.x * 16};
    const int m = blockIdx.y * T * 8, g = (threadIdx.x & 31) >> 2;
    const u16 *at[T];
    float sums[1][T][4];
#pragma unroll
    for (int t = 0; t < T; t++) {
        at[t] = m + t * 8 + g < M ? x + (i64)(m + t * 8 + g) * K : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) sums[0][t][i] = 0.0f;
    }
    products<1, T, NESTED>(&words, &scales, first, N - (int)first[0], at, K, sums);
    put<T * 4>(parts, &sums[0][0][0]);
    for (int e = threadIdx.x; e < T * 4 * 32; e += WARPS * 32) {
        const int lane = e & 31, value = e >> 5;
        const i64 n = first[0] + (lane >> 2) + 8 * ((value & 3) >> 1);
        const i64 row = m + (value >> 2) * 8 + 2 * (lane & 3) + (value & 1);
        if (n >= N || row >= M) continue;
        float sum = added_up<T * 4>(parts, value, lane), more = 0.0f;
        for (int i = 0; i < rank; i++) more = fmaf(number(low[row * rank + i]), b[n * rank + i], more);
        sum = fmaf(scale, more, sum) + (bias ? number(bias[n]) : 0.0f);
        out[row * N + n] = rounded(sum);
    }
}

// out [M, N] = silu(x Gᵀ) · (x Uᵀ), each factor rounded
template <int T>
__device__ __forceinline__ void gated(
    const u16 *x, const u32 *const *words, const Scales *scales, u16 *out, int M, int N, int K) {
    __shared__ float parts[WARPS * T * 8 * 32];
    const i64 first[2] = {(i64)blockIdx.x * 16, (i64)blockIdx.x * 16};
    const int m = blockIdx.y * T * 8, g = (threadIdx.x & 31) >> 2;
    const u16 *at[T];
    float sums[2][T][4];
#pragma unroll
    for (int t = 0; t < T; t++) {
        at[t] = m + t * 8 + g < M ? x + (i64)(m + t * 8 + g) * K : 0;
#pragma unroll
        for (int i = 0; i < 4; i++) sums[0][t][i] = sums[1][t][i] = 0.0f;
    }
    products<2, T, true>(words, scales, first, N - (int)first[0], at, K, sums);
    put<T * 8>(parts, &sums[0][0][0]);
    for (int e = threadIdx.x; e < T * 4 * 32; e += WARPS * 32) {
        const int lane = e & 31, value = e >> 5;
        const i64 n = first[0] + (lane >> 2) + 8 * ((value & 3) >> 1);
        const i64 row = m + (value >> 2) * 8 + 2 * (lane & 3) + (value & 1);
        if (n >= N || row >= M) continue;
        const float gate = number(rounded(added_up<T * 8>(parts, value, lane)));
        const float up = number(rounded(added_up<T * 8>(parts, value + T * 4, lane)));
        out[row * N + n] = rounded(number(rounded(gate / (1.0f + expf(-gate)))) * up);
    }
}

// The pairs (row, choice) of an expert, eight at a time: `next` gives this lane's, number lane / 4, or -1.
struct Pairs {
    const i64 *keys;
    i64 expert;
    int count, base;
    u32 left;

    __device__ __forceinline__ bool next(int *pair) {
        const int lane = threadIdx.x & 31;
        bool some = false;
        *pair = -1;
        for (int number = 0; number < 8; number++) {
            while (left == 0u && base + 32 < count) {
                base += 32;
                left = __ballot_sync(0xffffffffu, base + lane < count && keys[base + lane] == expert);
            }
            if (left == 0u) break;
            some = true;
            if (lane >> 2 == number) *pair = base + __ffs(left) - 1;
            left &= left - 1u;
        }
        return some;
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

// LoRA on experts: low [pairs, rank] is A x, and B of expert e, row n and rank i lies at e · of_expert + n · of_row +
// i · of_rank.
struct Factors {
    const u16 *low;
    const float *b;
    int rank, of_expert, of_row, of_rank;

    __device__ __forceinline__ float product(i64 expert, int n, int pair) const {
        float sum = 0.0f;
        const float *from = b + expert * of_expert + (i64)n * of_row;
        for (int i = 0; i < rank; i++) sum = fmaf(number(low[(i64)pair * rank + i]), from[(i64)i * of_rank], sum);
        return sum;
    }
};

// out [pairs, I] = weight · silu(gate) · up for the rows x [·, K] of the pairs (pair / k)
template <bool NESTED>
__device__ __forceinline__ void gate_up(
    const u16 *x, const i64 *keys, const float *weight, const u32 *words, const Scales &scales, const Factors &lora,
    u16 *out, int pairs, int I, int K, int k, int by_pair) {
    __shared__ float parts[WARPS * 8 * 32];
    __shared__ int chosen[8];
    const int n = blockIdx.y * 16, lane = threadIdx.x & 31;
    const i64 expert = expert_of(keys, by_pair);
    if (expert < 0) return;
    const i64 first[2] = {expert * 2 * I + n, expert * 2 * I + I + n};
    const u32 *const both[2] = {words, words};
    const Scales same[2] = {scales, scales};
    Pairs mine = {keys, expert, pairs, -32, 0u};
    int pair;
    while (mine.next(&pair)) {
        const u16 *at[1] = {pair < 0 ? 0 : x + (i64)(pair / k) * K};
        float sums[2][1][4] = {{{0.0f, 0.0f, 0.0f, 0.0f}}, {{0.0f, 0.0f, 0.0f, 0.0f}}};
        products<2, 1, NESTED>(both, same, first, I - n, at, K, sums);
        if (threadIdx.x < 32 && (lane & 3) == 0) chosen[lane >> 2] = pair;
        put<8>(parts, &sums[0][0][0]);
        if (threadIdx.x < 128) {
            const int value = threadIdx.x >> 5, row = n + (lane >> 2) + 8 * (value >> 1);
            const int one = chosen[2 * (lane & 3) + (value & 1)];
            if (one >= 0 && row < I) {
                float gate = added_up<8>(parts, value, lane), up = added_up<8>(parts, value + 4, lane);
                if (lora.rank) {
                    gate += lora.product(expert, row, one);
                    up += lora.product(expert, I + row, one);
                }
                gate = number(rounded(gate));
                up = number(rounded(up));
                out[(i64)one * I + row] = rounded(gate / (1.0f + expf(-gate)) * up * weight[one]);
            }
        }
        __syncthreads();
    }
}

// out [pairs, N] = x [pairs, K] times the matrix of each pair's expert
template <bool NESTED>
__device__ __forceinline__ void down(
    const u16 *x, const i64 *keys, const u32 *words, const Scales &scales, const Factors &lora, u16 *out, int pairs,
    int N, int K, int by_pair) {
    __shared__ float parts[WARPS * 4 * 32];
    __shared__ int chosen[8];
    const int n = blockIdx.y * 16, lane = threadIdx.x & 31;
    const i64 expert = expert_of(keys, by_pair);
    if (expert < 0) return;
    const i64 first[1] = {expert * N + n};
    Pairs mine = {keys, expert, pairs, -32, 0u};
    int pair;
    while (mine.next(&pair)) {
        const u16 *at[1] = {pair < 0 ? 0 : x + (i64)pair * K};
        float sums[1][1][4] = {{{0.0f, 0.0f, 0.0f, 0.0f}}};
        products<1, 1, NESTED>(&words, &scales, first, N - n, at, K, sums);
        if (threadIdx.x < 32 && (lane & 3) == 0) chosen[lane >> 2] = pair;
        put<4>(parts, &sums[0][0][0]);
        if (threadIdx.x < 128) {
            const int value = threadIdx.x >> 5, row = n + (lane >> 2) + 8 * (value >> 1);
            const int one = chosen[2 * (lane & 3) + (value & 1)];
            if (one >= 0 && row < N) {
                float sum = added_up<4>(parts, value, lane);
                if (lora.rank) sum += lora.product(expert, row, one);
                out[(i64)one * N + row] = rounded(sum);
            }
        }
        __syncthreads();
    }
}

#define PACKED(w) \
    const u32 *w##words, const u8 *w##packed, const float *w##plain, const float *w##outer, const float *w##numbers, \
        const float *w##offset
#define SCALES(w) {w##packed, w##plain, w##outer, w##numbers, w##offset}
#define KERNEL extern "C" __global__ void __launch_bounds__(32 * WARPS)

#define LINEAR(T, KIND, NESTED) \
    KERNEL linear_##KIND##_##T( \
        const u16 *x, PACKED(), const u16 *low, const float *b, const u16 *bias, u16 *out, double scale, int M, int N, \
        int K, int rank, int biased) { \
        const Scales scales = SCALES(); \
        linear<T, NESTED>(x, words, scales, low, b, biased ? bias : 0, out, (float)scale, M, N, K, rank); \
    }

#define GATED(T) \
    KERNEL gated_##T(const u16 *x, PACKED(gate_), PACKED(up_), u16 *out, int M, int N, int K) { \
        const u32 *const words[2] = {gate_words, up_words}; \
        const Scales scales[2] = {SCALES(gate_), SCALES(up_)}; \
        gated<T>(x, words, scales, out, M, N, K); \
    }

#define LORA const u16 *low, const float *b, int rank, int of_expert, int of_row, int of_rank
#define FACTORS {low, b, rank, of_expert, of_row, of_rank}

#define EXPERTS(KIND, NESTED) \
    KERNEL gate_up_##KIND( \
        const u16 *x, const i64 *keys, const float *weight, PACKED(), LORA, u16 *out, int pairs, int I, int K, int k, \
        int by_pair) { \
        const Scales scales = SCALES(); \
        const Factors lora = FACTORS; \
        gate_up<NESTED>(x, keys, weight, words, scales, lora, out, pairs, I, K, k, by_pair); \
    } \
    KERNEL down_##KIND( \
        const u16 *x, const i64 *keys, PACKED(), LORA, u16 *out, int pairs, int N, int K, int by_pair) { \
        const Scales scales = SCALES(); \
        const Factors lora = FACTORS; \
        down<NESTED>(x, keys, words, scales, lora, out, pairs, N, K, by_pair); \
    }

#define ALL(KIND, NESTED) \
    LINEAR(1, KIND, NESTED) LINEAR(2, KIND, NESTED) LINEAR(4, KIND, NESTED) EXPERTS(KIND, NESTED)

ALL(nested, true)
ALL(plain, false)
GATED(1)
GATED(2)
