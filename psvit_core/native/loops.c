/* Inner loops for the CPU, compiled once on the user's machine (__init__.py), for float and double.
 *
 * The neurons' bits are those of the separate torch operations: (x - v) / 2 is exact, so it does
 * not matter whether the compiler adds and multiplies in one step.
 */
#ifndef T
#include <time.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
enum {
    LOAD = 1, STORE, MAP, LIF, CONV, DEPTHWISE, SUM, POOL, MATMUL, /* operations of a program */
    COPY = 0, ADD, SUB, MUL, DIV, SCALE_SHIFT, INTEGER,            /* of MAP */
    DIMS = 6, OPERAND = 2 + DIMS,
    BLOCK = 8 /* vectors of output channels that a convolution sums at a time */
};
#define T float
#define LANES 16
#define RINT __builtin_rintf
#define NAME(f) f##_float
#include __FILE__
#undef T
#undef LANES
#undef RINT
#undef NAME
#define T double
#define LANES 8
#define RINT __builtin_rint
#define NAME(f) f##_double
#include __FILE__
#else

/* Leaky integrate-and-fire over time from zero state. x, spikes: (steps, n); step_x, step_s: the
 * distances of two steps, 0 for x where all steps are the same. */
void NAME(lif)(const T *x, T *spikes, long steps, long n, long step_x, long step_s,
               double threshold)
{
    enum { PIECE = 2048 }; /* the potentials of a piece stay in the L1 cache */
    T v[PIECE];
    const T limit = (T)threshold;
    for (long low = 0; low < n; low += PIECE) {
        const long m = n - low < PIECE ? n - low : PIECE;
        for (long i = 0; i < m; i++) v[i] = 0;
        for (long t = 0; t < steps; t++) {
            const T *in = x + t * step_x + low;
            T *out = spikes + t * step_s + low;
            for (long i = 0; i < m; i++) {
                const T h = v[i] + (in[i] - v[i]) * (T)0.5;
                const int fired = h >= limit;
                out[i] = fired ? (T)1 : (T)0;
                v[i] = fired ? (T)0 : h;
            }
        }
    }
}

/* round(clamp(x, 0, levels)) / norm, halves to even. */
void NAME(integer_lif)(const T *x, T *y, long n, double levels, double norm)
{
    const T most = (T)levels, by = (T)norm;
    for (long i = 0; i < n; i++) {
        T v = x[i] < 0 ? 0 : x[i];
        v = v > most ? most : v;
        y[i] = RINT(v) / by;
    }
}

/* Entries in the list of one position: a multiple of four, which the loops below take at a time. */
static inline long NAME(list)(long cin) { return (cin + 3) & ~3L; }

/* Lists the c with at[c] != 0 and their values, filled up with zeros to a multiple of four; returns
 * how many. Writes up to 16 entries beyond them: the lists of a row stand behind each other. */
static inline int NAME(gather)(const T *at, long cin, int *ip, T *vp)
{
    int n = 0;
    long c = 0;
#ifdef __AVX512F__
    if (sizeof(T) == 4) {
        const __m512 zero = _mm512_setzero_ps();
        __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (; c + 16 <= cin; c += 16) {
            __m512 v = _mm512_loadu_ps((const float *)(at + c));
            __mmask16 on = _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_OQ);
            /* Without asking whether any is on: a wrong guess costs more than two stores. */
            _mm512_storeu_ps((float *)(vp + n), _mm512_maskz_compress_ps(on, v));
            _mm512_storeu_si512(ip + n, _mm512_maskz_compress_epi32(on, number));
            n += __builtin_popcount(on);
            number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
        }
    }
#endif
    for (; c < cin; c++) {
        ip[n] = (int)c;
        vp[n] = at[c];
        n += at[c] != 0;
    }
    for (int i = 0; i < 4; i++) {
        ip[n + i] = 0;
        vp[n + i] = 0;
    }
    return (n + 3) & ~3;
}

typedef T NAME(vec) __attribute__((vector_size(64), aligned(8)));
typedef T NAME(loose) __attribute__((vector_size(64), aligned(sizeof(T))));

/* Sums for one output position and N vectors of output channels, in SETS partial sums each: an
 * addition waits for the one before it, so there must be some that do not. */
#define SUM_OF(N, SETS)                                                               \
    static inline void NAME(sum##N)(                                                  \
        const T *w, const T *bias, T *out, long n_out, long cin, long h, long wd,     \
        long kh, long kw, long y0, long x0, const int *idx, const T *val,             \
        const int *count)                                                             \
    {                                                                                 \
        NAME(vec) acc[SETS][N] = {0};                                                 \
        for (int i = 0; i < N; i++) acc[0][i] = ((const NAME(vec) *)bias)[i];         \
        for (long ky = y0 < 0 ? -y0 : 0; ky < kh && y0 + ky < h; ky++)                \
            for (long kx = x0 < 0 ? -x0 : 0; kx < kw && x0 + kx < wd; kx++) {         \
                const long p = (y0 + ky) * wd + x0 + kx;                              \
                const T *wk = w + (ky * kw + kx) * cin * N * LANES;                   \
                const int *ip = idx + p * NAME(list)(cin);                            \
                const T *vp = val + p * NAME(list)(cin);                              \
                for (int j = 0; j < count[p]; j += 4)                                 \
                    _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {             \
                        const NAME(vec) *row =                                        \
                            (const NAME(vec) *)(wk + (long)ip[j + k] * N * LANES);    \
                        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)           \
                            acc[k % SETS][i] += vp[j + k] * row[i];                   \
                    }                                                                 \
            }                                                                         \
        for (int k = 1; k < SETS; k++)                                                \
            for (int i = 0; i < N; i++) acc[0][i] += acc[k][i];                       \
        if (n_out == N * LANES)                                                       \
            for (int i = 0; i < N; i++) ((NAME(loose) *)out)[i] = acc[0][i];          \
        else                                                                          \
            __builtin_memcpy(out, acc[0], n_out * sizeof(T));                         \
    }
SUM_OF(1, 4)
SUM_OF(2, 4)
SUM_OF(3, 2)
SUM_OF(4, 2)
SUM_OF(5, 2)
SUM_OF(6, 1)
SUM_OF(7, 1)
SUM_OF(8, 1)
#undef SUM_OF

/* A convolution that only visits inputs that are not zero: spikes are mostly zeros. An output is
 * summed in the order of kernel position, then input channel, in up to four partial sums.
 *
 * x: (rows, cin, h, wd) by strides sr, sc, sy, sx. w: blocks of up to BLOCK vectors of
 * output channels, each (kh, kw, cin, block). bias: padded to whole vectors. y: (rows, oh, ow, cout),
 * contiguous. idx, val: room for h * wd * list(cin) + 32; count: for h * wd. */
void NAME(spike_conv)(
    const T *x, long sr, long sc, long sy, long sx, const T *w, const T *bias, T *y, long rows,
    long cin, long h, long wd, long cout, long oh, long ow, long kh, long kw, long stride_y,
    long stride_x, long pad_y, long pad_x, int *idx, T *val, int *count)
{
    const long list = NAME(list)(cin);
    for (long r = 0; r < rows; r++, x += sr, y += oh * ow * cout) {
        for (long iy = 0, p = 0; iy < h; iy++)
            for (long ix = 0; ix < wd; ix++, p++) {
                const T *at = x + iy * sy + ix * sx;
                int *ip = idx + p * list;
                T *vp = val + p * list;
                if (sc == 1) {
                    count[p] = NAME(gather)(at, cin, ip, vp);
                    continue;
                }
                int n = 0;
                for (long c = 0; c < cin; c++) {
                    ip[n] = (int)c;
                    vp[n] = at[c * sc];
                    n += vp[n] != 0;
                }
                for (; n % 4; n++) ip[n] = 0, vp[n] = 0;
                count[p] = n;
            }
        const T *wb = w;
        for (long o = 0; o < cout; o += BLOCK * LANES) {
            long left = cout - o < BLOCK * LANES ? cout - o : BLOCK * LANES;
            long n = (left + LANES - 1) / LANES;
            for (long oy = 0; oy < oh; oy++)
                for (long ox = 0; ox < ow; ox++) {
                    T *out = y + (oy * ow + ox) * cout + o;
                    long y0 = oy * stride_y - pad_y, x0 = ox * stride_x - pad_x;
#define CALL(N)                                                                        \
    NAME(sum##N)(wb, bias + o, out, left, cin, h, wd, kh, kw, y0, x0, idx, val, count)
                    switch (n) {
                    case 1: CALL(1); break;
                    case 2: CALL(2); break;
                    case 3: CALL(3); break;
                    case 4: CALL(4); break;
                    case 5: CALL(5); break;
                    case 6: CALL(6); break;
                    case 7: CALL(7); break;
                    default: CALL(8);
                    }
#undef CALL
                }
            wb += kh * kw * cin * n * LANES;
        }
    }
}
#include "program.c"
#endif
