"""The machine: devices, threads, clocks, processes, compilers."""
