"""docs/trials.py: the variants that it compares compute the same."""

import torch
from helpers import ROOT, load_module, relative_error


def test_the_ways_of_a_trial_compute_the_same():
    with torch.inference_mode():
        for subject, ways in load_module(ROOT / "docs/trials.py").trials():
            first, *others = (way() for way in ways.values())
            assert others
            for other in others:
                assert relative_error(other, first) < 1e-5, subject
