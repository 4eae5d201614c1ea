/* Products with packed weights on x86 CPUs, and a whole decoding step of some rows for Llama-like models.

   Weights lie in blocks of 4 rows x 32 columns, so that a product reads memory from its beginning to its end. They are
   float16 (kind 0), or int8 with one float32 scale for 32 columns of a row (kind 1). The arithmetic is float32. What a
   row gets does not depend on how many others are computed with it: its sums are made in the same order. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 4     /* rows of weights in a block */
#define GROUP 32   /* columns in a block */
/* inputs that are multiplied at once: as many as there are registers for */
#define TILE 64    /* inputs that stay in the cache beside a block */

#ifdef __AVX512F__
#define LANES 16
#define TOGETHER 4
typedef __m512 vec;
#define ZERO _mm512_setzero_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define SET _mm512_set1_ps
#define MUL _mm512_mul_ps
#define FMA _mm512_fmadd_ps
#define SUM _mm512_reduce_add_ps
#define HALVES(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define BYTES(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#else
#define LANES 8
#define TOGETHER 2
typedef __m256 vec;
#define ZERO _mm256_setzero_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define SET _mm256_set1_ps
#define MUL _mm256_mul_ps
#define FMA _mm256_fmadd_ps
#define HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define BYTES(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
static inline float SUM(vec x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
#endif
#define PARTS (GROUP / LANES)

typedef struct {
  const void *weight;
  const float *scale, *bias;
  int64_t rows, columns, kind;
} Linear;

/* outputs of one block of rows for `count` inputs */
static inline __attribute__((always_inline)) void block(const Linear *l, int64_t first, const float *x, float *y,
                                                        int64_t y_step, const int count, const int kind) {
  const int64_t k = l->columns;
  const char *w = (const char *)l->weight + first * k * (kind ? 1 : 2);
  const float *scale = kind ? l->scale + first * (k / GROUP) : 0;
  vec sum[ROWS][TOGETHER];
  for (int j = 0; j < ROWS; j++)
    for (int i = 0; i < count; i++) sum[j][i] = ZERO();
  for (int64_t c = 0; c < k; c += GROUP) {
    for (int part = 0; part < (kind ? 2 : 4); part++) _mm_prefetch(w + (kind ? 2048 : 4096) + 64 * part, _MM_HINT_T0);
    for (int j = 0; j < ROWS; j++) {
      vec part[PARTS];
      for (int p = 0; p < PARTS; p++) {
        part[p] = kind ? BYTES(w) : HALVES(w);
        w += LANES * (kind ? 1 : 2);
      }
      for (int i = 0; i < count; i++) {
        const float *in = x + i * k + c;
        if (kind) {
          vec t = MUL(part[0], LOAD(in));
          for (int p = 1; p < PARTS; p++) t = FMA(part[p], LOAD(in + p * LANES), t);
          sum[j][i] = FMA(t, SET(*scale), sum[j][i]);
        } else {
          for (int p = 0; p < PARTS; p++) sum[j][i] = FMA(part[p], LOAD(in + p * LANES), sum[j][i]);
        }
      }
      if (kind) scale++;
    }
  }
  for (int j = 0; j < ROWS; j++)
    for (int i = 0; i < count; i++)
      y[i * y_step + first + j] = SUM(sum[j][i]) + (l->bias ? l->bias[first + j] : 0.0f);
}

static void rows_of(const Linear *l, int64_t first, const float *x, float *y, int64_t count) {
  const int64_t k = l->columns, n = l->rows;
  for (int64_t i = 0; i < count; i += TOGETHER) {
    const float *in = x + i * k;
    float *out = y + i * n;
    switch ((count - i < TOGETHER ? count - i : TOGETHER) * 2 + l->kind) {
      case 2: block(l, first, in, out, n, 1, 0); break;
      case 3: block(l, first, in, out, n, 1, 1); break;
      case 4: block(l, first, in, out, n, 2, 0); break;
      case 5: block(l, first, in, out, n, 2, 1); break;
      case 6: block(l, first, in, out, n, 3, 0); break;
      case 7: block(l, first, in, out, n, 3, 1); break;
      case 8: block(l, first, in, out, n, 4, 0); break;
      default: block(l, first, in, out, n, 4, 1);
    }
  }
}

/* y [count, rows] = x [count, columns] W' + bias */
void product(const Linear *l, const float *x, float *y, int64_t count, int threads) {
  for (int64_t i = 0; i < count; i += TILE) {
    const int64_t some = count - i < TILE ? count - i : TILE;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t first = 0; first < l->rows; first += ROWS)
      rows_of(l, first, x + i * l->columns, y + i * l->rows, some);
  }
}

typedef struct {
  const float *before, *after, *query_norm, *key_norm; /* the norms' weights; the latter two may be missing */
  float *keys, *values;                                /* pools [groups, places, width] */
  int64_t window;                                      /* tokens that are seen; 0: all */
  Linear query, key, value, out, gate, up, down;
} Layer;

typedef struct {
  const Layer *layers;
  const float *norm;
  int64_t count, heads, groups, width, hidden, inner, places, page;
  float eps, head_eps, scale;
  Linear head;
} Model;

static void norm(const float *x, const float *weight, float *y, int64_t n, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  const float factor = 1.0f / sqrtf(sum / n + eps);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

/* x cos + rotate_half(x) sin, as transformers has it */
static void rotate(float *x, const float *cos, const float *sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

static void attend(const Model *m, const Layer *l, const float *q, float *y, float *scores, int64_t head,
                   const int64_t *table, int64_t tokens) {
  const int64_t width = m->width, group = head / (m->heads / m->groups);
  const int64_t first = l->window && tokens > l->window ? tokens - l->window : 0;
  const float *keys = l->keys + group * m->places * width, *values = l->values + group * m->places * width;
  float most = -INFINITY, sum = 0;
  q += head * width, y += head * width;
  for (int64_t t = first; t < tokens; t++) {
    const float *key = keys + (table[t / m->page] * m->page + t % m->page) * width;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; i++) dot += q[i] * key[i];
    scores[t] = dot * m->scale;
    if (scores[t] > most) most = scores[t];
  }
  memset(y, 0, width * sizeof(float));
  for (int64_t t = first; t < tokens; t++) {
    const float *value = values + (table[t / m->page] * m->page + t % m->page) * width;
    const float share = expf(scores[t] - most);
    sum += share;
    for (int64_t i = 0; i < width; i++) y[i] += share * value[i];
  }
  for (int64_t i = 0; i < width; i++) y[i] /= sum;
}

static void add(float *x, const float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* Queries, keys and values of a row at a place: normed and turned; keys and values go into the cache. */
static void place_row(const Model *m, const Layer *l, float *q, float *k, const float *v, const float *cos,
                      const float *sin, int64_t place) {
  const int64_t width = m->width;
  for (int64_t i = 0; i < m->heads; i++) {
    if (l->query_norm) norm(q + i * width, l->query_norm, q + i * width, width, m->head_eps);
    rotate(q + i * width, cos, sin, width);
  }
  for (int64_t i = 0; i < m->groups; i++) {
    if (l->key_norm) norm(k + i * width, l->key_norm, k + i * width, width, m->head_eps);
    rotate(k + i * width, cos, sin, width);
    memcpy(l->keys + (i * m->places + place) * width, k + i * width, width * sizeof(float));
    memcpy(l->values + (i * m->places + place) * width, v + i * width, width * sizeof(float));
  }
}

/* One token of each of `rows` rows. x [rows, hidden]: embeddings, which are overwritten. cos, sin [rows, width].
   table [rows, pages]: the rows' pages. tokens [rows]: of each row, with this one. logits [rows, vocabulary]. What a
   row gets does not depend on the others. Returns 0, or 1 when there is no memory. */
int step(const Model *m, float *x, const float *cos, const float *sin, const int64_t *table, int64_t pages,
         const int64_t *tokens, int64_t rows, float *logits, int threads) {
  const int64_t width = m->width, wide = m->heads * width, narrow = m->groups * width, hidden = m->hidden;
  int64_t most = 0;
  for (int64_t r = 0; r < rows; r++) most = tokens[r] > most ? tokens[r] : most;
  const int64_t each = hidden * 2 + wide * 2 + narrow * 2 + m->inner * 2;
  /* Inputs of products begin at cache lines, as they are multiples of GROUP long: a step of 8 rows took 48 ms instead
     of 39 where they did not. */
  const int64_t bytes = (rows * each + threads * most) * sizeof(float);
  float *h = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!h) return 1;
  float *more = h + rows * hidden, *q = more + rows * hidden, *seen = q + rows * wide, *gate = seen + rows * wide;
  float *up = gate + rows * m->inner, *k = up + rows * m->inner, *v = k + rows * narrow, *scores = v + rows * narrow;
  for (int64_t number = 0; number < m->count; number++) {
    const Layer *l = &m->layers[number];
    for (int64_t r = 0; r < rows; r++) norm(x + r * hidden, l->before, h + r * hidden, hidden, m->eps);
    product(&l->query, h, q, rows, threads);
    product(&l->key, h, k, rows, threads);
    product(&l->value, h, v, rows, threads);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t last = tokens[r] - 1, place = table[r * pages + last / m->page] * m->page + last % m->page;
      place_row(m, l, q + r * wide, k + r * narrow, v + r * narrow, cos + r * width, sin + r * width, place);
    }
#pragma omp parallel for num_threads(threads) collapse(2) schedule(static) if (threads > 1 && rows * most > 32)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < m->heads; i++)
        attend(m, l, q + r * wide, seen + r * wide, scores + omp_get_thread_num() * most, i, table + r * pages,
               tokens[r]);
    product(&l->out, seen, more, rows, threads);
    add(x, more, rows * hidden);
    for (int64_t r = 0; r < rows; r++) norm(x + r * hidden, l->after, h + r * hidden, hidden, m->eps);
    product(&l->gate, h, gate, rows, threads);
    product(&l->up, h, up, rows, threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows > 1)
    for (int64_t i = 0; i < rows * m->inner; i++) gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    product(&l->down, gate, more, rows, threads);
    add(x, more, rows * hidden);
  }
  for (int64_t r = 0; r < rows; r++) norm(x + r * hidden, m->norm, h + r * hidden, hidden, m->eps);
  product(&m->head, h, logits, rows, threads);
  free(h);
  return 0;
}
