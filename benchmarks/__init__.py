"""How fast, at what quality, how near the limit, against what else, and is any of it noise?

A file a question: ``bench_*.py`` for ``pytest benchmarks --benchmark-only``, and the commands
``python -m benchmarks.ladder``, ``.turns``, ``.equality``, ``.whole``, ``.cuda_report``.
All use ``harness`` (clock, engines, processes), ``rungs`` (from the register), ``statistics`` and
``peers/``. To ask another: write a file with a ``measure(...)``; it may import the package only.
"""
