/* The compiled loops of psvit_core: one library, built on the user's machine (kernels/build.py).
 *
 * loops.h and program.h are templates: they are included once for float and once for double, with
 *   T        the type of all values
 *   LANES    values in a vector of 64 bytes
 *   RINT     rounding of a T to the nearest integer, halves to even
 *   FLOOR    rounding of a T down to an integer
 *   NAME(f)  the name of a function for this type
 * training.h is another, for float, double and bfloat16.
 */
#include "psvit.h"

#include "convert.h"

#include <stddef.h>
#include <time.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { BLOCK = 8 }; /* vectors of output channels that a convolution sums at a time */

int32_t psvit_interface_version(void) { return PSVIT_INTERFACE_VERSION; }

int64_t psvit_struct_size(int32_t number)
{
    switch (number) {
    case PSVIT_LOAD: return sizeof(struct psvit_load);
    case PSVIT_STORE: return sizeof(struct psvit_store);
    case PSVIT_MAP: return sizeof(struct psvit_map);
    case PSVIT_LIF: return sizeof(struct psvit_lif);
    case PSVIT_CONV: return sizeof(struct psvit_conv);
    case PSVIT_DEPTHWISE: return sizeof(struct psvit_depthwise);
    case PSVIT_SUM: return sizeof(struct psvit_sum);
    case PSVIT_POOL: return sizeof(struct psvit_pool);
    case PSVIT_MATMUL: return sizeof(struct psvit_matmul);
    case PSVIT_STRUCT_PLACE: return sizeof(struct psvit_place);
    case PSVIT_STRUCT_OPERAND: return sizeof(struct psvit_operand);
    case PSVIT_STRUCT_INSTRUCTION: return sizeof(struct psvit_instruction);
    case PSVIT_STRUCT_RUN: return sizeof(struct psvit_run);
    default: return -1;
    }
}

/* Seconds of a clock that only moves forward. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Advances a multi-index over the first n axes, the last one fastest; returns 0 after the last. */
static inline int advance(int64_t *index, const int64_t *sizes, int64_t n)
{
    for (int64_t axis = n - 1; axis >= 0; axis--) {
        if (++index[axis] < sizes[axis]) return 1;
        index[axis] = 0;
    }
    return 0;
}

/* Merges axes that are adjacent in memory in every operand; the last axis is the fastest. Writes
 * the new sizes and strides and returns the number of axes, at least 1. */
static int64_t merge_axes(int64_t n_axes, const int64_t *sizes, int n_operands,
                          const int64_t *const *strides, int64_t *size,
                          int64_t (*stride)[PSVIT_AXES])
{
    int64_t n = 0;
    for (int64_t axis = 0; axis < n_axes; axis++) {
        if (sizes[axis] == 1) continue;
        int adjacent = n > 0;
        for (int k = 0; adjacent && k < n_operands; k++)
            adjacent = stride[k][n - 1] == strides[k][axis] * sizes[axis];
        if (!adjacent) size[n++] = 1;
        size[n - 1] *= sizes[axis];
        for (int k = 0; k < n_operands; k++) stride[k][n - 1] = strides[k][axis];
    }
    if (n) return n;
    size[0] = 1;
    for (int k = 0; k < n_operands; k++) stride[k][0] = 1;
    return 1;
}

#define T float
#define LANES 16
#define RINT __builtin_rintf
#define FLOOR __builtin_floorf
#define NAME(f) f##_float
#include "loops.h"
#include "program.h"
#undef T
#undef LANES
#undef RINT
#undef FLOOR
#undef NAME

#define T double
#define LANES 8
#define RINT __builtin_rint
#define FLOOR __builtin_floor
#define NAME(f) f##_double
#include "loops.h"
#include "program.h"
#undef T
#undef LANES
#undef RINT
#undef FLOOR
#undef NAME

#define S float
#define A float
#define GET(x) (x)
#define PUT(x) (x)
#define EXP exp_float
#define NAME(f) f##_float
#include "training.h"
#undef S
#undef A
#undef EXP
#undef NAME

#define S double
#define A double
#define EXP exp_double
#define NAME(f) f##_double
#include "training.h"
#undef S
#undef A
#undef GET
#undef PUT
#undef EXP
#undef NAME

#define S uint16_t
#define A float
#define GET from_bfloat16
#define PUT to_bfloat16
#define EXP exp_float
#define NAME(f) f##_bfloat16
#include "training.h"
