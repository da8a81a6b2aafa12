"""Compiles the kernels: when the package is built, and by `python -m dynaconv.kernels.cpu`."""

import hashlib
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARIES = FOLDER / "libraries"
# Instructions that a library may use, by its name: x86-64-v3 has AVX2 and FMA, v4 has AVX-512.
LEVELS = {
    "x86_64": {"v2": "-march=x86-64-v2", "v3": "-march=x86-64-v3", "v4": "-march=x86-64-v4 -mprefer-vector-width=512"},
    "aarch64": {"neon": "-march=armv8-a"},
    "arm64": {"neon": "-march=armv8-a"},
}
LEVELS["AMD64"] = LEVELS["x86_64"]
FLAGS = "-std=c++17 -O3 -fPIC -fno-math-errno -Wno-psabi -fvisibility=hidden"


def digest() -> str:
    """Of the sources and how they are compiled: part of the names of libraries, so that none is of others."""
    sources = [path.read_bytes() for path in sorted(FOLDER.glob("*.[ch]*")) if path.suffix in (".cpp", ".h")]
    sources.append(Path(__file__).read_bytes())
    return hashlib.sha256(b"".join(sources)).hexdigest()[:8]


def build(folder: Path = LIBRARIES, flags: str = "", anew: bool = False) -> list[Path]:
    """Compile every level that this kind of processor may have.

    Args:
        folder: where the libraries go.
        flags: more for the compiler, such as "-fsanitize=address".
        anew: also where there are libraries of these sources.

    Returns:
        The libraries.

    Raises:
        FileNotFoundError: no C++ compiler; $CXX names one, otherwise it is c++.
        RuntimeError: the compiler failed; the message is its own.
    """
    levels = LEVELS.get(platform.machine(), {"native": ""})
    libraries = {level: folder / f"dynaconv-{digest()}-{level}.so" for level in levels}
    if not (flags or anew) and all(path.exists() for path in libraries.values()):
        return list(libraries.values())
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        raise FileNotFoundError(f"no C++ compiler {compiler}: install one, or name it in the variable CXX")
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(FOLDER.glob("*.cpp"))
    jobs = [(level, source) for level in levels for source in sources]

    def compile_one(job: tuple[str, Path]) -> Path:
        level, source = job
        target = folder / f"{source.stem}-{level}.o"
        _run([*f"{compiler} {FLAGS} {levels[level]} {flags} -c".split(), str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    for outdated in folder.glob("dynaconv-*.so"):
        outdated.unlink()
    for level, library in libraries.items():
        own = [str(path) for path, job in zip(objects, jobs, strict=True) if job[0] == level]
        partial = library.with_suffix(".partial")
        static = [] if platform.system() == "Darwin" else ["-static-libstdc++", "-static-libgcc"]
        _run([*compiler.split(), "-shared", *flags.split(), *static, *own, "-o", str(partial)])
        partial.replace(library)
    for path in objects:
        path.unlink()
    return list(libraries.values())


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
