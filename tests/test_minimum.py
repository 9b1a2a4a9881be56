r"""The minima that are declared are those that `make test-minimum` installs."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def names_and_versions(lines):
    r"""{name: version} of lines such as `torch>=2.6`; of those with a marker, the ones for the oldest Python."""
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    oldest = [line for line in requirements if line.marker is None or line.marker.evaluate({"python_version": "3.11"})]
    return {canonicalize_name(line.name): Version(specifier.version) for line in oldest for specifier in line.specifier}


def test_the_declared_minima_are_those_that_are_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = names_and_versions([*project["dependencies"], *extras["train"], *extras["demo"]])
    assert declared == names_and_versions((ROOT / ".ci" / "constraints-min.txt").read_text().split("\n"))
    demo = names_and_versions((ROOT / "spaces_demo" / "requirements.txt").read_text().split("\n"))
    assert demo.items() <= declared.items()
