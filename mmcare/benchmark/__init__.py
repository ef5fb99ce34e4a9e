"""The benchmark: the networks in each of their forms beside what a user would pick instead, measured in one run.

``tools/benchmark.py`` is its command line. Nothing else in the package needs it.
"""
