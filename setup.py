import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"


def version() -> str:
    """Read the version from its file: importing mmcare would need what is only being installed."""
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "mmcare" / "version.py").read_text(), re.MULTILINE).group(1)


def requirements(name: str) -> list[str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


setup(
    name="mmcare",
    version=version(),
    description="The CARE and CAS-ViT backbones for dense prediction with MMDetection and MMSegmentation",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="mmcare authors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",  # the one that is tested; the others from 3.10 on should work
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    # The configs lie beside the package in the repository, and inside it where it is installed.
    package_dir={"mmcare.configs": "configs"},
    packages=[
        *find_packages(include=["mmcare", "mmcare.*"]),
        *(f"mmcare.configs.{name}" for name in find_namespace_packages("configs", exclude=["*__pycache__"])),
    ],
    package_data={"mmcare.export.web": ["*.html", "*.css", "*.js"]},
    entry_points={"console_scripts": ["mmcare=mmcare.__main__:main"]},
    # No mm package here: each exists as two distributions that overwrite each other, and only the user knows which of
    # them is installed. `python -m mmcare.stack` examines what is there.
    install_requires=requirements("runtime"),
    extras_require={
        # mmdet 3.3 and mmsegmentation 1.2 refuse mmcv 2.2.
        "original": [
            "mmengine>=0.10.7,<0.11",
            "mmcv>=2.1.0,<2.2.0",
            "mmdet>=3.3.0,<3.4",
            "mmsegmentation>=1.2.2,<1.3",
            "ftfy",
            "regex",
        ],
        "onedl": [
            "onedl-mmengine>=0.10.12,<0.11",
            "onedl-mmcv>=2.3.6,<2.4",
            "onedl-mmdetection>=3.5.1,<3.6",
            "onedl-mmsegmentation>=1.4.2,<1.5",
        ],
        # MMPretrain, beside either family.
        "classification": ["mmpretrain>=1.2.0,<1.3"],
        "classification-onedl": ["onedl-mmpretrain>=1.3.6,<1.4"],
        "data": requirements("data"),
        "onnx": requirements("onnx"),
        "openvino": [*requirements("onnx"), *requirements("openvino")],
        "executorch": requirements("executorch"),
        "coreml": requirements("coreml"),
        "litert": [*requirements("litert"), *requirements("litert-torch")],
        "predict": ["supervision>=0.31"],  # for drawing; predicting itself needs none
        "test": [
            *requirements("test"),
            *requirements("data"),
            *requirements("onnx"),
            *requirements("openvino"),
            *requirements("executorch"),
            *requirements("litert"),
            *requirements("coreml"),
            *requirements("lint"),
        ],
    },
)
