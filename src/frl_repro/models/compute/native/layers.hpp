// Layers of small networks on the CPU, as templates over compile-time sizes. See docs/engine.md.
//
// ONE IMAGE PER SIMD LANE: a "group" is LANES images; every activation is one vector (`vec`) whose lane i belongs to image
// i, and each weight is a scalar that is broadcast. A layer's values lie as [row][column][channel], so that what a row of
// a kernel reads is one stretch of memory. Lanes never mix: a sample's result depends neither on its lane nor on its
// neighbours nor on the number of threads.
//
// Compiles with GCC or Clang for any processor: vector extensions only, plus one reciprocal instruction where there is
// one. No -ffast-math: NaN and infinity must come out as such, for the caller's guard to see them.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <ratio>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE__)
#include <immintrin.h>
#endif

#ifndef FRL_LANES
#if defined(__AVX512F__)
#define FRL_LANES 16
#elif defined(__AVX__)
#define FRL_LANES 8
#else
#define FRL_LANES 4
#endif
#endif

#define FRL_INLINE __attribute__((always_inline))

namespace {

constexpr int LANES = FRL_LANES;
typedef float vec __attribute__((vector_size(4 * FRL_LANES)));

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
#if defined(__AVX512F__)
constexpr int REGISTER_LANES = 16;
#elif defined(__AVX__)
constexpr int REGISTER_LANES = 8;
#else
constexpr int REGISTER_LANES = 4;
#endif
constexpr int VECTORS = LANES > REGISTER_LANES ? REGISTERS * REGISTER_LANES / LANES : REGISTERS;  // that registers hold

// ---------------------------------------------------------------------------------------------------------------
// Small tools

// Calls f(0) ... f(N - 1) with compile-time indices, so that arrays of accumulators become registers whatever the
// compiler's own taste in unrolling.
template <class F, int... I>
FRL_INLINE inline void unroll_sequence(F&& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int... I>
using Numbers = std::integer_sequence<int, I...>;
template <int N>
using first_numbers = std::make_integer_sequence<int, N>;
template <int N, class F>
FRL_INLINE inline void unroll(F&& f) {
    unroll_sequence(f, std::make_integer_sequence<int, N>{});
}

FRL_INLINE inline vec splat(float value) { return value - vec{}; }  // unlike 0 + value, a load that broadcasts

// The same value, in a register from here on: left alone, GCC gives each of several multiply-adds its own load of it, and
// the load ports then bound what the multipliers could do.
FRL_INLINE inline vec in_register(vec v) {
    if constexpr (LANES == REGISTER_LANES) {
#if defined(__SSE__)
        asm("" : "+v"(v));
#elif defined(__aarch64__)
        asm("" : "+w"(v));
#endif
    }
    return v;
}

// Comparisons with NaN are false, so both keep a NaN in v.
FRL_INLINE inline vec at_most(vec v, vec bound) { return v > bound ? bound : v; }
FRL_INLINE inline vec at_least(vec v, vec bound) { return v < bound ? bound : v; }

// 1 / d for d of moderate size, to about 2e-7: a hardware estimate (14 or 12 bits) and one Newton step. A vector
// division would keep the divider busy for 16 cycles, longer than all the rest of tanh.
FRL_INLINE inline vec reciprocal(vec d) {
#if FRL_LANES == 16 && defined(__AVX512F__)
    const vec r = (vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)d);
    return r * (2.0f - d * r);
#elif FRL_LANES == 8 && defined(__AVX__)
    const vec r = (vec)_mm256_rcp_ps((__m256)d);
    return r * (2.0f - d * r);
#else
    return 1.0f / d;
#endif
}

// Rational minimax approximation of tanh, odd polynomial of degree 13 over even one of degree 6, relative error about
// 3e-7; beyond the clamp tanh is 1 to float accuracy. Source: coefficients of ptanh_float in Eigen
// (Eigen/src/Core/MathFunctionsImpl.h, MPL 2.0).
FRL_INLINE inline vec tanh_of(vec z) {
    const float clamp = 7.90531110763549805f;
    const vec x = at_least(at_most(z, splat(clamp)), splat(-clamp));
    const vec s = x * x;
    vec p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s + -8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vec q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p * reciprocal(q);
}

// ---------------------------------------------------------------------------------------------------------------
// Activations: a = of(z); back(g, a) is the gradient by z, given the one by a.

struct Identity {
    FRL_INLINE static vec of(vec z) { return z; }
    FRL_INLINE static vec back(vec g, vec) { return g; }
};
struct Tanh {
    FRL_INLINE static vec of(vec z) { return tanh_of(z); }
    FRL_INLINE static vec back(vec g, vec a) { return g * (1.0f - a * a); }
};
struct Relu {
    FRL_INLINE static vec of(vec z) { return at_least(z, vec{}); }
    FRL_INLINE static vec back(vec g, vec a) { return a <= vec{} ? vec{} : g; }
};
template <class Slope>  // a std::ratio, not negative
struct LeakyRelu {
    static constexpr float SLOPE = static_cast<float>(static_cast<double>(Slope::num) / Slope::den);
    FRL_INLINE static vec of(vec z) { return z <= vec{} ? z * SLOPE : z; }
    FRL_INLINE static vec back(vec g, vec a) { return a <= vec{} ? g * SLOPE : g; }
};

// ---------------------------------------------------------------------------------------------------------------
// Where results go. A sink takes the sum of one channel at one pixel of a window.

// a = activation(sum + skip), at place (y, x, o) of a layer's output of W columns and C channels.
template <class Activation, bool SKIP, int W, int C>
struct Activate {
    vec* to;
    const vec* skip;  // a branch that is added
    FRL_INLINE void operator()(int y, int x, int o, vec sum) const {
        const int i = (y * W + x) * C + o;
        if constexpr (SKIP) sum += skip[i];
        to[i] = Activation::of(sum);
    }
};

// What finishes the gradient of a value: adds what other branches gave and goes back through the activation that made it.
// Often `to` is `a` itself. (y, x) counts the pixels of one phase of a strided layer: rows Y, Y + STEP, ...
template <class Activation, bool OTHERS, int W, int C, int STEP = 1, int Y = 0, int X = 0>
struct Finish {
    vec* to;
    const vec* a;
    const vec* others;
    FRL_INLINE void operator()(int y, int x, int c, vec g) const {
        const int i = ((y * STEP + Y) * W + x * STEP + X) * C + c;
        if constexpr (OTHERS) g += others[i];
        to[i] = Activation::back(g, a[i]);
    }
};

// What takes the gradient of the image: take(place, gradient).
template <class Take, bool OTHERS, int W, int C, int STEP = 1, int Y = 0, int X = 0>
struct HandOver {
    const Take& take;
    const vec* others;
    FRL_INLINE void operator()(int y, int x, int c, vec g) const {
        const int i = ((y * STEP + Y) * W + x * STEP + X) * C + c;
        if constexpr (OTHERS) g += others[i];
        take(i, g);
    }
};

// ---------------------------------------------------------------------------------------------------------------
// Convolution, its input gradient, and linear layers: all one kernel

struct Blocks {
    int outs, pixels;
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The blocks of outputs x pixels whose sums stay in registers, best for a row of `width` pixels: a processor does two
// multiply-adds or two loads in a cycle, and a sum is ready for the next term after four. Of equals, few loads.
constexpr Blocks best_blocks(int width, int outs) {
    Blocks best{1, 1};
    int best_cost = 0;
    for (int o = std::min(outs, VECTORS); o >= 1; --o)
        for (int p = 1; p <= width; ++p) {
            if (o * p + std::min(o, p) + 1 > VECTORS) break;
            int cost = 0;
            for (int x = 0; x < width; x += p) {
                const int now = std::min(p, width - x);
                cost += 8 * std::max({o * now, o + now, 8}) + o + now;
            }
            cost *= ceil_div(outs, o);
            if (best_cost == 0 || cost < best_cost) best_cost = cost, best = {o, p};
        }
    return best;
}

// Sizes of a window that slides over an input of IH x IW pixels of IC channels: at output pixel (y, x), of OH x OW, it
// covers the KH x KW input pixels from (y * STEP - TOP, x * STEP - LEFT) on; pixels outside count as 0.
// Weights are packed as [block of outputs][bias, then KH][KW][IC][output of the block].
template <int IH_, int IW_, int IC_, int OH_, int OW_, int OC_, int KH_, int KW_, int STEP_, int TOP_, int LEFT_, bool BIAS_>
struct Window {
    static constexpr int IH = IH_, IW = IW_, IC = IC_, OH = OH_, OW = OW_, OC = OC_, KH = KH_, KW = KW_, STEP = STEP_;
    static constexpr int TOP = TOP_, LEFT = LEFT_;
    static constexpr bool BIAS = BIAS_;
    static constexpr int OB = best_blocks(OW, OC).outs, PB = best_blocks(OW, OC).pixels;
    static constexpr int ROW = KW * IC * OB, PACKED_BLOCK = KH * ROW + (BIAS ? OB : 0);
    static constexpr int PACKED = ceil_div(OC, OB) * PACKED_BLOCK;
    // Blocks of a row: how many, their sizes, and whether no pixel of a block reaches over the edge.
    static constexpr int COUNT = ceil_div(OW, PB);
    static constexpr int size(int b) { return OW - b * PB < PB ? OW - b * PB : PB; }
    static constexpr bool is_inside(int b) {
        return b * PB * STEP >= LEFT && (b * PB + size(b) - 1) * STEP - LEFT + KW <= IW;
    }
    // Those from FIRST to LAST - 1 are full and inside.
    static constexpr int full_from(int b, bool is_full) {
        while (b < COUNT && (size(b) == PB && is_inside(b)) != is_full) ++b;
        return b;
    }
    static constexpr int first() { return full_from(0, true); }
    static constexpr int last() { return full_from(first(), false); }
};

// Where a window's weights lie in an array of PyTorch's order: steps from one row, column and input to the next, and from one
// output to the next, GROUP of which are `within` apart.
struct Strides {
    int row, column, input, output, within;
};

template <class Win, int GROUP>
void pack(const float* weight, const float* bias, const Strides& strides, float* to) {
    for (int o = 0; o < Win::OC; o += Win::OB) {
        const int count = std::min(Win::OB, Win::OC - o);
        int at[Win::OB] = {};
        for (int i = 0; i < count; ++i) at[i] = (o + i) / GROUP * strides.output + (o + i) % GROUP * strides.within;
        if (Win::BIAS)
            for (int i = 0; i < Win::OB; ++i) *to++ = i < count ? bias[o + i] : 0.0f;
        for (int row = 0; row < Win::KH; ++row)
            for (int column = 0; column < Win::KW; ++column)
                for (int c = 0; c < Win::IC; ++c) {
                    const float* tap = weight + row * strides.row + column * strides.column + c * strides.input;
                    for (int i = 0; i < Win::OB; ++i) *to++ = i < count ? tap[at[i]] : 0.0f;
                }
    }
}

template <class T>
FRL_INLINE inline vec load(const T* at) {
    if constexpr (std::is_same_v<T, float>) return in_register(splat(*at));
    else return in_register(*at);
}

// sum[o * PB + p] += b[p * STEP] * a[o], for the p that are INSIDE. Each value is loaded once: the fewer of the two kinds
// wait in registers, the others pass.
template <int OB, int STEP, bool... INSIDE, class A, int... P>
FRL_INLINE inline void add_products(vec* sum, const A* a, const vec* b, Numbers<P...>) {
    constexpr int PB = sizeof...(P);
    if constexpr (PB <= OB) {
        const vec v[PB] = {(INSIDE ? load(b + P * STEP) : vec{})...};
        unroll<OB>([&](auto o) FRL_INLINE {
            const vec t = load(a + o);
            ((INSIDE ? void(sum[o * PB + P] += v[P] * t) : void()), ...);
        });
    } else {
        vec t[OB];
        unroll<OB>([&](auto o) FRL_INLINE { t[o] = load(a + o); });
        auto pixel = [&](auto p) FRL_INLINE {
            const vec v = load(b + p * STEP);
            unroll<OB>([&](auto o) FRL_INLINE { sum[o * PB + p] += v * t[o]; });
        };
        ((INSIDE ? pixel(std::integral_constant<int, P>{}) : void()), ...);
    }
}

// The sums of OB outputs at PB pixels of row y, from column x0 on, numbered Q = output * PB + pixel. X0 is that column where
// it is at an edge, else -1. All sums are written out, one expression for each Q: they become registers.
template <class Win, int X0, class Sink, int... P, int... Q>
FRL_INLINE inline void correlate_block(const vec* in, const float* w, int y, int x0, int o, const Sink& sink, Numbers<P...> pixels,
                                       Numbers<Q...>) {
    constexpr int OB = Win::OB, PB = sizeof...(P), IC = Win::IC, STEP = Win::STEP * Win::IC;
    vec sum[OB * PB] = {(Win::BIAS ? splat(w[Q / PB]) : vec{})...};
    if (Win::BIAS) w += OB;
    const int top = y * Win::STEP - Win::TOP;
    for (int row = std::max(0, -top); row < std::min(Win::KH, Win::IH - top); ++row) {
        const vec* line = in + static_cast<ptrdiff_t>(top + row) * Win::IW * IC;
        const float* tap = w + row * Win::ROW;
        if constexpr (Win::STEP == 1 && OB * (PB + Win::KW) + 1 <= VECTORS) {  // room for all taps of a row: load pixels once
            line += (x0 - Win::LEFT) * IC;
            for (int c = 0; c < IC; ++c) {
                vec t[Win::KW * OB];
                unroll<Win::KW * OB>([&](auto i) FRL_INLINE { t[i] = load(tap + (i / OB * IC + c) * OB + i % OB); });
                unroll<PB + Win::KW - 1>([&](auto i) FRL_INLINE {
                    constexpr int X = X0 - Win::LEFT + i;
                    if constexpr (X0 < 0 || (X >= 0 && X < Win::IW)) {
                        const vec v = load(line + i * IC + c);
                        unroll<Win::KW * OB>([&](auto k) FRL_INLINE {
                            constexpr int p = i - k / OB;
                            if constexpr (p >= 0 && p < PB) sum[k % OB * PB + p] += v * t[k];
                        });
                    }
                });
            }
        } else if constexpr (X0 < 0) {
            line += (x0 * Win::STEP - Win::LEFT) * IC;
            for (int j = 0; j < Win::KW * IC; ++j, tap += OB) add_products<OB, STEP, (P >= 0)...>(sum, tap, line + j, pixels);
        } else {
            unroll<Win::KW>([&](auto column) FRL_INLINE {
                constexpr int START = X0 * Win::STEP - Win::LEFT + column;
                for (int c = 0; c < IC; ++c, tap += OB)
                    add_products<OB, STEP, (START + P * Win::STEP >= 0 && START + P * Win::STEP < Win::IW)...>(
                        sum, tap, line + START * IC + c, pixels);
            });
        }
    }
    ((Win::OC % OB == 0 || o + Q / PB < Win::OC ? sink(y, x0 + Q % PB, o + Q / PB, sum[Q]) : void()), ...);
}

template <class Win, int PB, int X0, class Sink>
__attribute__((noinline)) void correlate_blocks(const vec* in, const float* weight, int y, int x0, const Sink& sink) {
    for (int o = 0; o < Win::OC; o += Win::OB, weight += Win::PACKED_BLOCK)
        correlate_block<Win, X0>(in, weight, y, x0, o, sink, first_numbers<PB>(), first_numbers<Win::OB * PB>());
}

// sink(y, x, o, sum) for every output of rows y0 to y1 - 1.
template <class Win, class Sink>
void correlate(const vec* in, const float* weight, const Sink& sink, int y0 = 0, int y1 = Win::OH) {
    constexpr int PB = Win::PB, FIRST = Win::first(), LAST = Win::last();
    for (int y = y0; y < y1; ++y) {
        unroll<FIRST>([&](auto b) { correlate_blocks<Win, Win::size(b), b * Win::PB>(in, weight, y, b * Win::PB, sink); });
        for (int b = FIRST; b < LAST; ++b) correlate_blocks<Win, PB, -1>(in, weight, y, b * PB, sink);
        unroll<Win::COUNT - LAST>([&](auto i) {
            constexpr int B = Win::last() + i, X0 = Win::is_inside(B) ? -1 : B * Win::PB;
            correlate_blocks<Win, Win::size(B), X0>(in, weight, y, B * Win::PB, sink);
        });
    }
}

// sums[o][row][column][c] += sum over pixels of gradient * in, one sum per lane; `bias` likewise. A block of sums of outputs
// x inputs lives in registers while rows y0 to y1 - 1 stream by. Without padding at the sides, the columns of a kernel's row
// count as inputs: they lie one after the other in memory.
template <class Win>
constexpr bool MERGES_COLUMNS = Win::LEFT == 0 && (Win::OW - 1) * Win::STEP + Win::KW <= Win::IW;

template <class Win, int OUTS, int... I>
FRL_INLINE inline void weight_block(const vec* in, const vec* gradient, vec* sums, int o, int c, int row, int column, int y0,
                                    int y1, Numbers<I...> inputs) {
    constexpr int INS = sizeof...(I), STEP = Win::STEP, IC = Win::IC, OC = Win::OC;
    constexpr int NEXT = Win::KH * Win::KW * IC;  // from one output's sums to those of the next
    vec* const at = sums + ((o * Win::KH + row) * Win::KW + column) * IC + c;
    vec sum[OUTS * INS];
    unroll<OUTS * INS>([&](auto q) FRL_INLINE { sum[q] = at[q / INS * NEXT + q % INS]; });
    const int x0 = Win::LEFT > column ? ceil_div(Win::LEFT - column, STEP) : 0;
    const int x1 = std::min(static_cast<int>(Win::OW), (Win::IW - 1 + Win::LEFT - column) / STEP + 1);
    for (int y = y0; y < y1; ++y) {
        const int from = y * STEP + row - Win::TOP;
        if (from < 0 || from >= Win::IH) continue;
        const vec* g = gradient + (y * Win::OW + x0) * OC + o;
        const vec* v = in + (from * Win::IW + x0 * STEP + column - Win::LEFT) * IC + c;
        for (int x = x0; x < x1; ++x, g += OC, v += STEP * IC) add_products<OUTS, 1, (I >= 0)...>(sum, g, v, inputs);
    }
    unroll<OUTS * INS>([&](auto q) FRL_INLINE { at[q / INS * NEXT + q % INS] = sum[q]; });
}

template <class Win>
__attribute__((noinline)) void weight_gradient(const vec* in, const vec* gradient, vec* sums, vec* bias) {
    constexpr int COLUMNS = MERGES_COLUMNS<Win> ? 1 : Win::KW, WIDTH = Win::KW / COLUMNS * Win::IC, OC = Win::OC;
    constexpr Blocks BLOCKS = best_blocks(WIDTH, OC);
    constexpr int OUTS = BLOCKS.outs, INS = BLOCKS.pixels;
    constexpr int ROWS = Win::OW < 64 ? 64 / Win::OW : 1;  // at a time: few enough for the L1 cache
    for (int y0 = 0; y0 < Win::OH; y0 += ROWS) {
        const int y1 = y0 + ROWS < Win::OH ? y0 + ROWS : Win::OH;
        auto all_taps = [&](auto outs, auto ins, int o, int c) FRL_INLINE {
            for (int row = 0; row < Win::KH; ++row)
                for (int column = 0; column < COLUMNS; ++column)
                    weight_block<Win, outs>(in, gradient, sums, o, c, row, column, y0, y1, first_numbers<ins>());
        };
        auto all_inputs = [&](auto outs, int o) FRL_INLINE {
            int c = 0;
            for (; c + INS <= WIDTH; c += INS) all_taps(outs, std::integral_constant<int, INS>{}, o, c);
            if constexpr (WIDTH % INS > 0) all_taps(outs, std::integral_constant<int, WIDTH % INS>{}, o, c);
        };
        int o = 0;
        for (; o + OUTS <= OC; o += OUTS) all_inputs(std::integral_constant<int, OUTS>{}, o);
        if constexpr (OC % OUTS > 0) all_inputs(std::integral_constant<int, OC % OUTS>{}, o);
        for (int i = y0 * Win::OW; i < y1 * Win::OW; ++i)
            for (int k = 0; k < OC; ++k) bias[k] += gradient[i * OC + k];
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Pooling over KH x KW pixels, zeros around the image; and what works pixel by pixel

template <int IH_, int IW_, int C_, int OH_, int OW_, int KH_, int KW_, int STEP_Y_, int STEP_X_, int TOP_, int LEFT_>
struct Pool {
    static constexpr int IH = IH_, IW = IW_, C = C_, OH = OH_, OW = OW_, KH = KH_, KW = KW_, TOP = TOP_, LEFT = LEFT_;
    static constexpr int STEP_Y = STEP_Y_, STEP_X = STEP_X_;
    // Whether every input pixel is in exactly one window.
    static constexpr bool TILES = OH * KH == IH && OW * KW == IW && STEP_Y == KH && STEP_X == KW && TOP == 0 && LEFT == 0;

    // visit(y, x) for the input pixels of window (oy, ox).
    template <class Visit>
    FRL_INLINE static void window(int oy, int ox, const Visit& visit) {
        for (int ky = 0; ky < KH; ++ky)
            for (int kx = 0; kx < KW; ++kx) {
                const int y = oy * STEP_Y - TOP + ky, x = ox * STEP_X - LEFT + kx;
                if (TILES || (y >= 0 && y < IH && x >= 0 && x < IW)) visit(y, x);
            }
    }
};

struct Mean {  // pixels outside count as zeros
    template <class P>
    FRL_INLINE static vec of(const vec* in, int oy, int ox, int c) {
        vec sum = {};
        P::window(oy, ox, [&](int y, int x) FRL_INLINE { sum += in[(y * P::IW + x) * P::C + c]; });
        return sum * (1.0f / (P::KH * P::KW));
    }
    // give(y, x, c, part of g) for the pixels of the window
    template <class P, class Give>
    FRL_INLINE static void back(const vec*, int oy, int ox, int c, vec g, const Give& give) {
        const vec part = g * (1.0f / (P::KH * P::KW));
        P::window(oy, ox, [&](int y, int x) FRL_INLINE { give(y, x, c, part); });
    }
};

struct Max {  // pixels outside do not count; of equal ones the first has the gradient, as in torch; a NaN is above all
    template <class P>
    FRL_INLINE static vec of(const vec* in, int oy, int ox, int c) {
        vec top = splat(-HUGE_VALF);
        P::window(oy, ox, [&](int y, int x) FRL_INLINE {
            const vec v = in[(y * P::IW + x) * P::C + c];
            top = v <= top ? top : (top == top ? v : top);
        });
        return top;
    }
    template <class P, class Give>
    FRL_INLINE static void back(const vec* in, int oy, int ox, int c, vec g, const Give& give) {
        const vec top = of<P>(in, oy, ox, c);
        vec left = g;  // 0 where the largest has been met
        P::window(oy, ox, [&](int y, int x) FRL_INLINE {
            const vec v = in[(y * P::IW + x) * P::C + c];
            const vec part = v == top || v != v ? left : vec{};
            left = v == top || v != v ? vec{} : left;
            give(y, x, c, part);
        });
    }
};

template <class Kind, class P>
__attribute__((noinline)) void pool(const vec* in, vec* to) {
    for (int y = 0; y < P::OH; ++y)
        for (int x = 0; x < P::OW; ++x)
            for (int c = 0; c < P::C; ++c) *to++ = Kind::template of<P>(in, y, x, c);
}

// `spread` is memory for the input's gradient where windows overlap or leave pixels out; else not used.
template <class Kind, class P, class Sink>
__attribute__((noinline)) void pool_back(const vec* in, const vec* gradient, vec* spread, const Sink& sink) {
    auto each = [&](const auto& give) FRL_INLINE {
        for (int y = 0; y < P::OH; ++y)
            for (int x = 0; x < P::OW; ++x)
                for (int c = 0; c < P::C; ++c) Kind::template back<P>(in, y, x, c, gradient[(y * P::OW + x) * P::C + c], give);
    };
    if constexpr (P::TILES) {
        each(sink);
    } else {
        std::fill(spread, spread + P::IH * P::IW * P::C, vec{});
        each([&](int y, int x, int c, vec g) FRL_INLINE { spread[(y * P::IW + x) * P::C + c] += g; });
        for (int y = 0; y < P::IH; ++y)
            for (int x = 0; x < P::IW; ++x)
                for (int c = 0; c < P::C; ++c) sink(y, x, c, spread[(y * P::IW + x) * P::C + c]);
    }
}

// sink(y, x, c, scale[c] * in + shift[c]); a null scale is 1, a null shift 0.
template <int H, int W, int C, bool SCALE, bool SHIFT, class Sink>
__attribute__((noinline)) void pointwise(const vec* in, const float* scale, const float* shift, const Sink& sink) {
    for (int y = 0; y < H; ++y)
        for (int x = 0; x < W; ++x)
            for (int c = 0; c < C; ++c) {
                vec v = *in++;
                if constexpr (SCALE) v *= scale[c];
                if constexpr (SHIFT) v += shift[c];
                sink(y, x, c, v);
            }
}

}  // namespace
