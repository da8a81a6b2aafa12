"""The package as a whole."""

import subprocess
import sys


def test_import_is_light():
    heavy = ["transformers", "triton", "matplotlib", "tokenizers"]
    code = f"import sys, dynaconv, dynaconv.functional, dynaconv.nn; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_version_is_an_attribute():
    import dynaconv

    assert dynaconv.__version__.count(".") == 2
    assert set(dynaconv.__all__) <= set(dir(dynaconv))
