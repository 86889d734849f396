/* Inner loops for the CPU, compiled once on the user's machine (native.py), for float and double.
 *
 * The bits are those of the separate torch operations: (x - v) / 2 is exact, so it does not matter
 * whether the compiler adds and multiplies in one step.
 */
#ifndef T
#define T float
#define NAME(f) f##_float
#include __FILE__
#undef T
#undef NAME
#define T double
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
#endif
