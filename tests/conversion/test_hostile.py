"""Files that would run something, take all memory or write elsewhere are refused, and leave nothing behind."""

import bz2
import contextlib
import gc
import gzip
import io
import os
import pickle
import re
import resource
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from dynaconv.conversion.fairseq.checkpoint import read_checkpoint
from dynaconv.conversion.fairseq.convert import convert

from .support import checkpoint_of, contents_of, converted, save

HUGE = 50 * 10**9


class Command:
    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def refuse(path, tmp_path, message):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        convert(path, tmp_path / "ours")
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_command_is_not_run(tmp_path, legacy):
    path, marker = checkpoint_of(tmp_path / "fairseq"), tmp_path / "marker"
    flags, weights = contents_of("dyn_post")
    save(path, {**flags, "user_dir": Command(marker)}, weights, legacy=legacy)
    refuse(path, tmp_path, "is refused: it names posix.system, which no checkpoint needs; nothing was run")
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file would have run it


@pytest.mark.parametrize(
    "value", [bytearray(3), {1, 2}, torch.nn.Parameter(torch.ones(2)), torch.float32, io.StringIO()]
)
def test_only_what_a_checkpoint_needs_is_named(tmp_path, value):
    path = checkpoint_of(tmp_path / "fairseq", user_dir=value)
    refuse(path, tmp_path, "is refused: it names")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_in_a_pickle_of_any_protocol(tmp_path, protocol):
    path, marker = checkpoint_of(tmp_path / "fairseq"), tmp_path / "marker"
    path.write_bytes(pickle.dumps({"model": Command(marker)}, protocol))
    refuse(path, tmp_path, "is refused: it names posix.system, which no checkpoint needs; nothing was run")


def test_nobody_is_told_to_load_it_without_precautions(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq", user_dir=10**6000)
    with pytest.raises(pickle.UnpicklingError, match="`weights_only` set to `False`"):
        torch.load(path, weights_only=True)
    refuse(path, tmp_path, "is no whole checkpoint of PyTorch: UnpicklingError: Unsupported operand")


class AverageMeter:
    pass


def test_meters_of_old_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(AverageMeter, "__module__", "fairseq.meters")
    stand_in = type(sys)("fairseq.meters")
    stand_in.AverageMeter = AverageMeter
    monkeypatch.setitem(sys.modules, "fairseq", type(sys)("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.meters", stand_in)
    meter = AverageMeter()
    meter.val = 3
    path = checkpoint_of(tmp_path / "fairseq", legacy=True, user_dir=meter)
    monkeypatch.delitem(sys.modules, "fairseq.meters")
    assert type(read_checkpoint(path).flags["user_dir"]).__name__ == "_Meter"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.99])
def test_truncated_files(tmp_path, kept, legacy):
    path = checkpoint_of(tmp_path / "fairseq", legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refuse(path, tmp_path, "which may be cut off" if legacy and kept == 0.3 else "is no whole checkpoint of PyTorch")


@pytest.mark.parametrize("archived", [False, True])
def test_changed_weights(tmp_path, archived):
    path = checkpoint_of(tmp_path / "fairseq")
    if archived:
        path = write_archive(tmp_path / "wmt.tar.gz", published(tmp_path / "fairseq"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refuse(path, tmp_path, "is no whole")


def test_members_that_overlap(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    with zipfile.ZipFile(path, "a") as members:
        members.filelist.extend(members.filelist)
        members.writestr("more", b"")
    refuse(path, tmp_path, "is refused: its members claim")


def test_other_files(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    for content in (b"hello, world", b"PK\x03\x04" + bytes(100), pickle.dumps({"args": 3}), os.urandom(5000)):
        path.write_bytes(content)
        refuse(path, tmp_path, "is no whole checkpoint of PyTorch")
    for value in (3, {"model": {}}, {"args": None, "cfg": None, "model": {"a": torch.ones(2)}}):
        torch.save(value, path)
        refuse(path, tmp_path, "is no checkpoint of fairseq")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_endless_options(tmp_path, legacy):
    path = checkpoint_of(tmp_path / "fairseq", legacy=legacy, user_dir="x" * (1 << 22))
    refuse(path, tmp_path, "is refused: it has more than 4,194,304 bytes beside its tensors")


class Claim:
    """A tensor whose storage in the file is not as large as it says."""

    def __init__(self, storage, size, stride):
        self.arguments = (storage, 0, size, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


def number(value):
    """A number in pickle's protocol 2."""
    return pickle.dumps(value, 2)[2:-1]


def lie(path, legacy):
    """Let the storage of 64 numbers be one of 50 GB."""
    flags, _ = contents_of("dyn_post")
    save(path, flags, {"encoder.layers.0.fc1.bias": torch.arange(777.0)}, legacy=legacy)
    content = path.read_bytes()
    if legacy:
        path.write_bytes(
            content.replace(number(777), number(HUGE)).replace(struct.pack("<q", 777), struct.pack("<q", HUGE))
        )
        return
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(number(777), number(HUGE)))


@contextlib.contextmanager
def little_memory():
    """Without the memory that a bomb would take."""
    gc.collect()  # what was mapped and is let go of later would be free to take
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**27, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_storage_of_50_gb_is_not_allocated(tmp_path, legacy):
    path = checkpoint_of(tmp_path / "fairseq")
    lie(path, legacy)
    with little_memory():
        refuse(path, tmp_path, "is no whole checkpoint of PyTorch" if legacy else "is no whole")


def test_there_is_little_memory():
    with little_memory(), pytest.raises(MemoryError):
        bytes(2**30)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("size", "stride"), [((1000, 64 * 10**6), (0, 0)), ((10**9,), (1,))], ids=["expanded", "resized"]
)
def test_a_tensor_larger_than_its_storage(tmp_path, size, stride, legacy):
    path = checkpoint_of(tmp_path / "fairseq")
    flags, weights = contents_of("dyn_post")
    weights["encoder.layers.0.fc1.bias"] = Claim(
        torch.storage.TypedStorage([1.0] * 64, dtype=torch.float32, _internal=True), size, stride
    )
    save(path, flags, weights, legacy=legacy)
    with (
        little_memory(),
        pytest.raises(ValueError, match="is refused: its tensors claim|is no whole checkpoint of PyTorch"),
    ):
        convert(path, tmp_path / "ours")


def test_compressed_members_are_refused(tmp_path):
    path = checkpoint_of(tmp_path / "fairseq")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refuse(path, tmp_path, "in it is compressed, which PyTorch never does")


def write_archive(path, members, opener=gzip.open):
    with opener(path, "wb") as file, tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, content)
    return path


def member(name, content=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def published(folder):
    """The members of an archive like the published ones."""
    checkpoint_of(folder)
    return [
        member("wmt/", type=tarfile.DIRTYPE),
        *(member(f"wmt/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())),
    ]


@pytest.mark.parametrize(("suffix", "opener"), [("gz", gzip.open), ("bz2", bz2.open)])
def test_archives(tmp_path, suffix, opener):
    path = write_archive(tmp_path / f"wmt.tar.{suffix}", published(tmp_path / "fairseq"), opener)
    model = convert(path, tmp_path / "ours").model
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fairseq", "ours", path.name]
    (tmp_path / "b").mkdir()
    expected, _ = converted(tmp_path / "b")
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight)


OUTSIDE = [
    (member("../evil.pt", b"x"), "'../evil.pt' leads out of the archive"),
    (member("/tmp/evil.pt", b"x"), "'/tmp/evil.pt' leads out of the archive"),
    (member("wmt/a/../../../evil", b"x"), "leads out of the archive"),
    (
        member("wmt/link.pt", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "'wmt/link.pt' is a link, a device or sparse",
    ),
    (member("wmt/hard", type=tarfile.LNKTYPE, linkname="wmt/model.pt"), "'wmt/hard' is a link, a device or sparse"),
    (member("wmt/null", type=tarfile.CHRTYPE), "'wmt/null' is a link, a device or sparse"),
    (member("wmt/sparse", type=tarfile.GNUTYPE_SPARSE), "'wmt/sparse' is a link, a device or sparse"),
    (member("wmt/pipe", type=tarfile.FIFOTYPE), "'wmt/pipe' is a link, a device or sparse"),
    (member("wmt/other.pt", b"x"), "must have one checkpoint, a file named *.pt; it has model.pt, other.pt"),
    (member("wmt/a/model.pt", b"x"), "has two files named model.pt"),
]


@pytest.mark.parametrize(("extra", "message"), OUTSIDE, ids=[message for _, message in OUTSIDE])
def test_archives_that_write_elsewhere(tmp_path, extra, message):
    extra[1].seek(0)
    path = write_archive(tmp_path / "wmt.tar.gz", [*published(tmp_path / "fairseq"), extra])
    refuse(path, tmp_path, message)


@pytest.mark.parametrize("kept", [0.001, 0.5, 0.99])
def test_truncated_archives(tmp_path, kept):
    path = write_archive(tmp_path / "wmt.tar.gz", published(tmp_path / "fairseq"))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refuse(path, tmp_path, "is no whole .tar.gz or .tar.bz2 archive")
    path.write_bytes(content[:1000] + os.urandom(1000) + content[2000:])
    refuse(path, tmp_path, "is no whole .tar.gz or .tar.bz2 archive")


class Zeros(io.RawIOBase):
    def __init__(self, left):
        self.left = left

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def test_a_decompression_bomb(tmp_path):
    size = 300 * 2**20
    info = tarfile.TarInfo("wmt/model.pt")
    info.size = size
    refuse(
        write_archive(tmp_path / "bomb.tar.gz", [(info, Zeros(size))]),
        tmp_path,
        "'wmt/model.pt' expands to 314,572,800 bytes",
    )


def test_a_bomb_in_a_header(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 300 * 2**20
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf())
        for _ in range(300):
            file.write(bytes(2**20))
    with little_memory():
        refuse(path, tmp_path, "is refused: more than 1,048,576 bytes beside the content of its files")
