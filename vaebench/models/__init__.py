"""The networks, and what the trainer needs of anybody's.

``mlp`` and ``conv`` are the package's own, made by name in ``networks``; ``protocol`` says what a
VAE is, ``adapt`` brings other models to that. ``snapshot`` puts back what a model keeps,
``fingerprint`` tells one state of it from another, ``code`` sees what its own code reads and does
elsewhere. May import ``errors`` and ``system``; networks know no device, no autocast and no
compiler. To add a network: a module with ``encode`` and ``decode``, a line in ``networks``, its
name in ``config.NETWORKS``.
"""
