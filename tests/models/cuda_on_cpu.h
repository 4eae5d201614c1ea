// What few_rows.cu needs of CUDA, on a CPU: a thread for each thread of a block, barriers for what warps do together.
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }

struct Index { unsigned x, y; };
static thread_local Index threadIdx, blockIdx;

static const int THREADS = 256, LANES = 32;
static std::barrier<> *block_barrier, *warp_barriers[THREADS / LANES];
static unsigned shared_bits[THREADS / LANES][LANES];
static unsigned shared_a[THREADS / LANES][LANES][4], shared_b[THREADS / LANES][LANES][2];

static inline void __syncthreads() { block_barrier->arrive_and_wait(); }
static inline void warp_wait() { warp_barriers[threadIdx.x / LANES]->arrive_and_wait(); }

static inline unsigned __ballot_sync(unsigned, bool said) {
    const int warp = threadIdx.x / LANES;
    warp_wait();
    shared_bits[warp][threadIdx.x % LANES] = said;
    warp_wait();
    unsigned all = 0;
    for (int lane = 0; lane < LANES; lane++) all |= shared_bits[warp][lane] << lane;
    return all;
}

static inline float number(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// PTX: byte i of the result is the byte of (b, a) that nibble i of `which` names (its fourth bit is not set here).
static inline unsigned pick(unsigned a, unsigned b, unsigned which) {
    const uint64_t bytes = ((uint64_t)b << 32) | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)((bytes >> (8 * ((which >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return result;
}

// PTX's mma.m16n8k16 of bfloat16, by the layout of its fragments: lane 4 g + c has of A the columns 2 c, 2 c + 1 of the
// rows g and g + 8, then the columns 8 further; of B the rows 2 c, 2 c + 1 and those 8 further of column g; of the sums
// the columns 2 c, 2 c + 1 of the rows g and g + 8.
static inline void mma(float *sum, const unsigned *a, unsigned b0, unsigned b1) {
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, g = lane / 4, c = lane % 4;
    warp_wait();
    for (int i = 0; i < 4; i++) shared_a[warp][lane][i] = a[i];
    shared_b[warp][lane][0] = b0;
    shared_b[warp][lane][1] = b1;
    warp_wait();
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * c + i % 2;
        for (int k = 0; k < 16; k++) {
            const unsigned left = shared_a[warp][4 * (row % 8) + (k % 8) / 2][row / 8 + 2 * (k / 8)];
            const unsigned right = shared_b[warp][4 * column + (k % 8) / 2][k / 8];
            sum[i] += number(k % 2 ? left >> 16 : left) * number(k % 2 ? right >> 16 : right);
        }
    }
}

static void run(int wide, int high, const std::function<void()> &kernel) {
    for (int y = 0; y < high; y++)
        for (int x = 0; x < wide; x++) {
            std::barrier<> whole(THREADS);
            std::vector<std::unique_ptr<std::barrier<>>> warps;
            for (int w = 0; w < THREADS / LANES; w++) {
                warps.push_back(std::make_unique<std::barrier<>>(LANES));
                warp_barriers[w] = warps[w].get();
            }
            block_barrier = &whole;
            std::vector<std::thread> threads;
            for (unsigned t = 0; t < THREADS; t++)
                threads.emplace_back([&, t] {
                    threadIdx = {t, 0};
                    blockIdx = {(unsigned)x, (unsigned)y};
                    kernel();
                });
            for (auto &thread : threads) thread.join();
        }
}
