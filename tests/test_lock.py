"""The lock: what `make setup` installs is what pyproject.toml asks for, and nothing local."""

import re
import tomllib
from itertools import chain

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    if not line.startswith("#")
]
LOCKED = {
    canonicalize_name(requirement.name): requirement for requirement in map(Requirement, LINES)
}


def test_every_pin_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = project["optional-dependencies"]
    extras = [group for name, group in groups.items() if name != "dev"]
    development = [one for one in groups["dev"] if not one.startswith("footnote[")]
    wanted = [*project["dependencies"], *development, *chain.from_iterable(extras)]
    for requirement in map(Requirement, wanted):
        locked = LOCKED[canonicalize_name(requirement.name)]
        assert locked.specifier == requirement.specifier, requirement
        assert str(locked.marker) == str(requirement.marker), requirement


def test_every_line_is_one_exact_version_for_any_machine() -> None:
    assert len(LOCKED) == len(LINES)
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; .+)?", line), line
    assert "footnote" not in LOCKED
    assert "pip" not in LOCKED
