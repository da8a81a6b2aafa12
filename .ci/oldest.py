"""Print the lower bounds of pyproject.toml as constraints for pip: what `make test-oldest` installs."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "dev"}
for requirement in [*project["dependencies"], *sum(extras.values(), [])]:
    bound = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if bound and bound[1] != "torch":
        print(f"{bound[1]}=={bound[2]}")
