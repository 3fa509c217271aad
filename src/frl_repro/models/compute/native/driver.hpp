// What is asked of a network: logits, input gradients, attacks and parameter gradients of N images, by several threads.
//
// `Net` is the generated network. Its constants: CLASSES, CHANNELS, PIXELS (of the image), PACKED (floats of one run's
// weights), WORKSPACE (vectors that a group needs), and places in a workspace: CLEAN and IMAGE (images), LOGITS, DLOGITS
// (their gradient), SUMS (of the gradients of NUM_SUMS parameters over samples). TRAINS: whether it has parameter gradients;
// NUM_ROWS: see Rows.
//   forward(weights, ws): from IMAGE to LOGITS.
//   backward<PARAMETERS>(weights, ws, rows, take): from DLOGITS to the gradients of the parameters, added to SUMS and written
//     to rows, or to that of the image: take(i, g) for each of its values i, when IMAGE[i] is needed no more.
//
// Several networks of one architecture ("runs") may work in one call, each on its own block of images: a group belongs to
// one run, and the threads share the groups of all runs.

namespace {

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

// Copies sample `from[i]`, [channel][pixel], into lane `lane[i]` of `to`, [pixel][channel]. Walks few pixels at a time, so
// that the touched part of `to` stays in the L1 cache for all samples.
template <class Net>
void to_lanes(vec* to, const int* lane, const float* const* from, int samples) {
    float* out = reinterpret_cast<float*>(to);
    for (int begin = 0; begin < Net::PIXELS; begin += 16)
        for (int i = 0; i < samples; ++i)
            for (int c = 0; c < Net::CHANNELS; ++c)
                for (int j = begin; j < std::min(begin + 16, Net::PIXELS); ++j)
                    out[(j * Net::CHANNELS + c) * LANES + lane[i]] = from[i][c * Net::PIXELS + j];
}

template <class Net>
void from_lanes(float* const* to, const int* lane, const vec* from, int samples) {
    const float* in = reinterpret_cast<const float*>(from);
    for (int begin = 0; begin < Net::PIXELS; begin += 16)
        for (int i = 0; i < samples; ++i)
            for (int c = 0; c < Net::CHANNELS; ++c)
                for (int j = begin; j < std::min(begin + 16, Net::PIXELS); ++j)
                    to[i][c * Net::PIXELS + j] = in[(j * Net::CHANNELS + c) * LANES + lane[i]];
}

// Each thread that calls keeps workspaces for its next call: fresh memory costs a page fault for every 4 kB, which a
// virtual machine can make dearer than the arithmetic. They lie on huge pages where the system grants them, because small
// pages of a workspace outnumber the entries of the first address-translation cache.
template <class Net>
class Workspaces {
  public:
    explicit Workspaces(int threads) {
        while (static_cast<int>(all_.size()) < threads) all_.push_back(allocate());
        for (int t = 0; t < threads; ++t)  // lanes without a sample see zeros
            for (const int place : {Net::CLEAN, Net::IMAGE})
                std::memset(static_cast<void*>((*this)[t] + place), 0, sizeof(vec) * Net::PIXELS * Net::CHANNELS);
    }
    vec* operator[](int t) const { return static_cast<vec*>(all_[t].get()); }

  private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };
    using Block = std::unique_ptr<void, Free>;

    static Block allocate() {
        constexpr size_t HUGE_PAGE = size_t{1} << 21;
        const size_t size = (sizeof(vec) * Net::WORKSPACE + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        void* memory = std::aligned_alloc(HUGE_PAGE, size);
        if (!memory) throw std::bad_alloc();
#if defined(__linux__)
        madvise(memory, size, MADV_HUGEPAGE);  // advice: failing changes nothing
#endif
        return Block(memory);
    }
    static std::vector<Block>& kept() {
        thread_local std::vector<Block> list;
        return list;
    }
    std::vector<Block>& all_ = kept();  // the caller's, whichever thread of the call works in one
};

// ---------------------------------------------------------------------------------------------------------------
// Loss

struct Target {  // one of the two
    const int64_t* labels;  // (N,)
    const float* distribution;  // (N, K)
};

// Writes the gradient of sample n's cross-entropy by its logits into its lane. With a label, the label's own entry is
// minus the sum of the others: no cancellation where the network is sure.
void loss_gradient(const vec* logits, vec* gradient, int K, int lane, const Target& target, int64_t n) {
    const float* z = reinterpret_cast<const float*>(logits) + lane;
    float* d = reinterpret_cast<float*>(gradient) + lane;
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

void set_lane(vec* to, int K, int lane, const float* values) {  // null: zeros
    for (int k = 0; k < K; ++k) reinterpret_cast<float*>(to)[k * LANES + lane] = values ? values[k] : 0.0f;
}

// The predicted class as attacks/predictions.py decides it: the first largest, no class where not all logits are finite.
int predicted_class(const vec* logits, int K, int lane) {
    const float* z = reinterpret_cast<const float*>(logits) + lane;
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

// Samples that are worked on together: consecutive ones of one run, their images in IMAGE.
struct Group {
    int run, index;  // the group's place among those of its run
    int64_t first;   // sample
    int samples;     // at most LANES
};

template <class Net>
Group load_group(const float* x, int64_t block, int run, int index, vec* ws) {
    Group group{run, index, run * block + static_cast<int64_t>(index) * LANES, 0};
    group.samples = static_cast<int>(std::min<int64_t>(LANES, (run + 1) * block - group.first));
    int lane[LANES];
    const float* from[LANES];
    for (int i = 0; i < group.samples; ++i)
        lane[i] = i, from[i] = x + (group.first + i) * Net::PIXELS * Net::CHANNELS;
    to_lanes<Net>(ws + Net::IMAGE, lane, from, group.samples);
    return group;
}

// Calls work(thread, task) for tasks 0 to count - 1.
template <class Work>
void for_each_task(int count, int threads, const Work& work) {
    std::atomic<int> next{0};
    run_threads(threads, [&](int t) {
        for (int task; (task = next++) < count;) work(t, task);
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

// A step of projected gradient ascent for value i of the image, given its gradient: the same operations in the same order as
// in torch, x + clip(adv + step * sign(g) - x), then clip to [0, 1].
struct Move {
    const vec* clean;
    vec* now;
    vec eps, step;
    FRL_INLINE void operator()(int i, vec g) const {
        const vec x0 = clean[i], zero = {};
        const vec change = g > zero ? step : (g < zero ? -step : zero);
        const vec delta = at_least(at_most(now[i] + change - x0, eps), -eps);
        now[i] = at_least(at_most(x0 + delta, splat(1.0f)), zero);
    }
};

template <class Net>
struct Attack {
    static constexpr int SIZE = Net::PIXELS * Net::CHANNELS;
    const float* weights;
    const float* x;
    Target target;
    const int64_t* stop_labels;  // null: no early stop
    const float *epsilon, *step_size;
    float* adv;  // in: start, out: result
    Schedule& schedule;

    void run(vec* ws) const {
        Job jobs[LANES];
        bool changed[LANES];
        vec eps = {}, step = {};
        int64_t spent = 0;
        auto save = [&](int i) {
            float* to = adv + jobs[i].sample * SIZE;
            from_lanes<Net>(&to, &i, ws + Net::IMAGE, 1);
        };
        for (;;) {
            schedule.assign(jobs, changed, spent, save);
            load(ws, jobs, changed, eps, step);
            spent = 0;
            Net::forward(weights, ws);
            int active = 0, samples = 0;
            for (int i = 0; i < LANES; ++i) {
                if (jobs[i].sample >= 0) {
                    ++samples;
                    if (stop_labels && predicted_class(ws + Net::LOGITS, Net::CLASSES, i) != stop_labels[jobs[i].sample]) {
                        save(i);
                        spent += jobs[i].left;
                        jobs[i] = Job{};
                    }
                }
                if (jobs[i].sample >= 0) {
                    ++active;
                    loss_gradient(ws + Net::LOGITS, ws + Net::DLOGITS, Net::CLASSES, i, target, jobs[i].sample);
                } else {
                    set_lane(ws + Net::DLOGITS, Net::CLASSES, i, nullptr);
                }
            }
            if (samples == 0) return;
            if (active == 0) continue;
            Net::template backward<false>(weights, ws, nullptr, Move{ws + Net::CLEAN, ws + Net::IMAGE, eps, step});
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
    void load(vec* ws, const Job* jobs, const bool* changed, vec& eps, vec& step) const {
        int lane[LANES], samples = 0;
        const float *clean[LANES], *now[LANES];
        for (int i = 0; i < LANES; ++i) {
            if (!changed[i]) continue;
            const int64_t n = jobs[i].sample;
            lane[samples] = i;
            clean[samples] = x + n * SIZE;
            now[samples++] = adv + n * SIZE;
            eps[i] = epsilon[n];
            step[i] = step_size[n];
        }
        to_lanes<Net>(ws + Net::CLEAN, lane, clean, samples);
        to_lanes<Net>(ws + Net::IMAGE, lane, now, samples);
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

// ---------------------------------------------------------------------------------------------------------------
// The answers. `weights`: (runs, PACKED); the N samples are as many equal blocks. Target: `labels` or `distribution`, the
// other null. All return 0, or 1 when memory runs out.

// Logits (N, K) and the gradient of the summed cross-entropy by the images; where `gradient` is null, no target is needed.
template <class Net>
int gradients(const float* weights, int runs, const float* x, int64_t N, Target target, float* logits, float* gradient,
              int threads) {
    return guarded([&] {
        const int groups = num_groups(N / runs);
        threads = std::max(1, std::min(threads, runs * groups));
        const Workspaces<Net> all(threads);
        for_each_task(runs * groups, threads, [&](int t, int task) {
            vec* ws = all[t];
            const Group group = load_group<Net>(x, N / runs, task / groups, task % groups, ws);
            const float* own = weights + static_cast<size_t>(group.run) * Net::PACKED;
            Net::forward(own, ws);
            for (int i = 0; i < group.samples; ++i)
                for (int k = 0; k < Net::CLASSES; ++k)
                    logits[(group.first + i) * Net::CLASSES + k] = reinterpret_cast<float*>(ws + Net::LOGITS)[k * LANES + i];
            if (!gradient) return;
            int lane[LANES];
            float* to[LANES];
            for (int i = 0; i < group.samples; ++i) {
                loss_gradient(ws + Net::LOGITS, ws + Net::DLOGITS, Net::CLASSES, i, target, group.first + i);
                lane[i] = i, to[i] = gradient + (group.first + i) * Net::PIXELS * Net::CHANNELS;
            }
            for (int i = group.samples; i < LANES; ++i) set_lane(ws + Net::DLOGITS, Net::CLASSES, i, nullptr);
            vec* image = ws + Net::IMAGE;
            Net::template backward<false>(own, ws, nullptr, [image](int i, vec g) FRL_INLINE { image[i] = g; });
            from_lanes<Net>(to, lane, image, group.samples);
        });
    });
}

// adv, of x's shape, holds the start and receives the result; stop_labels may be null: no early stop.
template <class Net>
int attack(const float* weights, int runs, const float* x, int64_t N, Target target, const int64_t* stop_labels,
           const float* epsilon, const float* step_size, int steps, float* adv, int threads) {
    return guarded([&] {
        const int64_t block = N / runs;
        const int together = std::max(1, std::min(threads, num_groups(block)));  // threads that one run can use
        const Workspaces<Net> all(std::max(together, std::min(threads, runs)));
        auto of_run = [&](int r, Schedule& schedule) {
            const int64_t first = r * block, pixels = first * Net::PIXELS * Net::CHANNELS;
            const Target own{target.labels ? target.labels + first : nullptr,
                             target.distribution ? target.distribution + first * Net::CLASSES : nullptr};
            return Attack<Net>{weights + static_cast<size_t>(r) * Net::PACKED, x + pixels, own,
                               stop_labels ? stop_labels + first : nullptr, epsilon + first, step_size + first,
                               adv + pixels, schedule};
        };
        // As many runs as can be dealt out evenly have a thread to themselves; each of the rest has all threads.
        const int alone = runs / threads * threads;
        if (alone > 0)
            for_each_task(alone, threads, [&](int t, int r) {
                Schedule schedule(block, steps, LANES);
                of_run(r, schedule).run(all[t]);
            });
        for (int r = alone; r < runs; ++r) {
            Schedule schedule(block, steps, together * LANES);
            const Attack<Net> shared = of_run(r, schedule);
            run_threads(together, [&](int t) { shared.run(all[t]); });
        }
    });
}

// Where the rows of linear layers go: row r of a group's values is at to + r * columns, LANES wide. Values of `pixels` pixels
// are written as [channel][pixel], PyTorch's order.
struct Rows {
    float* to;
    size_t columns;
    void write(int row, const vec* values, int pixels, int channels) const {
        for (int i = 0; i < pixels; ++i)
            for (int c = 0; c < channels; ++c)
                std::memcpy(to + (row + c * pixels + i) * columns, values++, sizeof(vec));
    }
};

// Parameter gradients of any loss, given its gradient by the logits: dlogits (N, K).
// sums (runs, NUM_SUMS): the gradients of convolutions. Groups are added up in at most MAX_CHUNKS chunks, and the chunks in
// their order, so the result is the same bit for bit with any number of threads, and memory stays bounded.
// rows (runs, NUM_ROWS, groups * lanes): inputs and output gradients of linear layers, one column per sample of the run (zero
// gradient in the columns beyond its last), from which the caller gets these layers' gradients as matrix products.
template <class Net>
int parameter_gradients(const float* weights, int runs, const float* x, int64_t N, const float* dlogits, float* sums,
                        float* rows, int threads) {
    constexpr int MAX_CHUNKS = 64;
    return guarded([&] {
        const int groups = num_groups(N / runs), chunks = std::min(groups, MAX_CHUNKS);
        const size_t columns = static_cast<size_t>(groups) * LANES;
        threads = std::max(1, std::min(threads, runs * chunks));
        const Workspaces<Net> all(threads);
        std::vector<float> parts(static_cast<size_t>(runs) * chunks * Net::NUM_SUMS);
        for_each_task(runs * chunks, threads, [&](int t, int task) {
            const int run = task / chunks, chunk = task % chunks;
            vec *ws = all[t], *own = ws + Net::SUMS;
            const float* w = weights + static_cast<size_t>(run) * Net::PACKED;
            std::fill(own, own + Net::NUM_SUMS, vec{});
            for (int g = chunk * groups / chunks; g < (chunk + 1) * groups / chunks; ++g) {
                const Group group = load_group<Net>(x, N / runs, run, g, ws);
                Net::forward(w, ws);
                for (int i = 0; i < LANES; ++i)
                    set_lane(ws + Net::DLOGITS, Net::CLASSES, i,
                             i < group.samples ? dlogits + (group.first + i) * Net::CLASSES : nullptr);
                const Rows to{rows + run * Net::NUM_ROWS * columns + static_cast<size_t>(g) * LANES, columns};
                Net::template backward<Net::TRAINS != 0>(w, ws, &to, [](int, vec) {});
            }
            float* part = parts.data() + static_cast<size_t>(task) * Net::NUM_SUMS;
            for (int i = 0; i < Net::NUM_SUMS; ++i) {
                float lane[LANES];
                std::memcpy(lane, own + i, sizeof lane);
                for (int half = LANES / 2; half > 0; half /= 2)
                    for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
                part[i] = lane[0];
            }
        });
        std::fill(sums, sums + static_cast<size_t>(runs) * Net::NUM_SUMS, 0.0f);
        for (int task = 0; task < runs * chunks; ++task)
            for (int i = 0; i < Net::NUM_SUMS; ++i)
                sums[static_cast<size_t>(task / chunks) * Net::NUM_SUMS + i] += parts[static_cast<size_t>(task) * Net::NUM_SUMS + i];
    });
}

}  // namespace
