"""`python -m dynaconv.kernels.cpu` compiles the kernels anew."""

from .build import build

print("\n".join(map(str, build(anew=True))))
