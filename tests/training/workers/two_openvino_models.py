"""Run by a test: uses two models by OpenVINO, lets go of them in the order they came, and then is
sent a signal, as by the end of a child."""

from __future__ import annotations

import gc
import os
import signal
import sys

import numpy as np

from training.inference.upscaler import Upscaler

if __name__ == "__main__":
    upscalers = [
        Upscaler.from_pretrained(sys.argv[1], device="cpu", backend="openvino") for _ in range(2)
    ]
    for upscaler in upscalers:
        upscaler.upscale(np.zeros((64, 64, 3), np.uint8), scale=1)
    del upscaler
    while upscalers:
        upscalers.pop(0)
        gc.collect()
    signal.signal(signal.SIGUSR1, lambda number, frame: print("handled"))
    os.kill(os.getpid(), signal.SIGUSR1)
