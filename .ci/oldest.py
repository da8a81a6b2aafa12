"""Print the lower bounds of pyproject.toml as constraints for pip: what `make test-oldest` installs."""

import re
from itertools import chain
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [requirements for name, requirements in project["optional-dependencies"].items() if name != "dev"]
for requirement in chain(project["dependencies"], *extras):
    bound = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":  # the Makefile says which
        print(f"{bound[1]}=={bound[2]}")
