"""TensorFlow and Keras, set up before they are imported: CPU only, quiet, and the same bits every time.

Importing this runs no TensorFlow operation: workers are forked from a process that has only imported it,
and a fork after the first operation hangs. What is set in the environment already is left alone.
"""

from __future__ import annotations

import os

for _name, _value in {
    "CUDA_VISIBLE_DEVICES": "-1",  # a function has no GPU; without this every start probes for one
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "KERAS_BACKEND": "tensorflow",
    # One thread: sums are made in one order, so the same seed gives the same weights, bit for bit.
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}.items():
    os.environ.setdefault(_name, _value)

import tensorflow as tf  # noqa: E402, I001
import keras  # noqa: E402

__all__ = ["keras", "tf"]
