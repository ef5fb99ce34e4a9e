"""The forms in which a model is measured: their steps, and where each is available."""

from __future__ import annotations

from ..errors import UserError

KEPT_SHARE = 0.3
"""Share of the activations that memory-budget stores; with less, compilation takes longer and the step is no faster."""

STEPS = {
    "plain": "the authors' operations one for one, everything stored for the backward pass; mmcare's backbones only",
    "reparameterized": "mmcare.reparameterize; mmcare's backbones only, inference only",
    "channels-last": "weights and images in the memory format NHWC",
    "bf16": "computed in bfloat16; training keeps float32 weights (autocast), as with --amp",
    "fp16": "computed in float16; inference only",
    "compiled": "torch.compile with inductor; in inference with frozen weights",
    "memory-budget": f"the compiler stores {KEPT_SHARE:.0%} of the activations; compiled training only",
    "cuda-graph": "recorded once and replayed; inference on CUDA only",
    "keep-freed-memory": "mmcare.keep_freed_memory, called in the row's process before anything is computed: it keeps "
    "the memory of freed maps for the next pass instead of returning it to the system; CPU only",
}
"""The steps of which forms consist. The form without any step is ``eager``."""

_BEST = "reparameterized+channels-last"

FORMS = {
    "inference": (
        "plain",
        "plain+keep-freed-memory",
        "eager",
        "channels-last",
        "reparameterized",
        _BEST,
        f"{_BEST}+keep-freed-memory",
        f"{_BEST}+compiled",
        f"{_BEST}+bf16",
        f"{_BEST}+bf16+compiled",
        f"{_BEST}+cuda-graph",
        f"{_BEST}+fp16+cuda-graph",
    ),
    "training": ("plain", "eager", "channels-last", "channels-last+compiled"),
}
"""The default forms; :func:`default_forms` removes those that a device does not have."""


def default_forms(training: bool, device: str) -> tuple[str, ...]:
    """Return the forms to measure if the user gives none."""
    forms = FORMS["training" if training else "inference"]
    missing = "keep-freed-memory" if device == "cuda" else "cuda-graph"
    return tuple(form for form in forms if missing not in form.split("+"))


def check_form(form: str, training: bool, device: str) -> tuple[str, ...]:
    """Return the steps of a form, in the order of :data:`STEPS`.

    Raises:
        UserError: the form does not exist, or is not available in this mode or on this device.
    """
    steps = () if form == "eager" else tuple(form.split("+"))
    unknown = [step for step in steps if step not in STEPS]
    if unknown or len(set(steps)) != len(steps):
        raise UserError(f"there is no form {form!r}: give eager, or one or more of {', '.join(STEPS)} joined by +")
    if {"plain", "reparameterized"} <= set(steps):
        raise UserError(f"there is no form {form!r}: a network is either plain or reparameterized")
    if {"bf16", "fp16"} <= set(steps):
        raise UserError(f"there is no form {form!r}: a network computes either in bf16 or in fp16")
    if training and (wrong := [step for step in steps if step in ("reparameterized", "fp16", "cuda-graph")]):
        raise UserError(
            f"the form {form!r} is for inference, because of {wrong[0]}: remove it from --forms, or omit --train"
        )
    if "memory-budget" in steps and not (training and "compiled" in steps):
        raise UserError(f"the form {form!r} is not available: memory-budget needs compiled, and --train")
    if "cuda-graph" in steps and ("compiled" in steps or device != "cuda"):
        raise UserError(f"the form {form!r} is not available: cuda-graph excludes compiled, and needs --device cuda")
    if "keep-freed-memory" in steps and device != "cpu":
        raise UserError(
            f"the form {form!r} is not available: keep-freed-memory is process-wide, and on --device {device} all "
            "rows share a process"
        )
    return tuple(step for step in STEPS if step in steps)
