"""Did it get slower? Two torches, two commits or two Pythons, measured in turns on one machine.

``python -m benchmarks.compare A B``. ``sides`` makes an environment of what A and B name,
``worker`` trains once in it, ``watch`` looks at what else the machine does, ``rounds`` runs both in
turns and keeps what was done, ``verdict`` says what the figures allow, ``page`` shows it.
"""
