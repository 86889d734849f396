/* Inner loops for the CPU, compiled once on the user's machine (native.py), for float and double.
 *
 * The neurons' bits are those of the separate torch operations: (x - v) / 2 is exact, so it does
 * not matter whether the compiler adds and multiplies in one step.
 */
#ifndef T
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#define T float
#define LANES 16
#define NAME(f) f##_float
#include __FILE__
#undef T
#undef LANES
#undef NAME
#define T double
#define LANES 8
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
        T v = x[i] > 0 ? x[i] : (x[i] == x[i] ? 0 : x[i]);
        v = v < most ? v : (v == v ? most : v);
        y[i] = (sizeof(T) == 4 ? __builtin_rintf((float)v) : __builtin_rint(v)) / by;
    }
}

/* Lists the c with at[c] != 0 and their values; returns how many. */
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
            if (on) {
                /* room for 16 more is always there: the lists of a row stand behind each other */
                _mm512_storeu_ps((float *)(vp + n), _mm512_maskz_compress_ps(on, v));
                _mm512_storeu_si512(ip + n, _mm512_maskz_compress_epi32(on, number));
                n += __builtin_popcount(on);
            }
            number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
        }
    }
#endif
    for (; c < cin; c++) {
        ip[n] = (int)c;
        vp[n] = at[c];
        n += at[c] != 0;
    }
    return n;
}

typedef T NAME(vec) __attribute__((vector_size(64), aligned(8)));

/* Sums for one output position and N vectors of output channels. */
#define SUM(N)                                                                        \
    static inline void NAME(sum##N)(                                                  \
        const T *w, const T *bias, T *out, long n_out, long cin, long h, long wd,     \
        long kh, long kw, long y0, long x0, const int *idx, const T *val,             \
        const int *count)                                                             \
    {                                                                                 \
        NAME(vec) acc[N];                                                             \
        for (int i = 0; i < N; i++) acc[i] = ((const NAME(vec) *)bias)[i];            \
        for (long ky = 0; ky < kh; ky++) {                                            \
            long y = y0 + ky;                                                         \
            if (y < 0 || y >= h) continue;                                            \
            for (long kx = 0; kx < kw; kx++) {                                        \
                long x = x0 + kx;                                                     \
                if (x < 0 || x >= wd) continue;                                       \
                long p = y * wd + x;                                                  \
                const T *wk = w + (ky * kw + kx) * cin * N * LANES;                   \
                const int *ip = idx + p * cin;                                        \
                const T *vp = val + p * cin;                                          \
                for (int j = 0; j < count[p]; j++) {                                  \
                    const NAME(vec) *row =                                            \
                        (const NAME(vec) *)(wk + (long)ip[j] * N * LANES);            \
                    T v = vp[j];                                                      \
                    for (int i = 0; i < N; i++) acc[i] += v * row[i];                 \
                }                                                                     \
            }                                                                         \
        }                                                                             \
        const T *flat = (const T *)acc;                                               \
        for (long i = 0; i < n_out; i++) out[i] = flat[i];                            \
    }
SUM(1)
SUM(2)
SUM(3)
SUM(4)
#undef SUM

/* A convolution that only visits inputs that are not zero: spikes are mostly zeros. An output is
 * summed in the order of kernel position, then input channel.
 *
 * x: (rows, cin, h, wd) by strides sr, sc, sy, sx. w: blocks of up to four vectors of output
 * channels, each (kh, kw, cin, block). bias: padded to whole vectors. y: (rows, oh, ow, cout),
 * contiguous. idx, val: room for h * wd * cin + 16; count: for h * wd. */
void NAME(spike_conv)(
    const T *x, long sr, long sc, long sy, long sx, const T *w, const T *bias, T *y, long rows,
    long cin, long h, long wd, long cout, long oh, long ow, long kh, long kw, long stride_y,
    long stride_x, long pad_y, long pad_x, int *idx, T *val, int *count)
{
    for (long r = 0; r < rows; r++, x += sr, y += oh * ow * cout) {
        for (long p = 0; p < h * wd; p++) count[p] = 0;
        if (sc == 1) {
            for (long p = 0; p < h * wd; p++) {
                const T *at = x + (p / wd) * sy + (p % wd) * sx;
                count[p] = NAME(gather)(at, cin, idx + p * cin, val + p * cin);
            }
        } else {
            for (int c = 0; c < cin; c++)
                for (long p = 0; p < h * wd; p++) {
                    T v = x[c * sc + (p / wd) * sy + (p % wd) * sx];
                    int n = count[p];
                    idx[p * cin + n] = c;
                    val[p * cin + n] = v;
                    count[p] = n + (v != 0);
                }
        }
        const T *wb = w;
        for (long o = 0; o < cout; o += 4 * LANES) {
            long left = cout - o < 4 * LANES ? cout - o : 4 * LANES;
            long n = (left + LANES - 1) / LANES;
            for (long oy = 0; oy < oh; oy++)
                for (long ox = 0; ox < ow; ox++) {
                    T *out = y + (oy * ow + ox) * cout + o;
                    long y0 = oy * stride_y - pad_y, x0 = ox * stride_x - pad_x;
#define CALL(N)                                                                        \
    NAME(sum##N)(wb, bias + o, out, left, cin, h, wd, kh, kw, y0, x0, idx, val, count)
                    if (n == 4) CALL(4);
                    else if (n == 3) CALL(3);
                    else if (n == 2) CALL(2);
                    else CALL(1);
#undef CALL
                }
            wb += kh * kw * cin * n * LANES;
        }
    }
}
#endif
