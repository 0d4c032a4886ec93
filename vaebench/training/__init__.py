"""A training from its first epoch to its last; knows engines by what they do.

``fit`` checks and builds, ``loop`` draws the numbers and hands them to the engine, ``follow`` keeps
that true to a model that is changed, ``state`` is what it takes to go on. May import every room but
``runs``, ``plots`` and ``cli``. To add a schedule: ``schedules``, and its name in the config. What
is to happen after each epoch is a callback of the caller's, and needs no change here.
"""
