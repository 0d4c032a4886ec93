"""The techniques, and how they are admitted.

``register`` lists them; ``build`` tries them one by one on a problem and admits what is right and
pays (``admit``); each has a file of its own, with one function, ``offer`` or ``part``, on what is
being made (``draft``), and maybe another, ``regret``, for when others were built on it. Below them
are the plain ``step`` and the optimisers, ``stream`` and ``parallel``, which are places rather than
techniques, and ``kernels``. May import what is below ``fast`` in the list of floors, and no other
technique. To add one: its line in the register, its file, a case of its own in ``tests/fast``.
Nothing is imported here: the register needs no torch.
"""
