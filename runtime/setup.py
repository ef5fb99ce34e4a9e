"""The distribution mmcare-runtime: the room ``mmcare/runtime`` as a package of its own, and nothing else of mmcare."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
PACKAGE = "mmcare_runtime"


def version() -> str:
    """Read mmcare's version from its file, without importing mmcare."""
    text = (ROOT.parent / "mmcare" / "version.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


setup(
    name="mmcare-runtime",
    version=version(),
    description="Runs detectors and segmentors that mmcare exported, without PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="mmcare authors",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={PACKAGE: "../mmcare/runtime"},
    packages=[PACKAGE, f"{PACKAGE}.checks"],
    entry_points={"console_scripts": [f"mmcare-runtime={PACKAGE}.__main__:main"]},
    install_requires=["numpy", "Pillow", "onnxruntime>=1.32"],  # the release that was tested, or a later one
    extras_require={"openvino": ["openvino"], "litert": ["ai-edge-litert"], "executorch": ["executorch"]},
)
