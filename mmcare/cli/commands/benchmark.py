"""Measure models side by side: ``mmcare benchmark CONFIG|BACKBONE|PEER … [--forms FORM …]``."""

from __future__ import annotations

from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from ...benchmark import FORMS, PEERS, STEPS, check_form, default_forms, read_csv, text_table, write_csv
from ...errors import UserError
from ...export import is_exported
from ...stack import check_stack
from .. import Parser, add_shape

if TYPE_CHECKING:
    from ...benchmark import Row


def parse_args() -> Namespace:
    parser = Parser(
        description="Measure time and memory of models side by side in one run; print a table, write a CSV file and "
        "plots.",
        epilog=describe_forms(),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="SUBJECT",
        help="config file, or a name that mmcare --help lists; CONFIG@PEER, a config with that peer as its backbone; "
        "backbone as TYPE:ARCH, such as mmcare.CARE:s1 or mmcare.CARE:s1,with_cp=True; one of the peers "
        f"{', '.join(PEERS)}; or a file that mmcare export wrote",
    )
    parser.add_argument("--forms", nargs="+", metavar="FORM", help="forms to measure (see below)")
    parser.add_argument("--train", action="store_true", help="measure a forward and a backward pass with frozen norms")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="number of CPU threads (default: torch's)")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (default: 1)")
    size = parser.add_mutually_exclusive_group()
    add_shape(size)
    size.add_argument("--sizes", type=int, nargs="+", metavar="SIDE", help="measure at each of these square sizes")
    parser.add_argument("--repeats", type=int, default=20, help="number of timed rounds (default: 20)")
    parser.add_argument("--warmup", type=int, default=2, help="number of untimed rounds before them (default: 2)")
    parser.add_argument(
        "--baseline",
        nargs=2,
        metavar=("SUBJECT", "FORM"),
        help="the baseline of the speeds (default: the plain form of the same network); the form of a file is its "
        "format",
    )
    parser.add_argument(
        "--out", type=Path, help="CSV file to write (default: work_dirs/benchmark/<name of the run>.csv)"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw accuracy.png and sizes.png there")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare", type=Path, nargs="+", metavar="CSV", help="measure nothing; print the tables of earlier runs"
    )
    instead.add_argument(
        "--profile", action="store_true", help="print an operator profile of each subject and form instead of the table"
    )
    args = parser.parse_args()
    for option in ("threads", "batch", "repeats"):
        if (value := getattr(args, option)) is not None and value < 1:
            parser.error(f"--{option} must be at least 1, not {value}")
    if args.warmup < 0:
        parser.error(f"--warmup must be at least 0, not {args.warmup}")
    if args.sizes and (min(args.sizes) < 1 or len(set(args.sizes)) < len(args.sizes)):
        parser.error(f"--sizes takes different image sides in pixels, not {' '.join(map(str, args.sizes))}")
    if bool(args.compare) == bool(args.subjects):
        parser.error("give either subjects, such as mmcare.CARE:s1, or --compare with files of earlier runs")
    ignored = {"compare": ("out",), "profile": ("out", "plots", "baseline")}
    for instead_of, options in ignored.items():
        for option in options if getattr(args, instead_of) else ():
            if getattr(args, option):
                parser.error(f"--{option} has no effect with --{instead_of}")
    repeated = next((name for name in args.subjects if args.subjects.count(name) > 1), None)
    if repeated:
        parser.error(f"{repeated} is given twice")
    return args


def main() -> None:
    args = parse_args()
    baseline = args.baseline and tuple(args.baseline)
    if args.compare:
        rows = [row for path in args.compare for row in read_csv(path)]
        print(text_table(rows, baseline))
        draw_plots(rows, args.plots)
        return
    files = [name for name in args.subjects if is_exported(name)]
    if files and args.profile:
        raise UserError(f"--profile profiles torch's operators, and {files[0]} is an exported file: omit it")
    if args.out and args.out.exists():
        raise UserError(f"{args.out} exists: move it away, or give another name")
    forms = choose_forms(args)
    check_stack()
    import torch

    from ...benchmark import ExportedSubject, measure, plan, profiles, resolve

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU, and torch finds none on this machine")
    if args.threads:
        torch.set_num_threads(args.threads)
    subjects = [ExportedSubject(name) if name in files else resolve(name) for name in args.subjects]
    for subject in subjects:
        if isinstance(subject, ExportedSubject):
            subject.find_network([other for other in subjects if not isinstance(other, ExportedSubject)])
    shapes = [args.shape] if args.shape else [(side, side) for side in args.sizes or ()]
    cases = plan(subjects, forms, args.batch, shapes, args.device, args.train)
    if args.profile:
        for text in profiles(cases, args.repeats):
            print(text, end="\n\n")
        return
    rows = measure(cases, subjects, args.repeats, args.warmup)
    out = args.out or Path("work_dirs/benchmark") / f"{rows[0].run}.csv"
    write_csv(rows, out)
    print(text_table(rows, baseline))
    print(f"rows: {out}")
    draw_plots(rows, args.plots)


def describe_forms() -> str:
    """Return the section on forms for ``--help``."""
    tab = 20
    steps = [fill(f"{f'  {step}':{tab}}{text}", 100, subsequent_indent=" " * tab) for step, text in STEPS.items()]
    defaults = [f"default forms in {mode}:\n  " + "\n  ".join(FORMS[mode]) for mode in FORMS]
    return "\n".join(
        ("A form is eager (the model as built), or one or more of these steps joined by +:", *steps, *defaults)
    )


def choose_forms(args: Namespace) -> Sequence[str]:
    """Return the forms to measure.

    Raises:
        UserError: a form is not available, or the baseline is not among the subjects and forms.
    """
    forms = args.forms or default_forms(args.train, args.device)
    whole = [form for form in forms if {"compiled", "cuda-graph"} & set(check_form(form, args.train, args.device))]
    if args.profile and args.forms and whole:
        raise UserError(f"{whole[0]} runs as one graph, without operators to profile: give --forms that run eagerly")
    if args.profile:
        forms = [form for form in forms if form not in whole]
    subject, form = args.baseline or (None, None)
    if subject and not (subject in args.subjects and (form in forms or is_exported(subject))):
        raise UserError(f"the baseline {' '.join(args.baseline)} is not among the subjects and forms: add it to them")
    return forms


def draw_plots(rows: Sequence[Row], folder: Path | None) -> None:
    """Draw the plots, if a folder is given, and print their paths."""
    if folder is None:
        return
    from ...benchmark import draw

    for path in draw(rows, folder):
        print(f"plot: {path}")
