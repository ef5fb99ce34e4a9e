"""Forms: their names, where they are available, and what they do to a model."""

import pytest
import torch
from helpers import relative_error
from torch import nn

from mmcare import UserError
from mmcare.benchmark import STEPS, check_form, default_forms, resolve
from mmcare.benchmark.subjects import Subject
from mmcare.benchmark.timing import examine


def test_the_default_forms_are_possible_where_they_are_measured():
    for training in (False, True):
        for device in ("cpu", "cuda"):
            forms = default_forms(training, device)
            assert forms[0] == "plain" and "eager" in forms
            for form in forms:
                assert set(check_form(form, training, device)) <= set(STEPS)
    assert any("keep-freed-memory" in form for form in default_forms(False, "cpu"))
    assert any("fp16+cuda-graph" in form for form in default_forms(False, "cuda"))


def test_freed_memory_is_not_kept_where_rows_share_a_process():
    with pytest.raises(
        UserError, match="keep-freed-memory is process-wide, and on --device cuda all rows share a process"
    ):
        check_form("plain+keep-freed-memory", training=False, device="cuda")


def test_only_the_form_that_says_so_keeps_freed_memory(monkeypatch, make_steps):
    calls = []
    monkeypatch.setattr("mmcare.benchmark.steps.keep_freed_memory", lambda: calls.append(True))
    subject = resolve("mmcare.CASViT:xs")
    make_steps(subject, ["plain", "eager", "reparameterized"])
    assert not calls
    make_steps(subject, ["reparameterized+keep-freed-memory"])
    assert calls == [True]


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_the_steps_of_a_form(make_steps):
    subject = resolve("mmcare.CASViT:xs")
    (step,) = make_steps(subject, ["bf16+channels-last+reparameterized"])
    assert norms(step.model) < norms(subject.model)
    assert step.images.is_contiguous(memory_format=torch.channels_last)
    assert {output.dtype for output in step.forward()} == {torch.bfloat16}
    assert next(subject.model.parameters()).dtype == torch.float32
    (step,) = make_steps(subject, ["bf16"], training=True)
    assert next(step.model.parameters()).dtype == torch.float32
    step()


def test_half_precision_is_of_one_kind_and_fp16_for_inference(make_steps):
    (step,) = make_steps(resolve("mmcare.CASViT:xs"), ["fp16+reparameterized"])
    assert {output.dtype for output in step.forward()} == {step.images.dtype} == {torch.float16}
    with pytest.raises(UserError, match="computes either in bf16 or in fp16"):
        check_form("bf16+fp16", training=False, device="cuda")
    with pytest.raises(UserError, match="the form 'fp16' is for inference, because of fp16"):
        check_form("fp16", training=True, device="cuda")


def test_a_wrong_form_shows_in_the_difference(monkeypatch, make_steps):
    def wrong(model):
        (wrong,) = make_steps(Subject("a copy", model, (32, 32)), ["eager"])
        wrong.model.stages[0].blocks[0].first_interaction.norm = nn.Identity()
        return wrong.model

    monkeypatch.setattr("mmcare.benchmark.steps.reparameterize", wrong)
    made = make_steps(resolve("mmcare.CARE:s0"), ["reparameterized", "eager", "plain", "eager"])
    plain, wrong_form, eager = made
    assert [step.case.form for step in made] == ["plain", "reparameterized", "eager"]
    findings, reference = examine(plain, None)
    assert findings.difference is None
    assert examine(eager, reference)[0].difference < 1e-6
    assert examine(wrong_form, reference)[0].difference > 1e-3


def operators(step):
    """Return the names of the operators that a pass calls."""
    with torch.profiler.profile() as profiler:
        step()
    return {event.key for event in profiler.key_averages()}


def test_compiled_with_frozen_weights_for_every_size_whatever_the_limit(make_steps):
    torch.compiler.reset()
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    subject = Subject("three layers", layers.eval(), (32, 32))
    with torch.compiler.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for shape in ((32, 32), (48, 32)):
            eager, compiled = make_steps(subject, ["eager", "compiled"], shape)
            _, reference = examine(eager, None)
            assert examine(compiled, reference)[0].difference < 1e-5
            assert "aten::relu" in operators(eager)
            assert "aten::relu" not in operators(compiled)
    with torch.no_grad():
        for parameter in compiled.model.parameters():
            parameter.zero_()
    (after,) = compiled.forward()
    assert relative_error(after, reference[0]) < 1e-5


def test_the_memory_budget_is_kept_by_the_compiler(make_steps):
    torch.compiler.reset()
    layers = [layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 1), nn.GELU())]
    subject = Subject("four convolutions", nn.Sequential(nn.Conv2d(3, 4, 1), *layers).eval(), (32, 32))
    made = make_steps(subject, ["compiled", "compiled+memory-budget"], training=True)
    kept, within_budget = (examine(step, None)[0].kept for step in made)
    assert 0 < within_budget < 0.5 * kept
