"""The diagnosis of the installation, run on fake installations and once on the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
import tabulate
from helpers import ROOT

from mmcare.stack import check_stack

COMPILE = "pip install 'setuptools>=77,<81' wheel ninja psutil && pip install --no-build-isolation"

ORIGINAL = {"torch": "2.13.0+cpu", "mmengine": "0.10.7", "mmcv": "2.1.0"}
ONEDL = {"torch": "2.13.0+cpu", "onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6"}
MODULES = {"torch": "", "mmengine": "", "mmcv": "", "mmcv/ops": ""}
# The lines in which mmdet 3.3 and mmsegmentation 1.2 state their supported versions.
MMDET = """
mmcv_minimum_version = '2.0.0rc4'
mmcv_maximum_version = '2.2.0'
mmengine_minimum_version = '0.7.1'
mmengine_maximum_version = '1.0.0'
"""
MMSEG = """
MMCV_MIN = '2.0.0rc4'
MMCV_MAX = '2.2.0'
MMENGINE_MIN = '0.5.0'
MMENGINE_MAX = '1.0.0'
"""


class Site:
    """A folder with the only distributions and packages that the interpreter sees."""

    def __init__(self, folder: Path):
        self.folder = folder
        for own in (packaging, tabulate):  # imported by mmcare.stack itself
            (folder / own.__name__).symlink_to(Path(own.__file__).parent)

    def install(self, distributions: dict[str, str], modules: dict[str, str]) -> None:
        for name, version in distributions.items():
            info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for name, source in modules.items():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / name / "__init__.py").write_text(source)

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        # -S hides the packages of the environment.
        environment = {**os.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}"}
        return subprocess.run([sys.executable, "-S", *arguments], env=environment, capture_output=True, text=True)

    def complaint(self, *needs: str) -> str:
        """Return the message of check_stack, empty if it finds no fault."""
        code = (
            "from mmcare import UserError\nfrom mmcare.stack import check_stack\n"
            f"try: check_stack({needs!r})\nexcept UserError as error: print(error)"
        )
        done = self.python("-c", code)
        assert done.stderr == ""
        assert done.stdout.count("\n") <= 1, "the message must be one sentence on one line"
        return done.stdout.strip()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("distributions", [ORIGINAL, ONEDL], ids=["original", "onedl"])
def test_sound_installation_passes(site, distributions):
    site.install(distributions, MODULES)
    assert site.complaint() == ""


def test_mixture_with_each_package_once_passes(site):
    site.install({"torch": "2.13.0", "onedl-mmengine": "0.10.12", "mmcv": "2.1.0"}, MODULES)
    assert site.complaint() == ""


def test_detectors_and_segmentors_are_optional(site):
    site.install(ORIGINAL, MODULES)
    assert site.complaint("mmdet", "mmseg") == (
        "mmdet and mmseg are not installed: run `pip install mmdet==3.3.0 mmsegmentation==1.2.2`"
    )


def test_missing_package_is_looked_for_in_the_family_in_use(site):
    site.install(ONEDL, MODULES)
    assert site.complaint("mmseg").endswith("run `pip install onedl-mmsegmentation==1.4.2`")


def test_torch_is_missing(site):
    assert site.complaint() == "torch is not installed: run `pip install 'torch>=2.6'`"


def test_torch_is_too_old(site):
    site.install({**ORIGINAL, "torch": "2.5.1+cu121"}, MODULES)
    assert site.complaint() == "torch 2.5.1+cu121 is too old for mmcare: run `pip install 'torch>=2.6'`"


def test_torch_does_not_load(site):
    site.install(ORIGINAL, {**MODULES, "torch": "raise OSError('libc10.so: no such file')"})
    assert site.complaint() == (
        "torch cannot be imported (OSError: libc10.so: no such file): "
        "run `pip install --force-reinstall --no-deps torch==2.13.0`"
    )


def test_neither_mmengine_nor_mmcv(site):
    site.install({"torch": "2.13.0"}, {"torch": ""})
    assert site.complaint() == (f"mmengine and mmcv are not installed: run `{COMPILE} mmengine==0.10.7 mmcv==2.1.0`")


def test_both_families_at_once(site):
    site.install({**ORIGINAL, "mmdet": "3.3.0", "onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6"}, MODULES)
    assert site.complaint() == (
        "mmengine and onedl-mmengine and mmcv and onedl-mmcv are installed side by side and overwrite each other's "
        "files: run `pip uninstall -y mmengine onedl-mmengine mmcv onedl-mmcv && "
        f"{COMPILE} --force-reinstall --no-deps mmengine==0.10.7 mmcv==2.1.0`"
    )


def test_of_two_families_the_one_in_use_stays_at_its_release(site):
    site.install({**ONEDL, "onedl-mmcv": "2.3.5", "mmcv": "2.1.0"}, MODULES)
    assert site.complaint().endswith("--no-deps onedl-mmcv==2.3.5`")


def test_mmcv_lite_beside_mmcv(site):
    site.install({**ORIGINAL, "mmcv-lite": "2.1.0"}, MODULES)
    assert f"run `pip uninstall -y mmcv mmcv-lite && {COMPILE}" in site.complaint()


@pytest.mark.parametrize("name", ["mmcv-lite", "mmcv-full"])
def test_distribution_that_does_not_serve(site, name):
    site.install({"torch": "2.13.0", "mmengine": "0.10.7", name: "1.7.2"}, MODULES)
    assert site.complaint().startswith(f"{name} is mmcv ")
    assert site.complaint().endswith(f"run `pip uninstall -y {name} && {COMPILE} mmcv==2.1.0`")


def test_mmseg_is_the_word_splitter(site):
    site.install({**ORIGINAL, "mmseg": "1.3.0"}, {**MODULES, "mmseg": ""})
    assert site.complaint() == ""
    assert site.complaint("mmseg").endswith("run `pip uninstall -y mmseg && pip install mmsegmentation==1.2.2`")


def test_mmengine_lite_serves(site):
    site.install({"torch": "2.13.0", "mmengine-lite": "0.10.7", "mmcv": "2.1.0"}, MODULES)
    assert site.complaint() == ""


def test_source_folder_on_the_path_serves(site):
    site.install({"torch": "2.13.0"}, MODULES)
    assert site.complaint() == ""


def test_files_went_with_another_distribution(site):
    site.install({**ORIGINAL, "mmdet": "3.2.0"}, MODULES)
    (site.folder / "mmdet").mkdir()  # pip keeps the folder if it has an unknown file
    assert site.complaint("mmdet") == (
        "mmdet 3.2.0 is registered but its files are gone: run `pip install --force-reinstall --no-deps mmdet==3.2.0`"
    )


@pytest.mark.parametrize(
    "failure", ["import mmcv.operators", "raise ImportError('undefined symbol: _ZN3c10')", "raise OSError('libcudart')"]
)
@pytest.mark.parametrize(
    ("distributions", "wheel", "wanted"),
    [(ORIGINAL, "mmcv", "mmcv==2.1.0"), (ONEDL, "onedl_mmcv", "onedl-mmcv==2.3.6")],
    ids=["original", "onedl"],
)
def test_mmcv_without_operators(site, distributions, wheel, wanted, failure):
    site.install(distributions, {**MODULES, "mmcv/ops": failure})
    complaint = site.complaint()
    assert complaint.startswith("the compiled operators of mmcv are missing or were compiled for another torch")
    assert complaint.endswith(f"run `pip cache remove {wheel}; {COMPILE} --force-reinstall --no-deps {wanted}`")


@pytest.mark.parametrize(
    ("package", "distribution", "source"), [("mmdet", "mmdet", MMDET), ("mmseg", "mmsegmentation", MMSEG)]
)
class TestBounds:
    def test_within(self, site, package, distribution, source):
        site.install({**ORIGINAL, distribution: "1.0"}, {**MODULES, package: source, f"{package}/utils": ""})
        assert site.complaint(package) == ""

    @pytest.mark.parametrize("version", ["2.2.0", "2.0.0rc3"])
    def test_outside(self, site, package, distribution, source, version):
        site.install({**ORIGINAL, "mmcv": version, distribution: "1.0"}, {**MODULES, package: source})
        assert site.complaint(package) == (
            f"{package} needs mmcv from 2.0.0rc4 to below 2.2.0, but mmcv {version} is installed: "
            f"run `{COMPILE} 'mmcv>=2.0.0rc4,<2.2.0'`"
        )

    def test_of_no_concern_where_the_package_is_not_needed(self, site, package, distribution, source):
        site.install({**ORIGINAL, "mmcv": "2.2.0", distribution: "1.0"}, {**MODULES, package: source})
        assert site.complaint() == ""

    def test_mmcv_of_the_other_family(self, site, package, distribution, source):
        site.install(
            {"torch": "2.13.0", "mmengine": "0.10.7", "onedl-mmcv": "2.3.6", distribution: "1.0"},
            {**MODULES, package: source},
        )
        assert site.complaint(package).endswith(
            f"run `pip uninstall -y onedl-mmcv && {COMPILE} 'mmcv>=2.0.0rc4,<2.2.0'`"
        )


def test_mmengine_out_of_bounds(site):
    site.install({**ORIGINAL, "mmengine": "1.0.0", "mmsegmentation": "1.2.2"}, {**MODULES, "mmseg": MMSEG})
    assert site.complaint("mmseg") == (
        "mmseg needs mmengine from 0.5.0 to below 1.0.0, but mmengine 1.0.0 is installed: "
        "run `pip install 'mmengine>=0.5.0,<1.0.0'`"
    )


def test_mmcv_itself_fails(site):
    site.install(ORIGINAL, {**MODULES, "mmcv": "raise ImportError('no such luck')"})
    assert site.complaint().startswith("mmcv cannot be imported (ImportError: no such luck)")


def test_mmcv_lacks_a_dependency_of_its_operators(site):
    site.install(ORIGINAL, {**MODULES, "mmcv/ops": "import addict"})
    assert site.complaint().startswith("mmcv cannot be imported without addict: run ")


def test_undeclared_dependency_of_mmseg(site):
    modules = {**MODULES, "mmseg": MMSEG, "mmseg/utils": "import ftfy"}
    site.install({**ORIGINAL, "mmsegmentation": "1.2.2"}, modules)
    assert site.complaint("mmseg") == "mmseg cannot be imported without ftfy: run `pip install ftfy regex`"


MMPRETRAIN = {
    "mmpretrain": "",
    "mmpretrain/utils": "",
    "mmpretrain/utils/dependency": "WITH_MULTIMODAL = True",
    "mmpretrain/models": "",
    "mmpretrain/datasets": "",
}


def test_mmpretrain_may_be_without_torchvision(site):
    modules = {**MMPRETRAIN, "mmpretrain/models": "import torchvision.ops.boxes as boxes"}
    site.install({**ORIGINAL, "mmpretrain": "1.2.0"}, {**MODULES, **modules})
    assert site.complaint("mmpretrain") == ""


@pytest.mark.parametrize(("transformers", "multimodal"), [("4.57.0", True), ("5.17.0", False)])
def test_mmpretrain_beside_transformers(site, transformers, multimodal):
    check = f"from mmpretrain.utils.dependency import WITH_MULTIMODAL\nassert WITH_MULTIMODAL is {multimodal}"
    distributions = {**ORIGINAL, "mmpretrain": "1.2.0", "transformers": transformers}
    site.install(distributions, {**MODULES, **MMPRETRAIN, "mmpretrain/models": check})
    assert site.complaint("mmpretrain") == ""


def test_mmpretrain_lacks_a_dependency(site):
    modules = {**MMPRETRAIN, "mmpretrain/datasets": "import mat4py"}
    site.install({**ORIGINAL, "mmpretrain": "1.2.0"}, {**MODULES, **modules})
    assert site.complaint("mmpretrain") == (
        "mmpretrain cannot be imported without mat4py: run `pip install mmpretrain==1.2.0`"
    )


def test_dependency_is_missing(site):
    site.install(ORIGINAL, {**MODULES, "mmengine": "import yaml.nodes"})
    assert site.complaint() == "mmengine cannot be imported without yaml: run `pip install mmengine==0.10.7`"


def test_import_fails_for_another_reason(site):
    site.install({**ORIGINAL, "mmdet": "3.3.0"}, {**MODULES, "mmdet": "raise AssertionError('no such\\nluck')"})
    assert site.complaint("mmdet") == (
        "mmdet cannot be imported (AssertionError: no such): run `pip install --force-reinstall --no-deps mmdet==3.3.0`"
    )


def test_command_line_on_a_sound_installation(site):
    site.install({**ORIGINAL, "mmdet": "3.3.0"}, {**MODULES, "mmdet": MMDET})
    done = site.python("-m", "mmcare.stack")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:7]] == [
        ["torch", "torch", "2.13.0+cpu"],
        ["mmengine", "mmengine", "0.10.7"],
        ["mmcv", "mmcv", "2.1.0"],
        ["mmdet", "mmdet", "3.3.0"],
        ["mmseg", "-", "-"],
        ["mmpretrain", "-", "-"],
    ]
    assert done.stdout.endswith("The installation is sound.\n")


def test_command_line_judges_whatever_is_installed(site):
    site.install({**ORIGINAL, "mmcv": "2.2.0", "mmdet": "3.3.0"}, {**MODULES, "mmdet": MMDET})
    done = site.python("-m", "mmcare.stack")
    assert done.returncode == 1
    assert re.search(r"^mmdet +mmdet +3.3.0 +mmdet needs mmcv from 2.0.0rc4 to below 2.2.0", done.stdout, re.MULTILINE)
    assert done.stderr.startswith("error: mmdet needs mmcv")
    assert done.stderr.count("\n") == 1


@pytest.mark.stack
def test_this_installation():
    check_stack(needs=("mmdet", "mmseg", "mmpretrain"))
