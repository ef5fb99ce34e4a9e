"""The forms in which a model is measured: what they are made of, and where each is possible."""

from __future__ import annotations

from ..errors import UserError

KEPT_SHARE = 0.3
"""How much of the activations memory-budget stores: with less, the compiler takes longer and the step is no faster."""

STEPS = {
    "plain": "the authors' operations one for one, everything kept for the backward pass; ours only",
    "reparameterized": "mmcare.reparameterize; ours only, in inference",
    "channels-last": "weights and images in the memory format NHWC",
    "bf16": "computed in bfloat16; training keeps float32 weights (autocast), as --amp does",
    "compiled": "torch.compile with inductor, in inference with frozen weights",
    "memory-budget": f"the compiler stores {KEPT_SHARE:.0%} of the activations; in compiled training",
    "cuda-graph": "recorded once and replayed; in inference on CUDA",
    "keep-freed-memory": "mmcare.keep_freed_memory, called in the row's process before anything is computed: it keeps "
    "the memory of freed maps for the next pass instead of returning it to the system; on the CPU",
}
"""What a form is made of. A form without any of these steps is ``eager``."""

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
    ),
    "training": ("plain", "eager", "channels-last", "channels-last+compiled"),
}
"""The forms to measure unless the user names others; without those that the device does not have."""


def default_forms(training: bool, device: str) -> tuple[str, ...]:
    """Return the forms to measure where the user names none."""
    forms = FORMS["training" if training else "inference"]
    return tuple(form for form in forms if device == "cpu" or "keep-freed-memory" not in form.split("+"))


def check_form(form: str, training: bool, device: str) -> tuple[str, ...]:
    """Return the steps of a form, in the order of :data:`STEPS`.

    Raises:
        UserError: there is no such form, or not in this mode or on this device.
    """
    steps = () if form == "eager" else tuple(form.split("+"))
    unknown = [step for step in steps if step not in STEPS]
    if unknown or len(set(steps)) != len(steps):
        raise UserError(f"there is no form {form!r}: give eager, or one or more of {', '.join(STEPS)} joined by +")
    if {"plain", "reparameterized"} <= set(steps):
        raise UserError(f"there is no form {form!r}: a network is either plain or reparameterized")
    if training and (wrong := [step for step in steps if step in ("reparameterized", "cuda-graph")]):
        raise UserError(f"the form {form!r} is for inference, as {wrong[0]} is: leave it out of --forms, or --train")
    if "memory-budget" in steps and not (training and "compiled" in steps):
        raise UserError(f"the form {form!r} is not possible: memory-budget goes with compiled, and with --train")
    if "cuda-graph" in steps and ("compiled" in steps or device != "cuda"):
        raise UserError(f"the form {form!r} is not possible: cuda-graph records what is not compiled, on --device cuda")
    if "keep-freed-memory" in steps and device != "cpu":
        raise UserError(
            f"the form {form!r} is not possible: keep-freed-memory changes a whole process, and on --device {device} "
            "all rows share one"
        )
    return tuple(step for step in STEPS if step in steps)
