/* A forward pass, or a part of one, as a list of operations on one small piece of memory, the
 * arena, which stays in the cache: loads values of a few images, runs, stores what is asked for.
 * Included by loops.c once for each type; the numbers of an operation are written by ops.py.
 *
 * An operand is two numbers: 1 and an address, or 0 and an offset in the arena (elements).
 */
typedef struct {
    T *arena;
    char *scratch;
    const long *images; /* positions in the batch */
    long end, first, per_run;
} NAME(run);

static inline T *NAME(at)(const NAME(run) *r, const long *operand)
{
    return operand[0] ? (T *)operand[1] : r->arena + operand[1];
}

/* Joins axes that lie behind each other in every operand, the last axis the fastest. */
static inline long NAME(joined)(const long *sizes, long n_axes, long n_operands, const long *operands,
                                long *size, long (*stride)[DIMS])
{
    long n = 0;
    for (long a = 0; a < n_axes; a++) {
        if (sizes[a] == 1) continue;
        int joins = n > 0;
        for (long k = 0; joins && k < n_operands; k++)
            joins = stride[k][n - 1] == operands[k * OPERAND + 2 + a] * sizes[a];
        if (!joins) size[n++] = 1;
        size[n - 1] *= sizes[a];
        for (long k = 0; k < n_operands; k++) stride[k][n - 1] = operands[k * OPERAND + 2 + a];
    }
    if (!n) {
        size[n++] = 1;
        for (long k = 0; k < n_operands; k++) stride[k][0] = 1;
    }
    return n;
}

/* [n_axes, sizes, source, target, axis of images, batch, axis of channels, table]. The axis of images
 * holds rows x images: all of the batch in the source, those of a run in the target. */
static inline long NAME(in_batch)(const NAME(run) *r, long i, long batch)
{
    long which = r->first + i % r->per_run;
    if (which >= r->end) which = r->end - 1;
    return i / r->per_run * batch + r->images[which];
}

static void NAME(op_load)(const NAME(run) *r, const long *p)
{
    const long n = p[0], *sizes = p + 1, *source = p + 7, *target = p + 7 + OPERAND;
    const long *more = target + OPERAND, images = more[0], batch = more[1], channels = more[2];
    const long *table = (const long *)more[3];
    const T *from = NAME(at)(r, source);
    T *to = NAME(at)(r, target);
    long at[DIMS] = {0};
    const long inner = sizes[n - 1], step = source[1 + n], out_step = target[1 + n];
    for (;;) {
        const T *x = from;
        T *y = to;
        for (long a = 0; a < n - 1; a++) {
            const long i = at[a];
            x += source[2 + a] * (a == images     ? NAME(in_batch)(r, i, batch)
                                  : a == channels ? table[i]
                                                  : i);
            y += i * target[2 + a];
        }
        if (n - 1 == channels)
            for (long i = 0; i < inner; i++) y[i * out_step] = x[table[i] * step];
        else if (n - 1 == images)
            for (long i = 0; i < inner; i++)
                y[i * out_step] = x[NAME(in_batch)(r, i, batch) * step];
        else
            for (long i = 0; i < inner; i++) y[i * out_step] = x[i * step];
        long a = n - 2;
        while (a >= 0 && ++at[a] == sizes[a]) at[a--] = 0;
        if (a < 0) return;
    }
}

/* [width, source, distance of two images, distance of two numbers, address] */
static void NAME(op_store)(const NAME(run) *r, const long *p)
{
    const T *x = NAME(at)(r, p + 1);
    for (long i = 0; i < r->per_run && r->first + i < r->end; i++) {
        T *y = (T *)p[5] + (r->first + i) * p[0];
        for (long j = 0; j < p[0]; j++) y[j] = x[i * p[3] + j * p[4]];
    }
}

#define EACH(EXPRESSION)                                              \
    do {                                                              \
        if (so == 1 && sa == 1 && sb == 1)                            \
            for (long i = 0; i < n; i++) {                            \
                const T x = a[i], y = b[i];                           \
                (void)y;                                              \
                o[i] = EXPRESSION;                                    \
            }                                                         \
        else if (so == 1 && sa == 1 && sb == 0)                       \
            for (long i = 0; i < n; i++) {                            \
                const T x = a[i], y = b[0];                           \
                (void)y;                                              \
                o[i] = EXPRESSION;                                    \
            }                                                         \
        else                                                          \
            for (long i = 0; i < n; i++) {                            \
                const T x = a[i * sa], y = b[i * sb];                 \
                (void)y;                                              \
                o[i * so] = EXPRESSION;                               \
            }                                                         \
    } while (0)

static inline void NAME(map_row)(long call, long n, T *restrict o, long so, const T *a, long sa,
                                 const T *b, long sb, const T *c, long sc, T most, T by)
{
    switch (call) {
    case COPY: EACH(x); break;
    case ADD: EACH(x + y); break;
    case SUB: EACH(x - y); break;
    case MUL: EACH(x * y); break;
    case DIV: EACH(x / y); break;
    case SCALE_SHIFT:
        if (so == 1 && sa == 1 && sb == 1 && sc == 1)
            for (long i = 0; i < n; i++) o[i] = a[i] * b[i] + c[i];
        else
            for (long i = 0; i < n; i++) o[i * so] = a[i * sa] * b[i * sb] + c[i * sc];
        break;
    case INTEGER:
        if (so == 1 && sa == 1) {
            NAME(integer_lif)(a, o, n, most, by);
            break;
        }
        for (long i = 0; i < n; i++) NAME(integer_lif)(a + i * sa, o + i * so, 1, most, by);
        break;
    }
}
#undef EACH

static inline T NAME(real)(long bits)
{
    union { long i; double d; } u = {.i = bits};
    return (T)u.d;
}

/* [call, levels, norm, n_axes, sizes, target, three sources] */
static void NAME(op_map)(const NAME(run) *r, const long *p)
{
    long size[DIMS], stride[4][DIMS], at[DIMS] = {0};
    const long n = NAME(joined)(p + 4, p[3], 4, p + 10, size, stride);
    T *o = NAME(at)(r, p + 10);
    const T *x[3];
    for (int k = 0; k < 3; k++) x[k] = NAME(at)(r, p + 10 + (k + 1) * OPERAND);
    const T most = NAME(real)(p[1]), by = NAME(real)(p[2]);
    for (;;) {
        long off[4] = {0};
        for (long a = 0; a < n - 1; a++)
            for (int k = 0; k < 4; k++) off[k] += at[a] * stride[k][a];
        NAME(map_row)(p[0], size[n - 1], o + off[0], stride[0][n - 1], x[0] + off[1],
                      stride[1][n - 1], x[1] + off[2], stride[2][n - 1], x[2] + off[3],
                      stride[3][n - 1], most, by);
        long a = n - 2;
        while (a >= 0 && ++at[a] == size[a]) at[a--] = 0;
        if (a < 0) return;
    }
}

/* [steps, n, distance of two steps, threshold, source, target] */
static void NAME(op_lif)(const NAME(run) *r, const long *p)
{
    union { long i; double d; } u = {.i = p[3]};
    NAME(lif)(NAME(at)(r, p + 4), NAME(at)(r, p + 6), p[0], p[1], p[2], p[1], u.d);
}

/* One step of a LIF on a row of currents in place. */
static inline void NAME(lif_row)(T *restrict x, T *restrict v, long n, T limit)
{
    for (long i = 0; i < n; i++) {
        const T h = v[i] + (x[i] - v[i]) * (T)0.5;
        const int fired = h >= limit;
        x[i] = fired ? (T)1 : (T)0;
        v[i] = fired ? (T)0 : h;
    }
}

/* [rows, cin, h, w, strides of the source, weight, bias, cout, oh, ow, kh, kw, strides, paddings,
 *  steps of the LIF behind it or 0, its threshold, levels of the integer LIF or 0, norm,
 *  source, target] */
static void NAME(op_conv)(const NAME(run) *r, const long *p)
{
    const long rows = p[0], cin = p[1], h = p[2], w = p[3], cout = p[10], oh = p[11], ow = p[12];
    const long steps = p[19], per = steps ? rows / steps : rows, n = oh * ow * cout;
    const T *x = NAME(at)(r, p + 23);
    T *y = NAME(at)(r, p + 25), *v = (T *)r->scratch;
    T *values = v + (steps ? n : 0);
    const long room = h * w * NAME(list)(cin) + 32;
    int *numbers = (int *)(values + room), *count = numbers + room;
    for (long m = 0; m < per; m++) {
        if (steps)
            for (long i = 0; i < n; i++) v[i] = 0;
        for (long t = 0; t < (steps ? steps : 1); t++) {
            const long row = t * per + m;
            T *out = y + row * n;
            NAME(spike_conv)(x + row * p[4], p[4], p[5], p[6], p[7], (const T *)p[8],
                             (const T *)p[9], out, 1, cin, h, w, cout, oh, ow, p[13], p[14], p[15],
                             p[16], p[17], p[18], numbers, values, count);
            if (steps)
                NAME(lif_row)(out, v, n, NAME(real)(p[20]));
            else if (p[21])
                NAME(integer_lif)(out, out, n, (double)p[21], (double)p[22]);
        }
    }
}

/* [rows, c, h, w, row, y and x strides of the source, weight (kh, kw, c), bias or 0, oh, ow, kh,
 *  kw, strides, paddings, source, target]; channels lie behind each other in both. */
static void NAME(op_depthwise)(const NAME(run) *r, const long *p)
{
    const long c = p[1], h = p[2], w = p[3], oh = p[9], ow = p[10], kh = p[11], kw = p[12];
    const T *x = NAME(at)(r, p + 17), *weight = (const T *)p[7], *bias = (const T *)p[8];
    T *y = NAME(at)(r, p + 19);
    for (long row = 0; row < p[0]; row++, x += p[4])
        for (long oy = 0; oy < oh; oy++)
            for (long ox = 0; ox < ow; ox++, y += c) {
                const long y0 = oy * p[13] - p[15], x0 = ox * p[14] - p[16];
                for (long low = 0; low < c; low += 64) {
                    const long n = c - low < 64 ? c - low : 64;
                    T acc[64];
                    for (long i = 0; i < n; i++) acc[i] = bias ? bias[low + i] : 0;
                    for (long ky = y0 < 0 ? -y0 : 0; ky < kh && y0 + ky < h; ky++)
                        for (long kx = x0 < 0 ? -x0 : 0; kx < kw && x0 + kx < w; kx++) {
                            const T *in = x + (y0 + ky) * p[5] + (x0 + kx) * p[6] + low;
                            const T *by = weight + (ky * kw + kx) * c + low;
                            if (n == 64)
                                for (long i = 0; i < 64; i++) acc[i] += in[i] * by[i];
                            else
                                for (long i = 0; i < n; i++) acc[i] += in[i] * by[i];
                        }
                    for (long i = 0; i < n; i++) y[low + i] = acc[i];
                }
            }
}

/* The sum of n numbers in a fixed order. */
static inline T NAME(total)(const T *x, long n, long step)
{
    T sum = 0;
    long i = 0;
    if (step == 1 && n >= 2 * LANES) {
        NAME(loose) acc = {0};
        for (; i + LANES <= n; i += LANES) acc += *(const NAME(loose) *)(x + i);
        for (int j = 0; j < LANES; j++) sum += acc[j];
    }
    for (; i < n; i++) sum += x[i * step];
    return sum;
}

/* [axes that stay, axes that go, divisor, sizes of both (2 x DIMS), target, source by the axes that
 *  stay, source by the axes that go] */
static void NAME(op_sum)(const NAME(run) *r, const long *p)
{
    long size[DIMS], stride[2][DIMS], gone[DIMS], gone_stride[1][DIMS], at[DIMS] = {0};
    const long *operands = p + 3 + 2 * DIMS;
    const long n = NAME(joined)(p + 3, p[0], 2, operands, size, stride);
    const long m = NAME(joined)(p + 3 + DIMS, p[1], 1, operands + 2 * OPERAND, gone, gone_stride);
    T *o = NAME(at)(r, operands);
    const T *x = NAME(at)(r, operands + OPERAND);
    const T by = (T)p[2];
    const long inner = size[n - 1], so = stride[0][n - 1], sx = stride[1][n - 1];
    const int by_row = sx == 1 && so == 1 && inner >= LANES;
    for (;;) {
        T *to = o;
        const T *from = x;
        for (long a = 0; a < n - 1; a++) {
            to += at[a] * stride[0][a];
            from += at[a] * stride[1][a];
        }
        for (long i = 0; i < inner; i++) to[i * so] = 0;
        long g[DIMS] = {0};
        for (;;) {
            const T *in = from;
            for (long a = 0; a < m - 1; a++) in += g[a] * gone_stride[0][a];
            const long step = gone_stride[0][m - 1];
            if (by_row)
                for (long k = 0; k < gone[m - 1]; k++)
                    for (long i = 0; i < inner; i++) to[i] += in[k * step + i];
            else
                for (long i = 0; i < inner; i++)
                    to[i * so] += NAME(total)(in + i * sx, gone[m - 1], step);
            long a = m - 2;
            while (a >= 0 && ++g[a] == gone[a]) g[a--] = 0;
            if (a < 0) break;
        }
        if (p[2] != 1)
            for (long i = 0; i < inner; i++) to[i * so] /= by;
        long a = n - 2;
        while (a >= 0 && ++at[a] == size[a]) at[a--] = 0;
        if (a < 0) return;
    }
}

/* [rows, c, h, w, row, y and x strides of the source, oh, ow, kernel, stride, padding, source,
 *  target]: the largest of each window; channels lie behind each other in both. */
static void NAME(op_pool)(const NAME(run) *r, const long *p)
{
    const long c = p[1], h = p[2], w = p[3], oh = p[7], ow = p[8], k = p[9];
    const T *x = NAME(at)(r, p + 12);
    T *y = NAME(at)(r, p + 14);
    for (long row = 0; row < p[0]; row++, x += p[4])
        for (long oy = 0; oy < oh; oy++)
            for (long ox = 0; ox < ow; ox++, y += c) {
                const long y0 = oy * p[10] - p[11], x0 = ox * p[10] - p[11];
                int first = 1;
                for (long iy = y0 < 0 ? 0 : y0; iy < y0 + k && iy < h; iy++)
                    for (long ix = x0 < 0 ? 0 : x0; ix < x0 + k && ix < w; ix++) {
                        const T *in = x + iy * p[5] + ix * p[6];
                        if (first)
                            for (long i = 0; i < c; i++) y[i] = in[i];
                        else
                            for (long i = 0; i < c; i++) y[i] = in[i] > y[i] ? in[i] : y[i];
                        first = 0;
                    }
            }
}

/* [m, k, n, three sizes of batches, target, left, right: each with strides of the batches, then of
 *  its rows and columns]: products; zeros on the left, such as silent neurons, cost nothing. */
static void NAME(op_matmul)(const NAME(run) *r, const long *p)
{
    const long m = p[0], k = p[1], n = p[2], *size = p + 3;
    const long *o = p + 6, *a = o + OPERAND, *b = a + OPERAND;
    T *right = (T *)r->scratch, *sums = right + k * n;
    for (long i = 0; i < size[0] * size[1] * size[2]; i++) {
        const long at[3] = {i / size[2] / size[1], i / size[2] % size[1], i % size[2]};
        T *to = NAME(at)(r, o);
        const T *left = NAME(at)(r, a), *given = NAME(at)(r, b);
        for (int d = 0; d < 3; d++) {
            to += at[d] * o[2 + d];
            left += at[d] * a[2 + d];
            given += at[d] * b[2 + d];
        }
        const T *rows = given;
        long row = b[5];
        if (b[6] != 1) {
            for (long y = 0; y < k; y++)
                for (long x = 0; x < n; x++) right[y * n + x] = given[y * b[5] + x * b[6]];
            rows = right;
            row = n;
        }
        for (long y = 0; y < m; y++) {
            T *restrict sum = o[6] == 1 ? to + y * o[5] : sums;
            for (long x = 0; x < n; x++) sum[x] = 0;
            for (long z = 0; z < k; z++) {
                const T by = left[y * a[5] + z * a[6]];
                if (by == 0) continue;
                const T *restrict in = rows + z * row;
                for (long x = 0; x < n; x++) sum[x] += by * in[x];
            }
            if (o[6] != 1)
                for (long x = 0; x < n; x++) to[y * o[5] + x * o[6]] = sum[x];
        }
    }
}

/* Runs the operations on images low to high, a few at a time. ops: (n_ops, width), the kind first.
 * seconds: by kind, added to; or NULL. */
void NAME(run_program)(const long *ops, long n_ops, long width, T *arena, char *scratch,
                       const long *images, long low, long high, long per_run, double *seconds)
{
    NAME(run) r = {arena, scratch, images, high, low, per_run};
    for (; r.first < high; r.first += per_run)
        for (long i = 0; i < n_ops; i++) {
            const long *p = ops + i * width + 1;
            const double begin = seconds ? now() : 0;
            switch (p[-1]) {
            case LOAD: NAME(op_load)(&r, p); break;
            case STORE: NAME(op_store)(&r, p); break;
            case MAP: NAME(op_map)(&r, p); break;
            case LIF: NAME(op_lif)(&r, p); break;
            case CONV: NAME(op_conv)(&r, p); break;
            case DEPTHWISE: NAME(op_depthwise)(&r, p); break;
            case SUM: NAME(op_sum)(&r, p); break;
            case POOL: NAME(op_pool)(&r, p); break;
            case MATMUL: NAME(op_matmul)(&r, p); break;
            }
            if (seconds) seconds[p[-1]] += now() - begin;
        }
}
