// What Python calls, of `Network`; see driver.hpp.

extern "C" {

int frl_lanes() { return LANES; }

int frl_blocks(int* outs) {
    std::copy(std::begin(Network::BLOCKS), std::end(Network::BLOCKS), outs);
    return 0;
}

// packed (runs, PACKED) from flat (runs, size): entry i of a row is entry index[i].
int frl_pack(const float* flat, int size, int runs, const int32_t* index, float* packed, int threads) {
    for_each_task(runs, std::min(threads, runs), [&](int, int run) {
        const float* from = flat + static_cast<size_t>(run) * size;
        float* to = packed + static_cast<size_t>(run) * Network::PACKED;
        for (int i = 0; i < Network::PACKED; ++i) to[i] = from[index[i]];
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
