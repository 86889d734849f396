/* Inner loops for one type of value; psvit.c includes this file once per type.
 *
 * Neurons give the bits of the separate torch operations: (x - v) / 2 is exact, so it makes no
 * difference if the compiler fuses the multiplication with the addition.
 */

/* One time step of LIF neurons: potentials v and currents x to spikes and new potentials. */
static inline void NAME(lif_step)(const T *x, T *spikes, T *restrict v, int64_t n, T threshold)
{
    for (int64_t i = 0; i < n; i++) {
        const T h = v[i] + (x[i] - v[i]) * (T)0.5;
        const int fired = h >= threshold;
        spikes[i] = fired ? (T)1 : (T)0;
        v[i] = fired ? (T)0 : h;
    }
}

/* A LIF layer from zero state: x and spikes are (steps, n) with these distances of two steps. */
static void NAME(lif)(const T *x, T *spikes, int64_t steps, int64_t n, int64_t x_step,
                      int64_t spikes_step, T threshold)
{
    enum { CHUNK = 2048 }; /* neurons whose potentials stay in the L1 cache */
    T v[CHUNK];
    for (int64_t low = 0; low < n; low += CHUNK) {
        const int64_t m = n - low < CHUNK ? n - low : CHUNK;
        for (int64_t i = 0; i < m; i++) v[i] = 0;
        for (int64_t t = 0; t < steps; t++)
            NAME(lif_step)(x + t * x_step + low, spikes + t * spikes_step + low, v, m, threshold);
    }
}

/* round(clamp(x, 0, levels)) / norm; rounds halves up if half_up, otherwise to even. */
static void NAME(integer_lif)(const T *x, T *y, int64_t n, T levels, T norm, int64_t half_up)
{
    if (half_up)
        for (int64_t i = 0; i < n; i++) {
            T v = x[i] < 0 ? 0 : x[i];
            v = v > levels ? levels : v;
            y[i] = FLOOR(v + (T)0.5) / norm;
        }
    else
        for (int64_t i = 0; i < n; i++) {
            T v = x[i] < 0 ? 0 : x[i];
            v = v > levels ? levels : v;
            y[i] = RINT(v) / norm;
        }
}

/* Entries in the list of one position: c_in rounded up to 4, as many as the sums take at a time. */
static inline int64_t NAME(list_size)(int64_t c_in) { return (c_in + 3) & ~(int64_t)3; }

/* Lists the channels with x[c] != 0 and their values, padded with zeros to a multiple of 4; returns
 * the length. Writes up to 16 entries more: the lists of a row follow each other in memory. */
static inline int32_t NAME(gather)(const T *x, int64_t c_in, int32_t *channels, T *values)
{
    int32_t n = 0;
    int64_t c = 0;
#ifdef __AVX512F__
    if (sizeof(T) == 4) {
        const __m512 zero = _mm512_setzero_ps();
        __m512i number = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (; c + 16 <= c_in; c += 16) {
            __m512 v = _mm512_loadu_ps((const float *)(x + c));
            __mmask16 on = _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_OQ);
            /* No branch on an empty mask: a wrong prediction costs more than two stores. */
            _mm512_storeu_ps((float *)(values + n), _mm512_maskz_compress_ps(on, v));
            _mm512_storeu_si512(channels + n, _mm512_maskz_compress_epi32(on, number));
            n += __builtin_popcount(on);
            number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
        }
    }
#endif
    for (; c < c_in; c++) {
        channels[n] = (int32_t)c;
        values[n] = x[c];
        n += x[c] != 0;
    }
    for (int i = 0; i < 4; i++) {
        channels[n + i] = 0;
        values[n + i] = 0;
    }
    return (n + 3) & ~3;
}

/* As gather, for channels that are not adjacent in memory; writes nothing after the list. */
static inline int32_t NAME(gather_strided)(const T *x, int64_t c_in, int64_t stride,
                                           int32_t *channels, T *values)
{
    int32_t n = 0;
    for (int64_t c = 0; c < c_in; c++) {
        channels[n] = (int32_t)c;
        values[n] = x[c * stride];
        n += values[n] != 0;
    }
    for (; n % 4; n++) {
        channels[n] = 0;
        values[n] = 0;
    }
    return n;
}

/* Nonzero inputs of one row of a convolution: a list of channels and values per position. */
struct NAME(inputs) {
    T *values;         /* (positions, list_size(c_in)) */
    int32_t *channels; /* likewise */
    int32_t *lengths;  /* (positions,) */
};

/* Fills the lists of one row, whose first value is x[0]. */
static void NAME(gather_row)(const struct psvit_conv *op, const T *x,
                             const struct NAME(inputs) *inputs)
{
    const int64_t list = NAME(list_size)(op->c_in), *strides = op->source_strides;
    for (int64_t y = 0, p = 0; y < op->height; y++)
        for (int64_t col = 0; col < op->width; col++, p++) {
            const T *at = x + y * strides[2] + col * strides[3];
            int32_t *channels = inputs->channels + p * list;
            T *values = inputs->values + p * list;
            inputs->lengths[p] =
                strides[1] == 1
                    ? NAME(gather)(at, op->c_in, channels, values)
                    : NAME(gather_strided)(at, op->c_in, strides[1], channels, values);
        }
}

typedef T NAME(vec) __attribute__((vector_size(64), aligned(8)));
typedef T NAME(loose) __attribute__((vector_size(64), aligned(sizeof(T))));

/* Sums for one output position, whose window begins at (y0, x0), and N vectors of output channels.
 * Each vector has SETS partial sums: an addition waits for the one before it, so independent sums
 * keep the processor busy. */
#define SUM_OF(N, SETS)                                                                      \
    static inline void NAME(sum##N)(const struct psvit_conv *op, const T *w, const T *bias,  \
                                    T *out, int64_t n_out, int64_t y0, int64_t x0,           \
                                    const struct NAME(inputs) *inputs)                       \
    {                                                                                        \
        const int64_t c_in = op->c_in, h = op->height, wd = op->width;                       \
        const int64_t kh = op->kernel[0], kw = op->kernel[1];                                \
        const int64_t list = NAME(list_size)(c_in);                                          \
        NAME(vec) acc[SETS][N] = {0};                                                        \
        for (int i = 0; i < N; i++) acc[0][i] = ((const NAME(vec) *)bias)[i];                \
        for (int64_t ky = y0 < 0 ? -y0 : 0; ky < kh && y0 + ky < h; ky++)                    \
            for (int64_t kx = x0 < 0 ? -x0 : 0; kx < kw && x0 + kx < wd; kx++) {             \
                const int64_t p = (y0 + ky) * wd + x0 + kx;                                  \
                const T *wk = w + (ky * kw + kx) * c_in * N * LANES;                         \
                const int32_t *channels = inputs->channels + p * list;                       \
                const T *values = inputs->values + p * list;                                 \
                const int32_t length = inputs->lengths[p];                                   \
                for (int32_t j = 0; j < length; j += 4)                                      \
                    _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {                    \
                        const NAME(vec) *row =                                               \
                            (const NAME(vec) *)(wk + (int64_t)channels[j + k] * N * LANES);  \
                        _Pragma("GCC unroll 8") for (int i = 0; i < N; i++)                  \
                            acc[k % SETS][i] += values[j + k] * row[i];                      \
                    }                                                                        \
            }                                                                                \
        for (int k = 1; k < SETS; k++)                                                       \
            for (int i = 0; i < N; i++) acc[0][i] += acc[k][i];                              \
        if (n_out == N * LANES)                                                              \
            for (int i = 0; i < N; i++) ((NAME(loose) *)out)[i] = acc[0][i];                 \
        else                                                                                 \
            __builtin_memcpy(out, acc[0], n_out * sizeof(T));                                \
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

/* One row of a convolution that visits only inputs that are not zero: spikes are mostly zeros. An
 * output is summed in the order of kernel position, then input channel, in up to four partial sums.
 * x is the row's first value, y (out_height, out_width, c_out). Returns an enum psvit_status. */
static int32_t NAME(conv_row)(const struct psvit_conv *op, const T *x, T *y,
                              const struct NAME(inputs) *inputs)
{
    const int64_t c_out = op->c_out, positions = op->kernel[0] * op->kernel[1];
    const T *w = op->weight;
    NAME(gather_row)(op, x, inputs);
    for (int64_t o = 0; o < c_out; o += BLOCK * LANES) {
        const int64_t left = c_out - o < BLOCK * LANES ? c_out - o : BLOCK * LANES;
        const int64_t n = (left + LANES - 1) / LANES;
        const T *bias = (const T *)op->bias + o;
        for (int64_t oy = 0; oy < op->out_height; oy++)
            for (int64_t ox = 0; ox < op->out_width; ox++) {
                T *out = y + (oy * op->out_width + ox) * c_out + o;
                const int64_t y0 = oy * op->stride[0] - op->padding[0];
                const int64_t x0 = ox * op->stride[1] - op->padding[1];
                switch (n) {
                case 1: NAME(sum1)(op, w, bias, out, left, y0, x0, inputs); break;
                case 2: NAME(sum2)(op, w, bias, out, left, y0, x0, inputs); break;
                case 3: NAME(sum3)(op, w, bias, out, left, y0, x0, inputs); break;
                case 4: NAME(sum4)(op, w, bias, out, left, y0, x0, inputs); break;
                case 5: NAME(sum5)(op, w, bias, out, left, y0, x0, inputs); break;
                case 6: NAME(sum6)(op, w, bias, out, left, y0, x0, inputs); break;
                case 7: NAME(sum7)(op, w, bias, out, left, y0, x0, inputs); break;
                case 8: NAME(sum8)(op, w, bias, out, left, y0, x0, inputs); break;
                default: return PSVIT_INVALID_BLOCK;
                }
            }
        w += positions * op->c_in * n * LANES;
    }
    return PSVIT_OK;
}
