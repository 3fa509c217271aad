"""How a network is computed: PyTorch or native code, CUDA graphs, parts that fit into memory, several processes."""
