"""Diagnosis of the packages that mmcare needs: ``python -m mmcare.stack``.

Two families of distributions provide the same import packages: OpenMMLab's originals and their maintained successors,
called ``onedl-…``. pip regards them as unrelated, installs both, and one overwrites files of the other. Another common
fault is an mmcv without its compiled operators, which results from building it where torch is not available. Both cause
import errors deep inside other packages. This module reports what is wrong and how to fix it.

Packages of both families may be mixed, as long as each import package comes from one distribution and satisfies the
version bounds of the others; this is not reported.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from tabulate import tabulate

from .errors import UserError
from .importing_mmpretrain import mmpretrain_importable

# The distribution of each import package with the tested version, as pinned in the requirements files.
FAMILIES = {
    "original": {
        "mmengine": "mmengine==0.10.7",
        "mmcv": "mmcv==2.1.0",
        "mmdet": "mmdet==3.3.0",
        "mmseg": "mmsegmentation==1.2.2",
        "mmpretrain": "mmpretrain==1.2.0",
    },
    "onedl": {
        "mmengine": "onedl-mmengine==0.10.12",
        "mmcv": "onedl-mmcv==2.3.6",
        "mmdet": "onedl-mmdetection==3.5.1",
        "mmseg": "onedl-mmsegmentation==1.4.2",
        "mmpretrain": "onedl-mmpretrain==1.3.6",
    },
}
# Since 2.6 torch.load runs no code from a checkpoint by default.
TORCH = "torch>=2.6"
# The build requirements of mmcv; setuptools 81 has removed pkg_resources, which mmcv's build imports.
BUILD_TOOLS = ("setuptools>=77,<81", "wheel", "ninja", "psutil")

# Other distributions that provide one of the import packages, and why some of them cannot be used.
_LOOKALIKES = {"mmengine": ["mmengine-lite"], "mmcv": ["mmcv-lite", "mmcv-full"], "mmseg": ["mmseg"]}
_UNFIT = {
    "mmcv-lite": "is mmcv without its compiled operators",
    "mmcv-full": "is mmcv 1, from before mmengine",
    "mmseg": "is a Chinese word segmenter and not MMSegmentation",
}
_PACKAGES = ("torch", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
_OPTIONAL = ("mmdet", "mmseg", "mmpretrain")
# Submodules that are imported to check that a package is complete, as importing the package does not import them.
_PARTS = {
    "mmcv": ["mmcv.ops"],
    "mmseg": ["mmseg.utils"],
    "mmpretrain": ["mmpretrain.models", "mmpretrain.datasets"],
}


@dataclass(frozen=True)
class _Problem:
    what: str
    command: str

    def __str__(self) -> str:
        return f"{self.what}: run `{self.command}`"


def check_stack(needs: Sequence[str] = ()) -> None:
    """Check that torch, mmengine and mmcv are installed, work, and have compatible versions.

    Args:
        needs: other required packages, of ``"mmdet"``, ``"mmseg"`` and ``"mmpretrain"``.

    Raises:
        UserError: a package has a problem; the message has the first problem and the command that fixes it.
    """
    for problem in _problems(needs).values():
        raise UserError(str(problem))


def report() -> str:
    """Return a table of the packages: import name, distribution, version and status."""
    problems = _problems(_optional_present())
    rows = []
    for package in _PACKAGES:
        if package in problems:
            status = problems[package].what
        elif package in _OPTIONAL and not _present(package):
            status = "not installed, needed only for its own configs"
        else:
            status = "ok"
        rows += [(package, name, version, status) for name, version in (_distributions(package) or {"-": "-"}).items()]
    headers = ("package", "distribution", "version", "status")
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


def main() -> int:
    """Print the report and the first problem, if any; return the exit status."""
    print(report())
    try:
        check_stack(_optional_present())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("The installation is sound.")
    return 0


def _problems(needs: Sequence[str]) -> dict[str, _Problem]:
    """Return the first problem of each package that has one, causes before consequences."""
    packages = ("torch", "mmengine", "mmcv", *needs)
    absent = [package for package in packages[1:] if not _distributions(package) and not _present(package)]
    doubled = [package for package in packages if len(_distributions(package)) > 1]
    problems = {}
    if torch_problem := _problem_of("torch"):  # first, as compiling mmcv needs torch
        problems["torch"] = torch_problem
    if doubled:
        problems |= dict.fromkeys(doubled, _doubled_problem(doubled))
    if absent:
        problems |= dict.fromkeys(absent, _absent_problem(absent))
    for package in packages:
        if package not in problems and (problem := _problem_of(package)):
            problems[package] = problem
    return problems


def _doubled_problem(packages: Sequence[str]) -> _Problem:
    # Uninstalling one of them removes files of the other, so all are uninstalled and one is installed again.
    names = [name for package in packages for name in _distributions(package)]
    return _Problem(
        f"{' and '.join(names)} are installed side by side and overwrite each other's files",
        f"pip uninstall -y {' '.join(names)} && {_reinstall(*packages)}",
    )


def _absent_problem(packages: Sequence[str]) -> _Problem:
    verb = "is" if len(packages) == 1 else "are"
    return _Problem(f"{' and '.join(packages)} {verb} not installed", _install(*map(_wanted, packages)))


def _problem_of(package: str) -> _Problem | None:
    """Return the problem of a package that is installed once or not at all, checking simple causes first."""
    name, version = next(iter(_distributions(package).items()), (package, None))
    if name in _UNFIT:
        return _Problem(f"{name} {_UNFIT[name]}", f"pip uninstall -y {name} && {_install(_wanted(package))}")
    if not _present(package):
        if version is None:
            return _absent_problem([package])
        return _Problem(f"{name} {version} is registered but its files are gone", _reinstall(package))
    if package == "torch" and version and not _satisfies(version, TORCH.removeprefix("torch")):
        return _Problem(f"torch {version} is too old for mmcare", _install(TORCH))
    return _bounds_problem(package) or _import_problem(package)


def _bounds_problem(package: str) -> _Problem | None:
    """Check mmengine and mmcv against the version bounds that the others assert in their ``__init__.py``.

    The bounds are read from that file, so that they are correct for every release and for copies edited by users.
    """
    source = Path(importlib.util.find_spec(package).origin).read_text(encoding="utf-8")
    for base in ("mmengine", "mmcv"):
        lowest, limit = (re.search(rf"(?im)^{base}_{end}\w* = '(.+)'$", source) for end in ("min", "max"))
        for name, version in _distributions(base).items():
            if lowest and limit and not _satisfies(version, bounds := f">={lowest[1]},<{limit[1]}"):
                # Only packages of the original family have bounds; the successors have none.
                original = FAMILIES["original"][base].partition("==")[0]
                removal = "" if name == original else f"pip uninstall -y {name} && "
                return _Problem(
                    f"{package} needs {base} from {lowest[1]} to below {limit[1]}, but {name} {version} is installed",
                    removal + _install(original + bounds),
                )
    return None


def _import_problem(package: str) -> _Problem | None:
    try:
        with mmpretrain_importable() if package == "mmpretrain" else nullcontext():
            for name in (package, *_PARTS.get(package, ())):
                importlib.import_module(name)
    except Exception as error:  # a package with the wrong version may raise anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        missing = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else package
    else:
        return None
    if package == missing == "mmcv" and "mmcv" in sys.modules:  # mmcv itself was imported, its operators were not
        # Remove the wheel from pip's cache, or the next installation would use it again.
        return _Problem(
            f"the compiled operators of mmcv are missing or were compiled for another torch ({reason})",
            f"pip cache remove {_wanted(package).partition('==')[0].replace('-', '_')}; {_reinstall(package)}",
        )
    if missing in ("ftfy", "regex"):  # mmsegmentation does not declare these dependencies
        return _Problem(f"{package} cannot be imported without {missing}", _install("ftfy", "regex"))
    if missing != package:  # pip keeps the package and installs its missing dependencies
        return _Problem(f"{package} cannot be imported without {missing}", _install(_wanted(package)))
    return _Problem(f"{package} cannot be imported ({reason})", _reinstall(package))


def _reinstall(*packages: str) -> str:
    return _install("--force-reinstall", "--no-deps", *map(_wanted, packages))


def _install(*arguments: str) -> str:
    if not any(re.match(r"(onedl-)?mmcv\b", argument) for argument in arguments):
        return shlex.join(("pip", "install", *arguments))
    tools = shlex.join(("pip", "install", *BUILD_TOOLS))
    return f"{tools} && {shlex.join(('pip', 'install', '--no-build-isolation', *arguments))}"


def _wanted(package: str) -> str:
    """Return the requirement to install: the installed release, if it is of the family in use, or the tested one."""
    tested = TORCH if package == "torch" else FAMILIES[_family()][package]
    name = re.match(r"[\w-]+", tested)[0]
    version = _distributions(package).get(name)
    return f"{name}=={version.partition('+')[0]}" if version else tested


def _family() -> str:
    """Return the family of most installed distributions; the original one in case of a tie."""
    names = [name for package in FAMILIES["original"] for name in _distributions(package)]
    return "onedl" if 2 * sum(name.startswith("onedl-") for name in names) > len(names) else "original"


def _distributions(package: str) -> dict[str, str]:
    """Return the installed distributions that provide an import package, with their versions."""
    names = [family[package].partition("==")[0] for family in FAMILIES.values() if package in family] or [package]
    found = {}
    for name in (*names, *_LOOKALIKES.get(package, ())):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _present(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a folder left over from uninstalling has no origin


def _optional_present() -> list[str]:
    return [package for package in _OPTIONAL if _distributions(package) or _present(package)]


def _satisfies(version: str, bounds: str) -> bool:
    return SpecifierSet(bounds).contains(version, prereleases=True)


if __name__ == "__main__":
    sys.exit(main())
