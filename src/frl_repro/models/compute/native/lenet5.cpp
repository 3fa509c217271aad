// LeNet-5 on the CPU: logits, input gradient, projected gradient descent and parameter gradients.
//
// The network is so small that a matrix-product library cannot fill its registers, and so cheap that every other pass
// over memory shows. Hence the one idea of this file: ONE IMAGE PER SIMD LANE. A "group" is LANES images; every
// activation is one vector (`vec`) whose lane i belongs to image i, and each weight is a scalar that is broadcast.
// Convolutions then need no shuffles, no im2col and no edge cases; all inner loops are dense fused multiply-adds, and
// a group's activations (about 0.7 MB with 16 lanes) stay in the L2 cache through all steps of an attack.
//
//   input   x      1 x 32 x 32
//   conv1   5x5  ->  a1   6 x 28 x 28  (tanh)  -> 2x2 mean -> p1  6 x 14 x 14      117,600 multiply-adds
//   conv2   5x5  ->  a2  16 x 10 x 10  (tanh)  -> 2x2 mean -> p2 16 x  5 x  5      240,000
//   conv3   5x5  ->  a3 120            (tanh), a dense layer 400 -> 120             48,000
//   fc1          ->  a4  84            (tanh)                                       10,080
//   fc2          ->  logits K                                                         84 K
//
// The input gradient costs the same again: 1.66 MFLOP per image-step at K = 10.
//
// Several networks of one architecture ("runs") may work in one call, each on its own block of images: a group belongs to
// one run, and the threads share the groups of all runs.
//
// Lanes never mix, so a sample's result depends neither on its lane nor on its neighbours nor on the number of
// threads. Compiles with GCC or Clang for any processor: vector extensions only, plus one reciprocal instruction where
// there is one. No -ffast-math: NaN and infinity must come out as such, for the caller's guard to see them.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
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
#else
#define FRL_LANES 8
#endif
#endif

#define FRL_INLINE __attribute__((always_inline))

namespace {

constexpr int LANES = FRL_LANES;
typedef float vec __attribute__((vector_size(4 * FRL_LANES)));

// Register blocks, chosen so that the accumulators, the weights and one row of inputs fit into 32 registers
// (AVX-512) or 16 (everything else) and every load feeds at least two multiply-adds.
constexpr bool WIDE = FRL_LANES == 16;
constexpr int CONV1_OUT = 6, CONV1_PIXELS = WIDE ? 4 : 2;             // 24 or 12 accumulators
constexpr int CONV2_OUT = WIDE ? 4 : 2, CONV2_PIXELS = 5;             // 20 or 10
constexpr int DENSE_OUT = WIDE ? 24 : 12;                             // 24 or 12
constexpr int BACK1_PIXELS = WIDE ? 16 : 8;                           // part of a row of 32
constexpr int BACK2_PIXELS = WIDE ? 14 : 7;                           // part of a row of 14
constexpr int GRAD1_OUT = WIDE ? 3 : 2, GRAD2_OUT = WIDE ? 4 : 2;     // times five kernel columns

constexpr int PIXELS = 32 * 32;
constexpr int CONV_GRADS = 150 + 6 + 2400 + 16;                       // conv1.weight, .bias, conv2.weight, .bias
constexpr int DENSE_ROWS = 400 + 120 + 120 + 84 + 84;                 // p2, d3, a3, d4, a4; then K rows of dlogits

// ---------------------------------------------------------------------------------------------------------------
// Small tools

// Calls f(0) ... f(N - 1) with compile-time indices, so that arrays of accumulators become registers whatever the
// compiler's own taste in unrolling.
template <class F, int... I>
FRL_INLINE inline void unroll_sequence(F&& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
FRL_INLINE inline void unroll(F&& f) {
    unroll_sequence(f, std::make_integer_sequence<int, N>{});
}

FRL_INLINE inline vec splat(float value) { return vec{} + value; }

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

FRL_INLINE inline vec tanh_slope(vec a) { return 1.0f - a * a; }  // from a = tanh(z)

inline float sum_of_lanes(const vec& v) {
    float part[LANES];
    std::memcpy(part, &v, sizeof part);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) part[i] += part[i + half];
    return part[0];
}

// Gradients shrink below 1e-38 where tanh or the softmax saturates, and one such denormal number costs a hundred
// cycles. They are flushed to zero while this object lives; the calling thread gets its own mode back.
class FlushDenormals {
#if defined(__SSE__)
    const unsigned saved_ = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved_ | 0x8040u); }
    ~FlushDenormals() { _mm_setcsr(saved_); }
#else
  public:
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
};

// The entry of GNU OpenMP's thread pool, which torch brings into the process; null where it has another one. Idle
// threads of that pool spin for a while after every operation of torch: threads of our own would have to share the
// cores with them.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// Runs work(0) ... work(threads - 1) at once. The workers share their tasks through a counter or a schedule, so if
// the system grants fewer threads, the ones that run do it all.
template <class F>
void run_threads(int threads, F&& work) {
    std::atomic<int> next{0};
    auto body = [&work, &next] {
        const FlushDenormals mode;
        work(next.fetch_add(1));
    };
    if (threads == 1) return body();
    if (GOMP_parallel) {
        using Body = decltype(body);
        return GOMP_parallel([](void* data) { (*static_cast<Body*>(data))(); }, &body, threads, 0);
    }
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int t = 1; t < threads; ++t) others.emplace_back(body);
    } catch (const std::system_error&) {
    }
    body();
    for (auto& thread : others) thread.join();
}

// Copies sample `from[i]` (count floats) into lane `lane[i]` of `to`. Walks 16 values (a cache line) at a time, so
// that the touched part of `to` stays in the L1 cache for all samples.
void to_lanes(vec* to, int count, const int* lane, const float* const* from, int samples) {
    float* out = reinterpret_cast<float*>(to);
    for (int begin = 0; begin < count; begin += 16)
        for (int i = 0; i < samples; ++i)
            for (int j = begin; j < begin + 16; ++j) out[j * LANES + lane[i]] = from[i][j];
}

void from_lanes(float* const* to, int count, const int* lane, const vec* from, int samples) {
    const float* in = reinterpret_cast<const float*>(from);
    for (int begin = 0; begin < count; begin += 16)
        for (int i = 0; i < samples; ++i)
            for (int j = begin; j < begin + 16; ++j) to[i][j] = in[j * LANES + lane[i]];
}

// ---------------------------------------------------------------------------------------------------------------
// Weights, repacked once per call in the order in which the kernels read them

// From w[out * out_stride + in * in_stride] to [out / block][in][block], padded with zero outputs.
std::vector<float> pack(const float* w, int outs, int ins, int out_stride, int in_stride, int block) {
    const int padded = (outs + block - 1) / block * block;
    std::vector<float> packed(static_cast<size_t>(padded) * ins);
    float* next = packed.data();
    for (int first = 0; first < padded; first += block)
        for (int i = 0; i < ins; ++i)
            for (int o = first; o < first + block; ++o)
                *next++ = o < outs ? w[o * out_stride + i * in_stride] : 0.0f;
    return packed;
}

// From w[out][in][row][column] to [in][row][out][column], for the gradient with respect to the input.
std::vector<float> pack_backward(const float* w, int outs, int ins) {
    std::vector<float> packed(static_cast<size_t>(outs) * ins * 25);
    for (int o = 0; o < outs; ++o)
        for (int i = 0; i < ins; ++i)
            for (int row = 0; row < 5; ++row)
                std::memcpy(&packed[((i * 5 + row) * outs + o) * 5], &w[((o * ins + i) * 5 + row) * 5], 5 * 4);
    return packed;
}

struct Dense {
    int ins, outs;
    std::vector<float> weight, bias;
    Dense(const float* w, const float* b, int ins_, int outs_, int out_stride, int in_stride)
        : ins(ins_), outs(outs_), weight(pack(w, outs, ins, out_stride, in_stride, DENSE_OUT)),
          bias((outs + DENSE_OUT - 1) / DENSE_OUT * DENSE_OUT, 0.0f) {
        if (b) std::copy(b, b + outs, bias.begin());
    }
};

struct Network {
    int classes;
    std::vector<float> conv1, conv1_bias, conv1_back, conv2, conv2_bias, conv2_back;
    Dense conv3, fc1, fc2, conv3_back, fc1_back, fc2_back;
    Network(const float* const* p, int K)  // p: the ten parameters in torch's order
        : classes(K), conv1(pack(p[0], 6, 25, 25, 1, CONV1_OUT)), conv1_bias(p[1], p[1] + 6),
          conv1_back(pack_backward(p[0], 6, 1)), conv2(pack(p[2], 16, 150, 150, 1, CONV2_OUT)),
          conv2_bias(p[3], p[3] + 16), conv2_back(pack_backward(p[2], 16, 6)),
          conv3(p[4], p[5], 400, 120, 400, 1), fc1(p[6], p[7], 120, 84, 120, 1), fc2(p[8], p[9], 84, K, 84, 1),
          conv3_back(p[4], nullptr, 120, 400, 1, 400), fc1_back(p[6], nullptr, 84, 120, 1, 120),
          fc2_back(p[8], nullptr, K, 84, 1, 84) {}
};

// The networks of several runs. Array i of `p` holds the runs' parameters one after the other.
class Networks {
  public:
    Networks(const float* const* p, int K, int runs, int threads) : all_(runs) {
        const int sizes[10] = {150, 6, 2400, 16, 48000, 120, 10080, 84, 84 * K, K};
        std::atomic<int> next{0};
        std::atomic<bool> failed{false};
        run_threads(std::min(threads, runs), [&](int) {
            for (int r; (r = next++) < runs;) {
                const float* own[10];
                for (int i = 0; i < 10; ++i) own[i] = p[i] + static_cast<size_t>(r) * sizes[i];
                try {  // no exception may leave a thread
                    all_[r] = std::make_unique<Network>(own, K);
                } catch (const std::bad_alloc&) {
                    failed = true;
                }
            }
        });
        if (failed) throw std::bad_alloc();
    }
    const Network& operator[](int r) const { return *all_[r]; }

  private:
    std::vector<std::unique_ptr<const Network>> all_;
};

// One group's activations. The gradients of a1 and a2 overwrite a1 and a2 themselves.
struct alignas(64) Workspace {
    vec x[PIXELS], adv[PIXELS];
    vec a1[6 * 28 * 28], p1[6 * 14 * 14], a2[16 * 10 * 10], p2[16 * 5 * 5], a3[120], a4[84], d3[120], d4[84];
    vec conv_grads[CONV_GRADS];
    vec *logits, *dlogits;  // K each
};

// Memory for one workspace: on a huge page where the system grants one, because small pages of a workspace outnumber the
// entries of the first address-translation cache, and each miss is dear in a virtual machine.
struct FreeMemory {
    void operator()(void* memory) const { std::free(memory); }
};
using Block = std::unique_ptr<void, FreeMemory>;

Block allocate_workspace() {
    constexpr size_t HUGE_PAGE = size_t{1} << 21;
    const size_t size = (sizeof(Workspace) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void* memory = std::aligned_alloc(HUGE_PAGE, size);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, size, MADV_HUGEPAGE);  // advice: failing changes nothing
#endif
    return Block(memory);
}

// Each thread that calls keeps workspaces for its next call: fresh memory costs a page fault for every 4 kB, which a
// virtual machine can make dearer than the arithmetic.
class Workspaces {
  public:
    Workspaces(int threads, int K) {
        while (static_cast<int>(all_.size()) < threads) all_.push_back(allocate_workspace());
        for (int t = 0; t < threads; ++t) {
            Workspace& ws = (*this)[t];
            std::memset(static_cast<void*>(ws.x), 0, sizeof ws.x);  // lanes without a sample see zeros
            std::memset(static_cast<void*>(ws.adv), 0, sizeof ws.adv);
        }
        logits_.resize(2 * static_cast<size_t>(threads) * K);
        for (int t = 0; t < threads; ++t) {
            (*this)[t].logits = &logits_[2 * static_cast<size_t>(t) * K];
            (*this)[t].dlogits = (*this)[t].logits + K;
        }
    }
    Workspace& operator[](int t) const { return *static_cast<Workspace*>(all_[t].get()); }

  private:
    static std::vector<Block>& kept() {
        thread_local std::vector<Block> list;
        return list;
    }
    std::vector<Block>& all_ = kept();  // the caller's, whichever thread of the call works in one
    std::vector<vec> logits_;
};

// ---------------------------------------------------------------------------------------------------------------
// Kernels. SIDE is the side of the (larger) input of a layer, OUT = SIDE - 4 that of its output.

// out = tanh(conv(in)): blocks of OB channels x PB pixels; per kernel tap PB + OB loads feed OB * PB multiply-adds.
template <int IC, int SIDE, int OC, int OB, int PB>
__attribute__((noinline)) void conv_tanh(const vec* in, const float* weight, const float* bias, vec* out) {
    constexpr int OUT = SIDE - 4;
    static_assert(OUT % PB == 0 && OC % OB == 0, "blocks must tile the layer");
    for (int y = 0; y < OUT; ++y)
        for (int x = 0; x < OUT; x += PB)
            for (int o = 0; o < OC; o += OB) {
                vec sum[OB][PB];
                unroll<OB>([&](auto i) FRL_INLINE { unroll<PB>([&](auto p) FRL_INLINE { sum[i][p] = splat(bias[o + i]); }); });
                const float* w = weight + o * IC * 25;
                for (int c = 0; c < IC; ++c)
                    for (int row = 0; row < 5; ++row) {
                        const vec* line = in + (c * SIDE + y + row) * SIDE + x;
                        unroll<5>([&](auto column) FRL_INLINE {
                            vec v[PB];
                            unroll<PB>([&](auto p) FRL_INLINE { v[p] = line[column + p]; });
                            unroll<OB>([&](auto i) FRL_INLINE {
                                unroll<PB>([&](auto p) FRL_INLINE { sum[i][p] += v[p] * w[column * OB + i]; });
                            });
                        });
                        w += 5 * OB;
                    }
                unroll<OB>([&](auto i) FRL_INLINE {
                    unroll<PB>([&](auto p) FRL_INLINE { out[((o + i) * OUT + y) * OUT + x + p] = tanh_of(sum[i][p]); });
                });
            }
}

// Gradient with respect to a convolution's input. Each block is BLOCK pixels of one row of one input channel, held in
// registers; every vector of the output's gradient is loaded once per kernel row and feeds its (up to) five pixels.
// No padding and no wasted products at the borders: rows are cut by the loop, columns at compile time.
// sink(channel, y, x, gradient) takes the result.
template <int IC, int SIDE, int OC, int BLOCK, class Sink>
__attribute__((noinline)) void conv_input_gradient(const vec* delta, const float* weight, Sink sink) {
    constexpr int OUT = SIDE - 4;
    static_assert(SIDE % BLOCK == 0, "blocks must tile the row");
    unroll<SIDE / BLOCK>([&](auto block) FRL_INLINE {
        constexpr int X0 = block * BLOCK;
        constexpr int FIRST = X0 < 4 ? 0 : X0 - 4, LAST = X0 + BLOCK < OUT ? X0 + BLOCK : OUT;
        for (int y = 0; y < SIDE; ++y)
            for (int c = 0; c < IC; ++c) {
                vec sum[BLOCK] = {};
                for (int row = std::max(0, y - OUT + 1); row <= std::min(4, y); ++row) {
                    const float* w = weight + (c * 5 + row) * OC * 5;
                    const vec* line = delta + (y - row) * OUT;
                    for (int o = 0; o < OC; ++o, w += 5, line += OUT * OUT) {
                        vec tap[5];
                        unroll<5>([&](auto k) FRL_INLINE { tap[k] = splat(w[k]); });
                        unroll<LAST - FIRST>([&](auto i) FRL_INLINE {
                            const vec d = line[FIRST + i];
                            unroll<5>([&](auto k) FRL_INLINE {
                                constexpr int X = FIRST + i + k - X0;
                                if constexpr (X >= 0 && X < BLOCK) sum[X] += d * tap[k];
                            });
                        });
                    }
                }
                unroll<BLOCK>([&](auto i) FRL_INLINE { sink(c, y, X0 + i, sum[i]); });
            }
    });
}

// grads[o][c][row][column] += sum over pixels of delta * in, one sum per lane. OB channels x 5 columns of sums live in
// registers while ROWS rows of pixels (few enough for the L1 cache) stream by.
template <int IC, int SIDE, int OC, int OB, int ROWS>
__attribute__((noinline)) void conv_weight_gradient(const vec* in, const vec* delta, vec* grads, vec* bias_grads) {
    constexpr int OUT = SIDE - 4;
    static_assert(OUT % ROWS == 0 && OC % OB == 0, "blocks must tile the layer");
    for (int y0 = 0; y0 < OUT; y0 += ROWS)
        for (int o = 0; o < OC; o += OB) {
            for (int c = 0; c < IC; ++c)
                for (int row = 0; row < 5; ++row) {
                    auto at = [&](int i) -> vec* { return grads + (((o + i) * IC + c) * 5 + row) * 5; };
                    vec sum[OB][5];
                    unroll<OB>([&](auto i) FRL_INLINE { unroll<5>([&](auto k) FRL_INLINE { sum[i][k] = at(i)[k]; }); });
                    for (int y = y0; y < y0 + ROWS; ++y) {
                        const vec* line = in + (c * SIDE + y + row) * SIDE;
                        const vec* d = delta + (o * OUT + y) * OUT;
                        for (int x = 0; x < OUT; ++x) {
                            vec part[OB];
                            unroll<OB>([&](auto i) FRL_INLINE { part[i] = d[i * OUT * OUT + x]; });
                            unroll<5>([&](auto k) FRL_INLINE {
                                const vec v = line[x + k];
                                unroll<OB>([&](auto i) FRL_INLINE { sum[i][k] += part[i] * v; });
                            });
                        }
                    }
                    unroll<OB>([&](auto i) FRL_INLINE { unroll<5>([&](auto k) FRL_INLINE { at(i)[k] = sum[i][k]; }); });
                }
            for (int i = o; i < o + OB; ++i)
                for (int j = 0; j < ROWS * OUT; ++j) bias_grads[i] += delta[(i * OUT + y0) * OUT + j];
        }
}

// sink(o, sum of weight * in + bias) for every output o. With one image per lane a dense layer is a product with a
// single column, so each multiply-add loads its own weight: bound by the load ports, at close to full speed.
template <class Sink>
__attribute__((noinline)) void dense(const Dense& layer, const vec* in, Sink sink) {
    const float* w = layer.weight.data();
    for (int o = 0; o < layer.outs; o += DENSE_OUT) {
        vec sum[DENSE_OUT];
        unroll<DENSE_OUT>([&](auto i) FRL_INLINE { sum[i] = splat(layer.bias[o + i]); });
        for (int j = 0; j < layer.ins; ++j, w += DENSE_OUT) {
            const vec v = in[j];
            unroll<DENSE_OUT>([&](auto i) FRL_INLINE { sum[i] += v * w[i]; });
        }
        unroll<DENSE_OUT>([&](auto i) FRL_INLINE {
            if (o + i < layer.outs) sink(o + i, sum[i]);
        });
    }
}

template <int C, int SIDE>
void mean_pool(const vec* in, vec* out) {
    for (int row = 0; row < C * SIDE; row += 2, in += 2 * SIDE)
        for (int x = 0; x < SIDE; x += 2) *out++ = 0.25f * ((in[x] + in[x + 1]) + (in[SIDE + x] + in[SIDE + x + 1]));
}

// Back through 2x2 mean and tanh: spreads the gradient of pooled pixel (c, y, x) over its four activations, in place.
template <int SIDE>
FRL_INLINE inline void unpool(vec* a, int c, int y, int x, vec gradient) {
    vec* corner = a + (c * SIDE + 2 * y) * SIDE + 2 * x;
    const vec quarter = 0.25f * gradient;
    for (vec* v : {corner, corner + 1, corner + SIDE, corner + SIDE + 1}) *v = quarter * tanh_slope(*v);
}

void forward(const Network& net, const vec* x, Workspace& ws) {
    conv_tanh<1, 32, 6, CONV1_OUT, CONV1_PIXELS>(x, net.conv1.data(), net.conv1_bias.data(), ws.a1);
    mean_pool<6, 28>(ws.a1, ws.p1);
    conv_tanh<6, 14, 16, CONV2_OUT, CONV2_PIXELS>(ws.p1, net.conv2.data(), net.conv2_bias.data(), ws.a2);
    mean_pool<16, 10>(ws.a2, ws.p2);
    dense(net.conv3, ws.p2, [&](int i, vec z) FRL_INLINE { ws.a3[i] = tanh_of(z); });
    dense(net.fc1, ws.a3, [&](int i, vec z) FRL_INLINE { ws.a4[i] = tanh_of(z); });
    dense(net.fc2, ws.a4, [&](int i, vec z) FRL_INLINE { ws.logits[i] = z; });
}

// From ws.dlogits down to the gradient of conv1's sums, left in ws.a1 (and of conv2's in ws.a2).
void backward(const Network& net, Workspace& ws) {
    dense(net.fc2_back, ws.dlogits, [&](int i, vec g) FRL_INLINE { ws.d4[i] = g * tanh_slope(ws.a4[i]); });
    dense(net.fc1_back, ws.d4, [&](int i, vec g) FRL_INLINE { ws.d3[i] = g * tanh_slope(ws.a3[i]); });
    dense(net.conv3_back, ws.d3, [&](int i, vec g) FRL_INLINE { unpool<10>(ws.a2, i / 25, i / 5 % 5, i % 5, g); });
    conv_input_gradient<6, 14, 16, BACK2_PIXELS>(
        ws.a2, net.conv2_back.data(), [&](int c, int y, int x, vec g) FRL_INLINE { unpool<28>(ws.a1, c, y, x, g); });
}

template <class Sink>  // sink(pixel, gradient)
void input_gradient(const Network& net, Workspace& ws, Sink sink) {
    conv_input_gradient<1, 32, 6, BACK1_PIXELS>(
        ws.a1, net.conv1_back.data(), [&](int, int y, int x, vec g) FRL_INLINE { sink(y * 32 + x, g); });
}

// ---------------------------------------------------------------------------------------------------------------
// Loss

struct Target {  // one of the two
    const int64_t* labels;  // (N,)
    const float* distribution;  // (N, K)
};

// Writes the gradient of sample n's cross-entropy by its logits into its lane. With a label, the label's own entry is
// minus the sum of the others: no cancellation where the network is sure.
void loss_gradient(Workspace& ws, int K, int lane, const Target& target, int64_t n) {
    const float* z = reinterpret_cast<const float*>(ws.logits) + lane;
    float* d = reinterpret_cast<float*>(ws.dlogits) + lane;
    float top = z[0], total = 0.0f;
    for (int k = 1; k < K; ++k) top = std::max(top, z[k * LANES]);
    for (int k = 0; k < K; ++k) d[k * LANES] = std::exp(z[k * LANES] - top);
    if (target.labels) {
        const int label = static_cast<int>(target.labels[n]);
        for (int k = 0; k < K; ++k)
            if (k != label) total += d[k * LANES];
        const float others = total, factor = 1.0f / (others + d[label * LANES]);
        d[label * LANES] = -others;
        for (int k = 0; k < K; ++k) d[k * LANES] *= factor;
        return;
    }
    const float* t = target.distribution + n * K;
    float mass = 0.0f;
    for (int k = 0; k < K; ++k) total += d[k * LANES], mass += t[k];
    for (int k = 0; k < K; ++k) d[k * LANES] = d[k * LANES] * (mass / total) - t[k];
}

void clear_gradient(Workspace& ws, int K, int lane) {
    for (int k = 0; k < K; ++k) reinterpret_cast<float*>(ws.dlogits)[k * LANES + lane] = 0.0f;
}

void copy_logits(const Workspace& ws, int K, int lane, float* to) {
    for (int k = 0; k < K; ++k) to[k] = reinterpret_cast<const float*>(ws.logits)[k * LANES + lane];
}

int predicted_class(const Workspace& ws, int K, int lane) {  // as frl_repro.attacks.predictions: -1 unless all are finite
    const float* z = reinterpret_cast<const float*>(ws.logits) + lane;
    int best = 0;
    for (int k = 0; k < K; ++k) {
        if (!std::isfinite(z[k * LANES])) return -1;
        if (z[k * LANES] > z[best * LANES]) best = k;
    }
    return best;
}

// ---------------------------------------------------------------------------------------------------------------
// Work for the threads

int num_groups(int64_t N) { return static_cast<int>((N + LANES - 1) / LANES); }

// Samples that are worked on together: consecutive ones of one run, their images in ws.x.
struct Group {
    int run, index;  // the group's place among those of its run
    int64_t first;   // sample
    int samples;     // at most LANES
};

// Calls work(workspace, group) for all groups of `runs` equal blocks of samples.
template <class Work>
void for_each_group(const float* x, int64_t N, int runs, int K, int threads, Work work) {
    const int64_t block = N / runs;
    const int groups = num_groups(block);
    threads = std::max(1, std::min(threads, runs * groups));
    const Workspaces all(threads, K);
    std::atomic<int> next{0};
    run_threads(threads, [&](int t) {
        Workspace& ws = all[t];
        int lane[LANES];
        const float* from[LANES];
        for (int task; (task = next++) < runs * groups;) {
            Group group{task / groups, task % groups, 0, 0};
            const int64_t done = static_cast<int64_t>(group.index) * LANES;
            group.first = group.run * block + done;
            group.samples = static_cast<int>(std::min<int64_t>(LANES, block - done));
            for (int i = 0; i < group.samples; ++i) lane[i] = i, from[i] = x + (group.first + i) * PIXELS;
            to_lanes(ws.x, PIXELS, lane, from, group.samples);
            work(ws, group);
        }
    });
}

struct Job {
    int64_t sample = -1;  // -1: no sample
    int left = 0;         // steps still to do
};

// Hands samples to lanes. A lane that becomes free gets the next sample, so early-stopped samples waste at most one
// step. Near the end it keeps the lanes level: 100 samples of 20 steps on 32 lanes take 63 steps when some samples
// pause in between, 80 when each runs through. The rule (optimal for jobs with a common deadline): with T = ceil(all
// steps left / lanes), a waiting sample that has T or more steps left must run now, in place of the shortest one.
class Schedule {
  public:
    Schedule(int64_t N, int steps, int lanes) : N_(N), steps_(steps), lanes_(lanes), left_(N * steps) {}

    // Fills `jobs`; `spent` is the number of steps done or saved since the last call. save(lane) must store a lane
    // whose sample pauses, before another thread may take it; changed[i] tells which lanes to load.
    template <class Save>
    void assign(Job* jobs, bool* changed, int64_t spent, Save save) {
        const std::lock_guard<std::mutex> lock(mutex_);
        left_ -= spent;
        for (int i = 0; i < LANES; ++i) {
            changed[i] = jobs[i].sample < 0 && longest().left > 0;
            if (changed[i]) jobs[i] = take();
        }
        for (;;) {
            const int waiting = longest().left;
            if (waiting == 0 || waiting < (left_ + lanes_ - 1) / lanes_) return;
            const int i = static_cast<int>(
                std::min_element(jobs, jobs + LANES, [](const Job& a, const Job& b) { return a.left < b.left; }) - jobs);
            if (jobs[i].left >= waiting) return;
            save(i);
            const Job paused = jobs[i];
            jobs[i] = take();
            changed[i] = true;
            paused_.push_back(paused);
        }
    }

  private:
    Job longest() const {
        if (next_ < N_) return {next_, steps_};
        Job best;
        for (const Job& job : paused_)
            if (job.left > best.left) best = job;
        return best;
    }
    Job take() {
        const Job job = longest();
        if (next_ < N_) {
            ++next_;
        } else {
            paused_.erase(std::find_if(paused_.begin(), paused_.end(), [&](const Job& j) { return j.sample == job.sample; }));
        }
        return job;
    }

    std::mutex mutex_;
    const int64_t N_;
    const int steps_, lanes_;
    int64_t next_ = 0, left_;
    std::vector<Job> paused_;
};

struct Attack {
    const Network& net;
    const float* x;
    Target target;
    const int64_t* stop_labels;  // null: no early stop
    const float *epsilon, *step_size;
    float* adv;  // in: start, out: result
    Schedule& schedule;

    void run(Workspace& ws) const {
        Job jobs[LANES];
        bool changed[LANES];
        vec eps = {}, step = {};
        int64_t spent = 0;
        auto save = [&](int i) {
            float* to = adv + jobs[i].sample * PIXELS;
            from_lanes(&to, PIXELS, &i, ws.adv, 1);
        };
        for (;;) {
            schedule.assign(jobs, changed, spent, save);
            load(ws, jobs, changed, eps, step);
            spent = 0;
            forward(net, ws.adv, ws);
            int active = 0, samples = 0;
            for (int i = 0; i < LANES; ++i) {
                if (jobs[i].sample >= 0) {
                    ++samples;
                    if (stop_labels && predicted_class(ws, net.classes, i) != stop_labels[jobs[i].sample]) {
                        save(i);
                        spent += jobs[i].left;
                        jobs[i] = Job{};
                    }
                }
                if (jobs[i].sample >= 0) {
                    ++active;
                    loss_gradient(ws, net.classes, i, target, jobs[i].sample);
                } else {
                    clear_gradient(ws, net.classes, i);
                }
            }
            if (samples == 0) return;
            if (active == 0) continue;
            backward(net, ws);
            // The same operations in the same order as in torch: x + clip(adv + step * sign(g) - x), then clip to [0, 1].
            input_gradient(net, ws, [&](int pixel, vec g) FRL_INLINE {
                const vec x0 = ws.x[pixel], zero = {};
                const vec move = g > zero ? step : (g < zero ? -step : zero);
                const vec delta = at_least(at_most(ws.adv[pixel] + move - x0, eps), -eps);
                ws.adv[pixel] = at_least(at_most(x0 + delta, splat(1.0f)), zero);
            });
            for (int i = 0; i < LANES; ++i) {
                if (jobs[i].sample < 0) continue;
                ++spent;
                if (--jobs[i].left > 0) continue;
                save(i);
                jobs[i] = Job{};
            }
        }
    }

  private:
    void load(Workspace& ws, const Job* jobs, const bool* changed, vec& eps, vec& step) const {
        int lane[LANES], samples = 0;
        const float *clean[LANES], *now[LANES];
        for (int i = 0; i < LANES; ++i) {
            if (!changed[i]) continue;
            const int64_t n = jobs[i].sample;
            lane[samples] = i;
            clean[samples] = x + n * PIXELS;
            now[samples++] = adv + n * PIXELS;
            eps[i] = epsilon[n];
            step[i] = step_size[n];
        }
        to_lanes(ws.x, PIXELS, lane, clean, samples);
        to_lanes(ws.adv, PIXELS, lane, now, samples);
    }
};

// No exception may cross into C.
template <class F>
int guarded(F&& f) {
    try {
        f();
        return 0;
    } catch (...) {  // only allocations throw
        return 1;
    }
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------
// Interface, called with ctypes. `p`: ten parameter arrays, each of `runs` runs one after the other; the N samples are as
// many equal blocks. Target: `labels` or `distribution`, the other null. All return 0, or 1 when memory runs out.

extern "C" {

int frl_lanes() { return LANES; }

// gradient may be null: logits only, and no target is needed.
int frl_lenet5_gradient(const float* const* p, int runs, int K, const float* x, int64_t N, const int64_t* labels,
                        const float* distribution, float* logits, float* gradient, int threads) {
    return guarded([&] {
        const Networks nets(p, K, runs, threads);
        for_each_group(x, N, runs, K, threads, [&](Workspace& ws, const Group& group) {
            const Network& net = nets[group.run];
            forward(net, ws.x, ws);
            for (int i = 0; i < group.samples; ++i) copy_logits(ws, K, i, logits + (group.first + i) * K);
            if (!gradient) return;
            int lane[LANES];
            float* to[LANES];
            for (int i = 0; i < group.samples; ++i) {
                loss_gradient(ws, K, i, {labels, distribution}, group.first + i);
                lane[i] = i, to[i] = gradient + (group.first + i) * PIXELS;
            }
            for (int i = group.samples; i < LANES; ++i) clear_gradient(ws, K, i);
            backward(net, ws);
            input_gradient(net, ws, [&](int pixel, vec g) FRL_INLINE { ws.adv[pixel] = g; });
            from_lanes(to, PIXELS, lane, ws.adv, group.samples);
        });
    });
}

// adv (N, 1, 32, 32) holds the start and receives the result; stop_labels may be null: no early stop.
int frl_lenet5_pgd(const float* const* p, int runs, int K, const float* x, int64_t N, const int64_t* labels,
                   const float* distribution, const int64_t* stop_labels, const float* epsilon, const float* step_size,
                   int steps, float* adv, int threads) {
    return guarded([&] {
        const Networks nets(p, K, runs, threads);
        const int64_t block = N / runs;
        const int together = std::max(1, std::min(threads, num_groups(block)));  // threads that one run can use
        const Workspaces all(std::max(together, std::min(threads, runs)), K);
        auto attack = [&](int r, Schedule& schedule) {
            const int64_t first = r * block;
            const Target target{labels ? labels + first : nullptr, distribution ? distribution + first * K : nullptr};
            return Attack{nets[r], x + first * PIXELS, target, stop_labels ? stop_labels + first : nullptr,
                          epsilon + first, step_size + first, adv + first * PIXELS, schedule};
        };
        // As many runs as can be dealt out evenly have a thread to themselves; each of the rest has all threads.
        const int alone = runs / threads * threads;
        std::atomic<int> next{0};
        if (alone > 0)
            run_threads(threads, [&](int t) {
                for (int r; (r = next++) < alone;) {
                    Schedule schedule(block, steps, LANES);
                    attack(r, schedule).run(all[t]);
                }
            });
        for (int r = alone; r < runs; ++r) {
            Schedule schedule(block, steps, together * LANES);
            const Attack shared = attack(r, schedule);
            run_threads(together, [&](int t) { shared.run(all[t]); });
        }
    });
}

// Parameter gradients of any loss, given its gradient by the logits: dlogits (N, K).
// conv_grads (runs, 2572): conv1.weight, conv1.bias, conv2.weight, conv2.bias. Each group's sum is kept apart and the sums
// are added in the order of the groups, so the result is the same bit for bit with any number of threads.
// dense_rows (runs, 808 + K, groups * lanes): p2, d3, a3, d4, a4, dlogits, one column per sample of the run (zero gradient
// in the columns beyond its last), from which the caller gets the dense layers' gradients as matrix products.
int frl_lenet5_parameter_gradients(const float* const* p, int runs, int K, const float* x, int64_t N,
                                   const float* dlogits, float* conv_grads, float* dense_rows, int threads) {
    return guarded([&] {
        const Networks nets(p, K, runs, threads);
        const int groups = num_groups(N / runs);
        const size_t columns = static_cast<size_t>(groups) * LANES;
        std::vector<float> sums(static_cast<size_t>(runs) * groups * CONV_GRADS);
        for_each_group(x, N, runs, K, threads, [&](Workspace& ws, const Group& group) {
            const Network& net = nets[group.run];
            forward(net, ws.x, ws);
            float* d = reinterpret_cast<float*>(ws.dlogits);
            for (int i = 0; i < LANES; ++i)
                for (int k = 0; k < K; ++k)
                    d[k * LANES + i] = i < group.samples ? dlogits[(group.first + i) * K + k] : 0.0f;
            backward(net, ws);
            float* to = dense_rows + group.run * (DENSE_ROWS + K) * columns + group.index * LANES;
            auto write = [&](const vec* rows, int count) {
                for (int i = 0; i < count; ++i, to += columns) std::memcpy(to, rows + i, sizeof(vec));
            };
            write(ws.p2, 400);
            write(ws.d3, 120);
            write(ws.a3, 120);
            write(ws.d4, 84);
            write(ws.a4, 84);
            write(ws.dlogits, K);
            vec* grads = ws.conv_grads;
            std::memset(static_cast<void*>(grads), 0, sizeof ws.conv_grads);
            conv_weight_gradient<1, 32, 6, GRAD1_OUT, 4>(ws.x, ws.a1, grads, grads + 150);
            conv_weight_gradient<6, 14, 16, GRAD2_OUT, 10>(ws.p1, ws.a2, grads + 156, grads + 2556);
            float* sum = &sums[(static_cast<size_t>(group.run) * groups + group.index) * CONV_GRADS];
            for (int i = 0; i < CONV_GRADS; ++i) sum[i] = sum_of_lanes(grads[i]);
        });
        std::fill(conv_grads, conv_grads + static_cast<size_t>(runs) * CONV_GRADS, 0.0f);
        for (int run = 0; run < runs; ++run)
            for (int group = 0; group < groups; ++group)
                for (int i = 0; i < CONV_GRADS; ++i)
                    conv_grads[run * CONV_GRADS + i] += sums[(static_cast<size_t>(run) * groups + group) * CONV_GRADS + i];
    });
}

}  // extern "C"
