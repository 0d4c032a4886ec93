"""Kernels in C++ and Triton, built or imported when they are first used."""
