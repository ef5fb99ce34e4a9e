"""If torch lacks a private name, the error is a sentence, not a stack trace."""

import sys
from types import ModuleType

import pytest

from mmcare import UserError
from mmcare.benchmark.private import activation_budget, frozen_weights
from mmcare.benchmark.profiling import profile


@pytest.mark.parametrize(
    ("module", "call"),
    [("torch._inductor.config", frozen_weights), ("torch._functorch.config", lambda: activation_budget(0.5))],
)
def test_a_setting_that_torch_lacks(module, call, monkeypatch):
    with call():
        pass
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(UserError, match=rf"^torch [\d.+\w]+ has no {module}.\w+, which the step [\w-]+ needs: omit"):
        call()


def test_a_torch_that_does_not_show_its_operators(monkeypatch):
    monkeypatch.setattr("mmcare.benchmark.profiling.TorchDispatchMode", None)
    with pytest.raises(UserError, match="does not expose its operator calls: use another version to profile"):
        profile(lambda: None, "cpu", repeats=1)
