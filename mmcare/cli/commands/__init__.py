"""The commands, a module each: ``mmcare train`` and ``tools/train.py`` both run ``main`` of ``train``."""
