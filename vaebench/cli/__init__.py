"""The command line: what is typed, and what a person reads.

``arguments`` makes options of the fields of :class:`vaebench.TrainConfig`; a command is a module
with ``main(argv)``, which runs within ``command.run``: there an error becomes one line and a
status. May import every room; no room imports this one. To add a command: its module, and its name
beside the others'; to add an option to ``train``, a field in :mod:`vaebench.config`, and no more.
"""
