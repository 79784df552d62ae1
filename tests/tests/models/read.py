"""Reads model files by both ways of the safetensors library and compares every tensor: HOW MOUNTED ORIGINALS."""

import os
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

how, mounted, originals = sys.argv[1:]
tensors, size = 0, 0
for name in sorted(os.listdir(originals)):
    expected = load_file(os.path.join(originals, name))
    if how == "load_file":
        found = load_file(os.path.join(mounted, name))
        assert found.keys() == expected.keys(), name
        items = found.items()
    else:
        mapped = safe_open(os.path.join(mounted, name), framework="numpy")
        assert set(mapped.keys()) == expected.keys(), name
        # Backwards: not the order in which they lie there.
        items = ((key, mapped.get_tensor(key)) for key in reversed(list(mapped.keys())))
    for key, tensor in items:
        original = expected[key]
        assert tensor.dtype == original.dtype and tensor.shape == original.shape, (name, key)
        assert tensor.tobytes() == original.tobytes(), (name, key)
        tensors, size = tensors + 1, size + tensor.nbytes
print(tensors, size)
