"""Kernels in C++ and Triton, built or imported when they are first used.

A technique builds its sources by ``vaebench.system.toolchain.load_kernels``; headers are shared.
Python here may import what a technique may. To add one: its ``.cpp``, which includes no header of
torch and takes addresses and sizes; the check of these in Python, beside the call; and a test
beside plain PyTorch.
"""
