"""The machine: devices, threads, clocks, processes, compilers, random streams.

May import ``errors`` alone. ``fork`` and ``start`` are imported with the package and need no torch;
nothing here acts before it is called. To add something: a module for one part of the machine, that
says in a line what is missing and how to get it, and works, or stands aside, where it is missing.
"""
