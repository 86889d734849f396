/* Interface between psvit_core and its compiled loops.
 *
 * Python describes a program with these structs; kernels/structs.py mirrors each of them field by
 * field. The loader compares psvit_interface_version() and psvit_struct_size() with its own values
 * before it runs anything. Increase PSVIT_INTERFACE_VERSION whenever a struct, the meaning of a
 * field or the value of an enumerator changes, here and in structs.py.
 *
 * Values are float or double, depending on the function that runs the program. Strides, steps and
 * offsets count values, not bytes. Feature maps have the axes (rows, channels, height, width);
 * "channels last" means that the channels of one position are adjacent in memory.
 */
#ifndef PSVIT_H
#define PSVIT_H

#include <stdint.h>

#define PSVIT_INTERFACE_VERSION 3
#define PSVIT_AXES 6       /* axes of an operand at most */
#define PSVIT_BATCH_AXES 3 /* axes before the two of a matrix at most */
#define PSVIT_LIST_MARGIN 32 /* values after the input lists of a row of psvit_conv */

/* Operations of a program. */
enum psvit_kind {
    PSVIT_LOAD = 1,
    PSVIT_STORE = 2,
    PSVIT_MAP = 3,
    PSVIT_LIF = 4,
    PSVIT_CONV = 5,
    PSVIT_DEPTHWISE = 6,
    PSVIT_SUM = 7,
    PSVIT_POOL = 8,
    PSVIT_MATMUL = 9
};

/* Functions of psvit_map; a, b and c are its sources. */
enum psvit_function {
    PSVIT_COPY = 0,        /* a */
    PSVIT_ADD = 1,         /* a + b */
    PSVIT_SUB = 2,         /* a - b */
    PSVIT_MUL = 3,         /* a * b */
    PSVIT_DIV = 4,         /* a / b */
    PSVIT_SCALE_SHIFT = 5, /* a * b + c */
    PSVIT_INTEGER_LIF = 6  /* round(clamp(a, 0, levels)) / norm */
};

/* Results of psvit_run_float and psvit_run_double. */
enum psvit_status {
    PSVIT_OK = 0,
    PSVIT_UNKNOWN_OPERATION = 1, /* an instruction's kind is not in psvit_kind */
    PSVIT_UNKNOWN_FUNCTION = 2,  /* a map's function is not in psvit_function */
    PSVIT_INVALID_BLOCK = 3      /* a convolution block has an impossible number of vectors */
};

/* Position of a value's first number: `offset` values after `memory`, or after the beginning of the
 * run's arena where `memory` is NULL. */
struct psvit_place {
    void *memory;
    int64_t offset;
};

/* A strided array at such a place. The operation gives the number of its axes and their sizes. */
struct psvit_operand {
    void *memory;
    int64_t offset;
    int64_t strides[PSVIT_AXES];
};

/* Copies a value of the whole batch into the arena: the images of this run, some channels. */
struct psvit_load {
    int64_t n_axes;            /* of source and target, 1 to PSVIT_AXES */
    int64_t sizes[PSVIT_AXES]; /* of the target */
    int64_t image_axis;        /* holds (time steps x images), images fastest */
    int64_t batch;             /* images in the source */
    int64_t channel_axis;      /* -1: take every channel */
    const int64_t *channels;   /* (sizes[channel_axis],) indices into the source; NULL for -1 */
    struct psvit_operand source;
    struct psvit_operand target;
};

/* Copies a result (images of a run, n) to its rows of the result of the whole batch. */
struct psvit_store {
    int64_t n;            /* values per image */
    int64_t image_stride; /* of the source */
    int64_t value_stride; /* of the source */
    struct psvit_place source;
    struct psvit_place target; /* (images, n), contiguous */
};

/* Applies a function to each element; a stride of 0 repeats a source along an axis. */
struct psvit_map {
    int64_t function; /* enum psvit_function */
    int64_t n_axes;   /* of all operands, 0 to PSVIT_AXES */
    int64_t sizes[PSVIT_AXES];
    double levels;   /* of PSVIT_INTEGER_LIF */
    double norm;     /* of PSVIT_INTEGER_LIF */
    int64_t half_up; /* of PSVIT_INTEGER_LIF: 1 rounds halves up, 0 to even */
    struct psvit_operand target;
    struct psvit_operand a; /* sources; unused ones repeat a */
    struct psvit_operand b;
    struct psvit_operand c;
};

/* A LIF layer from zero state: (time_steps, n) currents to spikes (equation: kernels/lif.py). */
struct psvit_lif {
    int64_t time_steps;
    int64_t n;           /* neurons */
    int64_t source_step; /* distance of two time steps; 0: all are the same memory */
    int64_t target_step; /* distance of two time steps */
    double threshold;
    struct psvit_place source;
    struct psvit_place target;
};

/* A convolution (rows, c_in, height, width) to (rows, c_out, out_height, out_width), which visits
 * only inputs that are not zero; optionally followed by the neuron that alone reads its output.
 *
 * Needs scratch for: out_height * out_width * c_out values where lif_steps > 0; then, with lists of
 * height * width * (c_in rounded up to 4) + PSVIT_LIST_MARGIN entries, one list of values, one of
 * int32_t, and height * width int32_t. */
struct psvit_conv {
    int64_t rows; /* time steps x images; time is slowest */
    int64_t c_in;
    int64_t height;
    int64_t width;
    int64_t source_strides[4]; /* rows, channels, height, width */
    int64_t c_out;
    int64_t out_height;
    int64_t out_width;
    int64_t kernel[2];  /* height, width */
    int64_t stride[2];  /* along height, width */
    int64_t padding[2]; /* along height, width */
    const void *weight; /* blocks of up to 8 vectors of c_out, each (kh, kw, c_in, block) */
    const void *bias;   /* (c_out,), padded with zeros to whole vectors of 64 bytes */
    int64_t lif_steps;  /* time steps of the LIF layer that follows; 0: none */
    double lif_threshold;
    int64_t integer_levels; /* of the integer LIF layer that follows; 0: none */
    int64_t integer_norm;
    int64_t integer_half_up;
    struct psvit_place source;
    struct psvit_place target; /* contiguous, channels last */
};

/* A depthwise convolution of channels-last maps. */
struct psvit_depthwise {
    int64_t rows;
    int64_t channels;
    int64_t height;
    int64_t width;
    int64_t source_strides[3]; /* rows, height, width */
    int64_t out_height;
    int64_t out_width;
    int64_t kernel[2];  /* height, width */
    int64_t stride[2];  /* along height, width */
    int64_t padding[2]; /* along height, width */
    const void *weight; /* (kernel height, kernel width, channels), contiguous */
    const void *bias;   /* (channels,) or NULL */
    struct psvit_place source;
    struct psvit_place target; /* contiguous, channels last */
};

/* Sums over some axes, divided by a number. */
struct psvit_sum {
    int64_t n_kept;    /* axes of the target, 0 to PSVIT_AXES */
    int64_t n_reduced; /* axes that are summed over, 0 to PSVIT_AXES */
    int64_t kept_sizes[PSVIT_AXES];
    int64_t reduced_sizes[PSVIT_AXES];
    int64_t divisor;                     /* 1: a sum; the number of summands: a mean */
    struct psvit_operand target;         /* by the kept axes */
    struct psvit_operand source;         /* by the kept axes */
    int64_t reduced_strides[PSVIT_AXES]; /* of the source, by the reduced axes */
};

/* Maximum pooling of channels-last maps with a square window. */
struct psvit_pool {
    int64_t rows;
    int64_t channels;
    int64_t height;
    int64_t width;
    int64_t source_strides[3]; /* rows, height, width */
    int64_t out_height;
    int64_t out_width;
    int64_t kernel;
    int64_t stride;
    int64_t padding;
    struct psvit_place source;
    struct psvit_place target; /* contiguous, channels last */
};

/* Matrix products (batch, m, k) @ (batch, k, n) to (batch, m, n). The strides of an operand are
 * those of the PSVIT_BATCH_AXES batch axes, the rows and the columns. Zeros on the left, such as
 * silent neurons, cost nothing. Needs scratch for k * n + n values. */
struct psvit_matmul {
    int64_t m;
    int64_t k;
    int64_t n;
    int64_t batch_sizes[PSVIT_BATCH_AXES];
    struct psvit_operand target;
    struct psvit_operand left;
    struct psvit_operand right;
};

struct psvit_instruction {
    int64_t kind;          /* enum psvit_kind */
    const void *operation; /* the struct of that kind */
};

/* A program and the images to run it on: `per_run` at a time, entries first to end - 1 of `images`.
 * Operations access only their own operands, the arena and the scratch memory, so several threads
 * may run one program, each with its own arena and scratch memory. */
struct psvit_run {
    const struct psvit_instruction *instructions;
    int64_t n_instructions;
    void *arena;           /* values of the images of one run */
    void *scratch;         /* memory for one operation at a time, aligned to 64 bytes */
    const int64_t *images; /* positions in the batch; may be NULL without psvit_load */
    int64_t first;
    int64_t end;
    int64_t per_run;
    double *seconds; /* by kind: the time that operations took is added; NULL: not measured */
};

/* Structs by number, for psvit_struct_size. */
enum psvit_struct {
    PSVIT_STRUCT_PLACE = 100,
    PSVIT_STRUCT_OPERAND = 101,
    PSVIT_STRUCT_INSTRUCTION = 102,
    PSVIT_STRUCT_RUN = 103
};

int32_t psvit_interface_version(void);

/* Size in bytes of the struct of an operation (enum psvit_kind) or of another struct (enum
 * psvit_struct); -1 if there is no such struct. */
int64_t psvit_struct_size(int32_t number);

/* Run a program; return an enum psvit_status. */
int32_t psvit_run_float(const struct psvit_run *run);
int32_t psvit_run_double(const struct psvit_run *run);

#endif
