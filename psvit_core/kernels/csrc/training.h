/* Loops of training for one type of value; psvit.c includes this file once per type, with
 *   S      the type in memory: float, double or bfloat16 (its 16 bits)
 *   A      the type of all arithmetic and of parameters
 *   GET    an S as an A
 *   PUT    an A as an S
 *   EXP    exp(x) of an A for x <= 0
 *
 * The loops read and write each value once. Rounding to S happens only where a value is stored.
 */

/* LIF neurons from zero state: x and spikes are (steps, n) with these distances of two steps. */
void NAME(psvit_lif)(const S *x, S *spikes, int64_t steps, int64_t n, int64_t x_step,
                     int64_t spikes_step, double threshold)
{
    enum { CHUNK = 1024 };
    const A limit = (A)threshold;
    A v[CHUNK];
    for (int64_t low = 0; low < n; low += CHUNK) {
        const int64_t m = n - low < CHUNK ? n - low : CHUNK;
        for (int64_t i = 0; i < m; i++) v[i] = 0;
        for (int64_t t = 0; t < steps; t++) {
            const S *in = x + t * x_step + low;
            S *out = spikes + t * spikes_step + low;
            for (int64_t i = 0; i < m; i++) {
                const A h = v[i] + (GET(in[i]) - v[i]) * (A)0.5;
                const int fired = h >= limit;
                out[i] = PUT(fired ? (A)1 : (A)0);
                v[i] = fired ? (A)0 : h;
            }
        }
    }
}

/* The gradient of the input of such neurons, with the reset detached. The potentials are computed
 * again from x, so that the forward pass keeps nothing else. `h` is memory for steps * PSVIT_CHUNK
 * values. All operands are (steps, n) with these distances of two steps. */
void NAME(psvit_lif_grad)(const S *x, const S *grad, S *out, int64_t steps, int64_t n,
                          int64_t x_step, int64_t grad_step, int64_t out_step, double threshold,
                          double slope, int64_t arctangent, A *restrict h)
{
    enum { CHUNK = PSVIT_CHUNK };
    const A limit = (A)threshold;
    /* sigmoid: slope * s * (1 - s); arctangent: (slope / 2) / (1 + (pi / 2 * slope * d)^2) */
    const A by = (A)slope, inner = (A)(1.5707963267948966 * slope), half = (A)(slope / 2);
    A carry[CHUNK];
    for (int64_t low = 0; low < n; low += CHUNK) {
        const int64_t m = n - low < CHUNK ? n - low : CHUNK;
        for (int64_t i = 0; i < m; i++) carry[i] = 0; /* the potentials after the reset, at first */
        for (int64_t t = 0; t < steps; t++) {
            const S *in = x + t * x_step + low;
            A *restrict potentials = h + t * CHUNK;
            for (int64_t i = 0; i < m; i++) {
                const A p = carry[i] + (GET(in[i]) - carry[i]) * (A)0.5;
                potentials[i] = p;
                carry[i] = p >= limit ? (A)0 : p;
            }
        }
        for (int64_t i = 0; i < m; i++) carry[i] = 0;
        for (int64_t t = steps - 1; t >= 0; t--) {
            const S *g = grad + t * grad_step + low;
            S *to = out + t * out_step + low;
            const A *potentials = h + t * CHUNK;
            if (arctangent)
                for (int64_t i = 0; i < m; i++) {
                    const A d = potentials[i] - limit, z = d * inner;
                    const A own = GET(g[i]) * half / (1 + z * z);
                    carry[i] = (own + (d >= 0 ? (A)0 : carry[i])) * (A)0.5;
                    to[i] = PUT(carry[i]);
                }
            else
                for (int64_t i = 0; i < m; i++) {
                    const A d = potentials[i] - limit, z = d * by;
                    const A e = EXP(z < 0 ? z : -z), own = GET(g[i]) * by * e / ((1 + e) * (1 + e));
                    carry[i] = (own + (d >= 0 ? (A)0 : carry[i])) * (A)0.5;
                    to[i] = PUT(carry[i]);
                }
        }
    }
}

/* Adds, over rows, x - mean to the sums and its square to the products; with a gradient y, adds y
 * and y * (x - mean). x and y are (rows, n), the others (n,). `part` is memory for 2 * n values. */
void NAME(psvit_row_sums)(const S *x, const S *y, int64_t rows, int64_t n, const A *mean,
                          double *sums, double *products, A *restrict part)
{
    enum { BLOCK_ROWS = 64 }; /* rows that are summed with the precision of A */
    A *restrict sum = part, *restrict product = part + n;
    for (int64_t low = 0; low < rows; low += BLOCK_ROWS) {
        const int64_t high = rows - low < BLOCK_ROWS ? rows : low + BLOCK_ROWS;
        for (int64_t i = 0; i < 2 * n; i++) part[i] = 0;
        for (int64_t r = low; r < high; r++) {
            const S *in = x + r * n, *other = y + r * n;
            if (y)
                for (int64_t i = 0; i < n; i++) {
                    const A g = GET(other[i]);
                    sum[i] += g;
                    product[i] += g * (GET(in[i]) - mean[i]);
                }
            else
                for (int64_t i = 0; i < n; i++) {
                    const A v = GET(in[i]) - mean[i];
                    sum[i] += v;
                    product[i] += v * v;
                }
        }
        for (int64_t i = 0; i < n; i++) {
            sums[i] += sum[i];
            products[i] += product[i];
        }
    }
}

/* out = a * (x - mean) + b, all (rows, n) or (n,). */
void NAME(psvit_row_scale)(const S *x, S *out, int64_t rows, int64_t n, const A *mean, const A *a,
                           const A *b)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++)
            out[r * n + i] = PUT(a[i] * (GET(x[r * n + i]) - mean[i]) + b[i]);
}

/* out = a * (x - mean) + b + c * grad, all (rows, n) or (n,). */
void NAME(psvit_row_grad)(const S *x, const S *grad, S *out, int64_t rows, int64_t n,
                          const A *mean, const A *a, const A *b, const A *c)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++)
            out[r * n + i] =
                PUT(a[i] * (GET(x[r * n + i]) - mean[i]) + b[i] + c[i] * GET(grad[r * n + i]));
}

/* The parameters of a BatchNorm in training, from the sums of psvit_row_sums around the first row.
 *
 * totals     (parts, 2, n): sums and squares of each part of the rows; row i of channel i % channels
 * first      (n,) the first row
 * count      values of a channel
 * statistics (3, channels): mean, variance, 1 / sqrt(variance + eps)
 * scaling    (3, n): mean, factor and bias for psvit_row_scale
 * running    two arrays (channels,) that move by `momentum` to mean and unbiased variance, or NULL
 */
void NAME(psvit_norm_begin)(const double *totals, int64_t parts, int64_t n, int64_t channels,
                            int64_t count, const S *first, const A *weight, const A *bias,
                            double eps, double *statistics, A *scaling, A *running_mean,
                            A *running_var, double momentum)
{
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        const double near = GET(first[c]);
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = c; i < n; i += channels) {
                sum += totals[(2 * part) * n + i];
                square += totals[(2 * part + 1) * n + i];
            }
        const double shift = sum / count, moment = square / count - shift * shift;
        const double mean = near + shift, var = moment > 0 ? moment : 0;
        const double inverse = 1 / __builtin_sqrt(var + eps);
        statistics[c] = mean;
        statistics[channels + c] = var;
        statistics[2 * channels + c] = inverse;
        for (int64_t i = c; i < n; i += channels) {
            scaling[i] = (A)mean;
            scaling[n + i] = (A)(weight[c] * inverse);
            scaling[2 * n + i] = bias[c];
        }
        if (!running_mean) continue;
        running_mean[c] = (A)(running_mean[c] + momentum * (mean - running_mean[c]));
        const double unbiased = var * count / (count - 1);
        running_var[c] = (A)(running_var[c] + momentum * (unbiased - running_var[c]));
    }
}

/* The gradients of its weight and bias, and the parameters (4, n) for psvit_row_grad: mean, a, b
 * and c. totals has the sums of the gradient and of its products with x - mean. */
void NAME(psvit_norm_end)(const double *totals, int64_t parts, int64_t n, int64_t channels,
                          int64_t count, const A *weight, const double *statistics, A *scaling,
                          A *grad_weight, A *grad_bias)
{
    for (int64_t c = 0; c < channels; c++) {
        double sum = 0, product = 0;
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = c; i < n; i += channels) {
                sum += totals[(2 * part) * n + i];
                product += totals[(2 * part + 1) * n + i];
            }
        const double inverse = statistics[2 * channels + c], scale = weight[c] * inverse;
        grad_weight[c] = (A)(product * inverse);
        grad_bias[c] = (A)sum;
        for (int64_t i = c; i < n; i += channels) {
            scaling[i] = (A)statistics[c];
            scaling[n + i] = (A)(-scale * inverse * inverse * product / count);
            scaling[2 * n + i] = (A)(-scale * sum / count);
            scaling[3 * n + i] = (A)scale;
        }
    }
}
