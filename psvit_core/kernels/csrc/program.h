/* Operations of a program for one type of value; psvit.c includes this file once per type.
 *
 * A program is a forward pass, or a part of one, on a few images at a time. It loads their values
 * into the arena, a block of memory small enough to stay in the cache, and stores the results.
 */
static inline T *NAME(at)(const struct psvit_run *run, struct psvit_place place)
{
    return (T *)(place.memory ? place.memory : run->arena) + place.offset;
}

static inline T *NAME(operand)(const struct psvit_run *run, const struct psvit_operand *operand)
{
    return NAME(at)(run, (struct psvit_place){operand->memory, operand->offset});
}

/* Position in the batch of entry i of a load's image axis. */
static inline int64_t NAME(in_batch)(const struct psvit_run *run, int64_t i, int64_t batch)
{
    int64_t image = run->first + i % run->per_run;
    if (image >= run->end) image = run->end - 1; /* the last images of a batch: repeat the last */
    return i / run->per_run * batch + run->images[image];
}

/* Position in the source of entry i of an axis of a load. */
static inline int64_t NAME(source_index)(const struct psvit_run *run, const struct psvit_load *op,
                                         int64_t axis, int64_t i)
{
    if (axis == op->image_axis) return NAME(in_batch)(run, i, op->batch);
    return axis == op->channel_axis ? op->channels[i] : i;
}

static void NAME(run_load)(const struct psvit_run *run, const struct psvit_load *op)
{
    const int64_t last = op->n_axes - 1, inner = op->sizes[last];
    const int64_t *from = op->source.strides, *to = op->target.strides;
    const T *source = NAME(operand)(run, &op->source);
    T *target = NAME(operand)(run, &op->target);
    int64_t index[PSVIT_AXES] = {0};
    do {
        const T *x = source;
        T *y = target;
        for (int64_t axis = 0; axis < last; axis++) {
            x += from[axis] * NAME(source_index)(run, op, axis, index[axis]);
            y += to[axis] * index[axis];
        }
        if (last == op->channel_axis)
            for (int64_t i = 0; i < inner; i++) y[i * to[last]] = x[op->channels[i] * from[last]];
        else if (last == op->image_axis)
            for (int64_t i = 0; i < inner; i++)
                y[i * to[last]] = x[NAME(in_batch)(run, i, op->batch) * from[last]];
        else
            for (int64_t i = 0; i < inner; i++) y[i * to[last]] = x[i * from[last]];
    } while (advance(index, op->sizes, last));
}

static void NAME(run_store)(const struct psvit_run *run, const struct psvit_store *op)
{
    const T *x = NAME(at)(run, op->source);
    T *target = NAME(at)(run, op->target);
    for (int64_t i = 0; i < run->per_run && run->first + i < run->end; i++) {
        T *y = target + (run->first + i) * op->n;
        for (int64_t j = 0; j < op->n; j++) y[j] = x[i * op->image_stride + j * op->value_stride];
    }
}

/* One row of a map: n elements of the target and three sources, with a stride each. */
struct NAME(map_row) {
    int64_t n;
    T *target;
    const T *a, *b, *c;
    int64_t to, sa, sb, sc; /* strides */
};

/* Writes EXPRESSION of x and y to each element. The usual strides have separate loops, which the
 * compiler can vectorize. */
#define EACH(EXPRESSION)                                              \
    do {                                                              \
        if (so == 1 && sa == 1 && sb == 1)                            \
            for (int64_t i = 0; i < n; i++) {                         \
                const T x = a[i], y = b[i];                           \
                (void)y;                                              \
                o[i] = EXPRESSION;                                    \
            }                                                         \
        else if (so == 1 && sa == 1 && sb == 0)                       \
            for (int64_t i = 0; i < n; i++) {                         \
                const T x = a[i], y = b[0];                           \
                (void)y;                                              \
                o[i] = EXPRESSION;                                    \
            }                                                         \
        else                                                          \
            for (int64_t i = 0; i < n; i++) {                         \
                const T x = a[i * sa], y = b[i * sb];                 \
                (void)y;                                              \
                o[i * so] = EXPRESSION;                               \
            }                                                         \
    } while (0)

static inline int32_t NAME(run_map_row)(const struct psvit_map *op, const struct NAME(map_row) *row)
{
    const int64_t n = row->n, so = row->to, sa = row->sa, sb = row->sb, sc = row->sc;
    const T *a = row->a, *b = row->b, *c = row->c;
    T *restrict o = row->target;
    switch (op->function) {
    case PSVIT_COPY: EACH(x); break;
    case PSVIT_ADD: EACH(x + y); break;
    case PSVIT_SUB: EACH(x - y); break;
    case PSVIT_MUL: EACH(x * y); break;
    case PSVIT_DIV: EACH(x / y); break;
    case PSVIT_SCALE_SHIFT:
        if (so == 1 && sa == 1 && sb == 1 && sc == 1)
            for (int64_t i = 0; i < n; i++) o[i] = a[i] * b[i] + c[i];
        else
            for (int64_t i = 0; i < n; i++) o[i * so] = a[i * sa] * b[i * sb] + c[i * sc];
        break;
    case PSVIT_INTEGER_LIF: {
        const T levels = (T)op->levels, norm = (T)op->norm;
        if (so == 1 && sa == 1)
            NAME(integer_lif)(a, o, n, levels, norm, op->half_up);
        else
            for (int64_t i = 0; i < n; i++)
                NAME(integer_lif)(a + i * sa, o + i * so, 1, levels, norm, op->half_up);
        break;
    }
    default: return PSVIT_UNKNOWN_FUNCTION;
    }
    return PSVIT_OK;
}
#undef EACH

static int32_t NAME(run_map)(const struct psvit_run *run, const struct psvit_map *op)
{
    const int64_t *given[4] = {op->target.strides, op->a.strides, op->b.strides, op->c.strides};
    int64_t size[PSVIT_AXES], stride[4][PSVIT_AXES], index[PSVIT_AXES] = {0};
    const int64_t last = merge_axes(op->n_axes, op->sizes, 4, given, size, stride) - 1;
    T *target = NAME(operand)(run, &op->target);
    const T *a = NAME(operand)(run, &op->a);
    const T *b = NAME(operand)(run, &op->b);
    const T *c = NAME(operand)(run, &op->c);
    do {
        int64_t offset[4] = {0};
        for (int64_t axis = 0; axis < last; axis++)
            for (int k = 0; k < 4; k++) offset[k] += index[axis] * stride[k][axis];
        const struct NAME(map_row) row = {
            .n = size[last],
            .target = target + offset[0],
            .a = a + offset[1],
            .b = b + offset[2],
            .c = c + offset[3],
            .to = stride[0][last],
            .sa = stride[1][last],
            .sb = stride[2][last],
            .sc = stride[3][last],
        };
        const int32_t status = NAME(run_map_row)(op, &row);
        if (status != PSVIT_OK) return status;
    } while (advance(index, size, last));
    return PSVIT_OK;
}

static void NAME(run_lif)(const struct psvit_run *run, const struct psvit_lif *op)
{
    NAME(lif)(NAME(at)(run, op->source), NAME(at)(run, op->target), op->time_steps, op->n,
              op->source_step, op->target_step, (T)op->threshold);
}

static int32_t NAME(run_conv)(const struct psvit_run *run, const struct psvit_conv *op)
{
    const int64_t n = op->out_height * op->out_width * op->c_out;
    const int64_t steps = op->lif_steps > 0 ? op->lif_steps : 1, images = op->rows / steps;
    const int64_t positions = op->height * op->width;
    const int64_t entries = positions * NAME(list_size)(op->c_in) + PSVIT_LIST_MARGIN;
    const T *x = NAME(at)(run, op->source);
    T *y = NAME(at)(run, op->target), *v = run->scratch;
    struct NAME(inputs) inputs;
    inputs.values = v + (op->lif_steps ? n : 0);
    inputs.channels = (int32_t *)(inputs.values + entries);
    inputs.lengths = inputs.channels + entries;
    for (int64_t image = 0; image < images; image++) {
        if (op->lif_steps)
            for (int64_t i = 0; i < n; i++) v[i] = 0;
        for (int64_t t = 0; t < steps; t++) {
            const int64_t row = t * images + image;
            T *out = y + row * n;
            const int32_t status =
                NAME(conv_row)(op, x + row * op->source_strides[0], out, &inputs);
            if (status != PSVIT_OK) return status;
            if (op->lif_steps)
                NAME(lif_step)(out, out, v, n, (T)op->lif_threshold);
            else if (op->integer_levels)
                NAME(integer_lif)(out, out, n, (T)op->integer_levels, (T)op->integer_norm,
                                  op->integer_half_up);
        }
    }
    return PSVIT_OK;
}

/* One output position of a depthwise convolution, whose window begins at (y0, x0). */
static inline void NAME(depthwise_at)(const struct psvit_depthwise *op, const T *x, T *y,
                                      int64_t y0, int64_t x0)
{
    enum { CHUNK = 64 }; /* channels whose sums stay in registers */
    const int64_t c = op->channels, *strides = op->source_strides;
    const T *weight = op->weight, *bias = op->bias;
    for (int64_t low = 0; low < c; low += CHUNK) {
        const int64_t n = c - low < CHUNK ? c - low : CHUNK;
        T acc[CHUNK];
        for (int64_t i = 0; i < n; i++) acc[i] = bias ? bias[low + i] : 0;
        for (int64_t ky = y0 < 0 ? -y0 : 0; ky < op->kernel[0] && y0 + ky < op->height; ky++)
            for (int64_t kx = x0 < 0 ? -x0 : 0; kx < op->kernel[1] && x0 + kx < op->width; kx++) {
                const T *in = x + (y0 + ky) * strides[1] + (x0 + kx) * strides[2] + low;
                const T *w = weight + (ky * op->kernel[1] + kx) * c + low;
                if (n == CHUNK)
                    for (int64_t i = 0; i < CHUNK; i++) acc[i] += in[i] * w[i];
                else
                    for (int64_t i = 0; i < n; i++) acc[i] += in[i] * w[i];
            }
        for (int64_t i = 0; i < n; i++) y[low + i] = acc[i];
    }
}

static void NAME(run_depthwise)(const struct psvit_run *run, const struct psvit_depthwise *op)
{
    const T *x = NAME(at)(run, op->source);
    T *y = NAME(at)(run, op->target);
    for (int64_t row = 0; row < op->rows; row++, x += op->source_strides[0])
        for (int64_t oy = 0; oy < op->out_height; oy++)
            for (int64_t ox = 0; ox < op->out_width; ox++, y += op->channels)
                NAME(depthwise_at)(op, x, y, oy * op->stride[0] - op->padding[0],
                                   ox * op->stride[1] - op->padding[1]);
}

/* The sum of n numbers in a fixed order. */
static inline T NAME(total)(const T *x, int64_t n, int64_t step)
{
    T sum = 0;
    int64_t i = 0;
    if (step == 1 && n >= 2 * LANES) {
        NAME(loose) acc = {0};
        for (; i + LANES <= n; i += LANES) acc += *(const NAME(loose) *)(x + i);
        for (int j = 0; j < LANES; j++) sum += acc[j];
    }
    for (; i < n; i++) sum += x[i * step];
    return sum;
}

static void NAME(run_sum)(const struct psvit_run *run, const struct psvit_sum *op)
{
    const int64_t *kept_given[2] = {op->target.strides, op->source.strides};
    const int64_t *reduced_given[1] = {op->reduced_strides};
    int64_t kept[PSVIT_AXES], stride[2][PSVIT_AXES], index[PSVIT_AXES] = {0};
    int64_t reduced[PSVIT_AXES], reduced_stride[1][PSVIT_AXES];
    const int64_t last = merge_axes(op->n_kept, op->kept_sizes, 2, kept_given, kept, stride) - 1;
    const int64_t reduced_last = merge_axes(op->n_reduced, op->reduced_sizes, 1, reduced_given,
                                            reduced, reduced_stride) - 1;
    const int64_t inner = kept[last], so = stride[0][last], sx = stride[1][last];
    const int64_t summands = reduced[reduced_last], step = reduced_stride[0][reduced_last];
    const int by_row = sx == 1 && so == 1 && inner >= LANES;
    T *target = NAME(operand)(run, &op->target);
    const T *source = NAME(operand)(run, &op->source);
    do {
        T *to = target;
        const T *from = source;
        for (int64_t axis = 0; axis < last; axis++) {
            to += index[axis] * stride[0][axis];
            from += index[axis] * stride[1][axis];
        }
        for (int64_t i = 0; i < inner; i++) to[i * so] = 0;
        int64_t reduced_index[PSVIT_AXES] = {0};
        do {
            const T *in = from;
            for (int64_t axis = 0; axis < reduced_last; axis++)
                in += reduced_index[axis] * reduced_stride[0][axis];
            if (by_row)
                for (int64_t k = 0; k < summands; k++)
                    for (int64_t i = 0; i < inner; i++) to[i] += in[k * step + i];
            else
                for (int64_t i = 0; i < inner; i++)
                    to[i * so] += NAME(total)(in + i * sx, summands, step);
        } while (advance(reduced_index, reduced, reduced_last));
        if (op->divisor != 1)
            for (int64_t i = 0; i < inner; i++) to[i * so] /= (T)op->divisor;
    } while (advance(index, kept, last));
}

/* One output position of a pooling, whose window begins at (y0, x0). */
static inline void NAME(pool_at)(const struct psvit_pool *op, const T *x, T *y, int64_t y0,
                                 int64_t x0)
{
    const int64_t c = op->channels, *strides = op->source_strides;
    int first = 1;
    for (int64_t iy = y0 < 0 ? 0 : y0; iy < y0 + op->kernel && iy < op->height; iy++)
        for (int64_t ix = x0 < 0 ? 0 : x0; ix < x0 + op->kernel && ix < op->width; ix++) {
            const T *in = x + iy * strides[1] + ix * strides[2];
            if (first)
                for (int64_t i = 0; i < c; i++) y[i] = in[i];
            else
                for (int64_t i = 0; i < c; i++) y[i] = in[i] > y[i] ? in[i] : y[i];
            first = 0;
        }
}

static void NAME(run_pool)(const struct psvit_run *run, const struct psvit_pool *op)
{
    const T *x = NAME(at)(run, op->source);
    T *y = NAME(at)(run, op->target);
    for (int64_t row = 0; row < op->rows; row++, x += op->source_strides[0])
        for (int64_t oy = 0; oy < op->out_height; oy++)
            for (int64_t ox = 0; ox < op->out_width; ox++, y += op->channels)
                NAME(pool_at)(op, x, y, oy * op->stride - op->padding,
                              ox * op->stride - op->padding);
}

/* One product (m, k) @ (k, n); the last two strides of an operand are those of rows and columns. */
static void NAME(matmul_one)(const struct psvit_matmul *op, T *to, const T *left, const T *right,
                             T *scratch)
{
    enum { ROW = PSVIT_BATCH_AXES, COLUMN };
    const int64_t n = op->n, k = op->k;
    const int64_t *o = op->target.strides, *a = op->left.strides, *b = op->right.strides;
    T *copy = scratch, *sums = copy + k * n;
    const T *rows = right;
    int64_t row_step = b[ROW];
    if (b[COLUMN] != 1) {
        for (int64_t y = 0; y < k; y++)
            for (int64_t x = 0; x < n; x++) copy[y * n + x] = right[y * b[ROW] + x * b[COLUMN]];
        rows = copy;
        row_step = n;
    }
    for (int64_t y = 0; y < op->m; y++) {
        T *restrict sum = o[COLUMN] == 1 ? to + y * o[ROW] : sums;
        for (int64_t x = 0; x < n; x++) sum[x] = 0;
        for (int64_t z = 0; z < k; z++) {
            const T by = left[y * a[ROW] + z * a[COLUMN]];
            if (by == 0) continue;
            const T *restrict in = rows + z * row_step;
            for (int64_t x = 0; x < n; x++) sum[x] += by * in[x];
        }
        if (o[COLUMN] != 1)
            for (int64_t x = 0; x < n; x++) to[y * o[ROW] + x * o[COLUMN]] = sum[x];
    }
}

static void NAME(run_matmul)(const struct psvit_run *run, const struct psvit_matmul *op)
{
    T *target = NAME(operand)(run, &op->target);
    const T *left = NAME(operand)(run, &op->left), *right = NAME(operand)(run, &op->right);
    int64_t index[PSVIT_BATCH_AXES] = {0};
    do {
        int64_t to = 0, a = 0, b = 0;
        for (int axis = 0; axis < PSVIT_BATCH_AXES; axis++) {
            to += index[axis] * op->target.strides[axis];
            a += index[axis] * op->left.strides[axis];
            b += index[axis] * op->right.strides[axis];
        }
        NAME(matmul_one)(op, target + to, left + a, right + b, run->scratch);
    } while (advance(index, op->batch_sizes, PSVIT_BATCH_AXES));
}

static int32_t NAME(run_instruction)(const struct psvit_run *run,
                                     const struct psvit_instruction *instruction)
{
    const void *op = instruction->operation;
    switch (instruction->kind) {
    case PSVIT_LOAD: NAME(run_load)(run, op); break;
    case PSVIT_STORE: NAME(run_store)(run, op); break;
    case PSVIT_MAP: return NAME(run_map)(run, op);
    case PSVIT_LIF: NAME(run_lif)(run, op); break;
    case PSVIT_CONV: return NAME(run_conv)(run, op);
    case PSVIT_DEPTHWISE: NAME(run_depthwise)(run, op); break;
    case PSVIT_SUM: NAME(run_sum)(run, op); break;
    case PSVIT_POOL: NAME(run_pool)(run, op); break;
    case PSVIT_MATMUL: NAME(run_matmul)(run, op); break;
    default: return PSVIT_UNKNOWN_OPERATION;
    }
    return PSVIT_OK;
}

int32_t NAME(psvit_run)(const struct psvit_run *run)
{
    struct psvit_run part = *run; /* part.first advances by the images of one pass */
    for (; part.first < part.end; part.first += part.per_run)
        for (int64_t i = 0; i < part.n_instructions; i++) {
            const struct psvit_instruction *instruction = part.instructions + i;
            const double begin = part.seconds ? now() : 0;
            const int32_t status = NAME(run_instruction)(&part, instruction);
            if (status != PSVIT_OK) return status;
            if (part.seconds) part.seconds[instruction->kind] += now() - begin;
        }
    return PSVIT_OK;
}
