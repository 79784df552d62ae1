"""Writes model files with the safetensors library: DIRECTORY SHARDS MIB."""

import sys

import numpy as np
from safetensors.numpy import save_file

directory, shards, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(7)
for shard in range(shards):
    # Layers of some MiB each, as models have them, and the odd ones among them.
    layers = {
        f"layer.{shard}.{number}.weight": random.integers(0, 256, size=(1024, 4096), dtype=np.uint8)
        .view(np.float16)
        .reshape(2048, 1024)
        for number in range(mib // 4)
    }
    layers[f"layer.{shard}.bias"] = random.standard_normal(1001).astype(np.float32)
    layers[f"layer.{shard}.mask"] = random.integers(0, 2, size=(7, 13)).astype(bool)
    layers[f"layer.{shard}.empty"] = np.zeros((0, 5), dtype=np.int64)
    save_file(layers, f"{directory}/model-{shard:05}-of-{shards:05}.safetensors", metadata={"shard": str(shard)})
save_file({"scalar": np.array(3.5), "one": np.arange(11, dtype=np.int16)}, f"{directory}/tiny.safetensors")
