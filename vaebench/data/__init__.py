"""Data: MNIST, the built-in strokes and files of the user's own, as checked tensors.

Files come in through ``load``, arrays through ``arrays``, data sets of torch's through
``datasets``; ``images`` scales and gathers, ``loader`` and ``streaming`` keep images on a device or
beside it. May import ``errors`` and ``system``. To add a format: a reader that gives an array and
raises InputError for a damaged file, called in ``files``; to add a source, a name in
``load.load_dataset``.
"""
