"""Tests train on the CPU, whatever the machine has: their scores are compared to the last bit."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
