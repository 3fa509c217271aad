// What Python calls, of `Network`; see driver.hpp.

extern "C" {

int frl_lanes() { return LANES; }

int frl_packed() { return Network::PACKED; }

// packed (runs, PACKED) from the arrays of each run, ARRAYS addresses a run.
int frl_pack(const float* const* arrays, int runs, float* packed, int threads) {
    for_each_task(runs, std::min(threads, runs), [&](int, int run) {
        Network::pack_all(arrays + run * Network::ARRAYS, packed + static_cast<size_t>(run) * Network::PACKED);
    });
    return 0;
}

int frl_gradients(const float* weights, int runs, const float* x, int64_t N, const int64_t* labels,
                  const float* distribution, float* logits, float* gradient, int threads) {
    return gradients<Network>(weights, runs, x, N, {labels, distribution}, logits, gradient, threads);
}

int frl_attack(const float* weights, int runs, const float* x, int64_t N, const int64_t* labels, const float* distribution,
               const int64_t* stop_labels, const float* epsilon, const float* step_size, int steps, float* adv,
               int threads) {
    return attack<Network>(weights, runs, x, N, {labels, distribution}, stop_labels, epsilon, step_size, steps, adv, threads);
}

int frl_parameter_gradients(const float* weights, int runs, const float* x, int64_t N, const float* dlogits, float* sums,
                            float* rows, int threads) {
    return parameter_gradients<Network>(weights, runs, x, N, dlogits, sums, rows, threads);
}

}  // extern "C"
