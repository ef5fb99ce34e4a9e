"""``python -m mmcare.sample``: generate the sample data and print its folder."""

from __future__ import annotations

from pathlib import Path

from .cli import Parser, run


def main() -> None:
    parser = Parser(prog="python -m mmcare.sample", description="Generate the sample data and print its folder.")
    parser.add_argument("--root", default="data/sample", help="folder for the data (default: %(default)s)")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="FILE.png", help="also draw some images with their annotations"
    )
    args = parser.parse_args()

    import cv2

    from .data.sample import draw_contact_sheet, prepare
    from .files import write_file

    folder = prepare(args.root)
    if args.contact_sheet:
        write_file(args.contact_sheet, cv2.imencode(".png", draw_contact_sheet(folder))[1].tobytes())
    print(folder)


if __name__ == "__main__":
    run(main)
