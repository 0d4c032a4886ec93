"""How fast, at what quality, how near the limit, against what else, and is any of it noise?

``pytest benchmarks --benchmark-only`` asks every ``bench_*.py`` its one question. Three longer
measurements are commands: ``python -m benchmarks.ladder``, ``.equality`` and ``.whole``.
What the README quotes is kept in ``results/`` and put there by ``scripts/report.py``.
"""
