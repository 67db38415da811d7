"""Stored bitstreams that are not what they were: damaged, forged, hostile."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tracker import decode
from tracker.bitstream import decode_bitstream, encode_bitstream, read_manifest
from tracker.bitstream.manifest import FORMAT, Manifest, _canonical, _digest, write_manifest
from tracker.codecs.base import Context
from tracker.codecs.chain import build_codec
from tracker.errors import TrackerError

CODERS = {
    "nnc": {"_target_": "tracker.codecs.nnc.Nnc"},
    "nnc_bnf": {"_target_": "tracker.codecs.nnc.Nnc", "bnf": True},
    "int4": {"_target_": "tracker.codecs.integers.Int4"},
}


@pytest.fixture(scope="module", params=list(CODERS))
def bitstream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bitstream of every kind of file: the coder's, the side's, and the fold's where there is one."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(72, 10)]
    model = torch.nn.Sequential(*layers).eval()
    folder = tmp_path_factory.mktemp(request.param)
    codec = build_codec({request.param: CODERS[request.param]})
    assert codec is not None
    context = Context(lambda model, inputs: model(inputs), lambda: [], 0, "cpu")
    tensors = {**model.state_dict(), "half": torch.randn(4, 4).half()}
    encode_bitstream(codec, tensors, model, folder, context)
    assert decode_bitstream(folder).keys() == tensors.keys()
    return folder


@pytest.fixture
def in_time() -> object:
    """No decoding takes longer than the test's few seconds; a hang is a failure, not a wait."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def hang(number: int, frame: object) -> None:
        raise AssertionError("decoding hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes changed, cut off, put in or taken out; never the same as before."""
    kind = rng.choice(["bit", "byte", "cut", "insert", "delete"])
    changed = bytearray(data)
    at = rng.randrange(len(data))
    if kind == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        changed[at] = (changed[at] + rng.randrange(1, 256)) % 256
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        del changed[at : at + rng.randrange(1, 9)]
    return bytes(changed)


def sealed(folder: Path, coder: str = "tracker.codecs.floats.Zstd", files: tuple[str, ...] = ("model.zst",)) -> Path:
    """A manifest with the digest that belongs to it, whatever it says."""
    body = {"codec": ["zstd"], "coder": coder, "files": list(files), "format": FORMAT}
    try:
        digest = _digest(folder, body)
    except (OSError, ValueError):
        digest = "0" * 64
    (folder / "manifest.json").write_bytes(_canonical({**body, "sha256": digest}))
    return folder


@pytest.mark.usefixtures("in_time")
def test_500_random_mutations_are_all_refused(bitstream: Path, tmp_path: Path) -> None:
    rng = random.Random(20240501)
    names = sorted(path.name for path in bitstream.iterdir())
    hit: Counter[str] = Counter()
    for number in range(500):
        folder = tmp_path / str(number)
        shutil.copytree(bitstream, folder)
        # Every file in turn, so that the short ones are not left out.
        target = folder / names[number % len(names)]
        target.write_bytes(mutated(target.read_bytes(), rng))
        with pytest.raises(TrackerError):
            decode_bitstream(folder)
        hit[target.name] += 1
        shutil.rmtree(folder)
    assert set(hit) == set(names)


@pytest.mark.usefixtures("in_time")
def test_forged_payloads_never_do_worse_than_be_refused(bitstream: Path, tmp_path: Path) -> None:
    """The digest is right, as someone who forges a bitstream would make it, and the payload is not."""
    rng = random.Random(7)
    manifest = read_manifest(bitstream)
    outcomes: Counter[str] = Counter()
    for number in range(200):
        folder = forged(bitstream, tmp_path / str(number), manifest)
        target = folder / manifest.files[number % len(manifest.files)]
        target.write_bytes(mutated(target.read_bytes(), rng))
        (folder / "manifest.json").unlink()
        write_manifest(folder, manifest.coder, manifest.codec)
        try:
            decode_bitstream(folder)
            outcomes["decoded"] += 1
        except TrackerError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        shutil.rmtree(folder)
    assert outcomes["refused"] > 100
    assert sum(outcomes.values()) == 200


def forged(bitstream: Path, folder: Path, manifest: Manifest) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(bitstream, folder))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1 << 30, 1 << 30)])
def test_impossible_shapes_are_refused_before_nncodec_sees_them(shape: tuple[int, ...]) -> None:
    """With a dimension of 0 nncodec's C++ code would end this process with a division by zero."""
    from nncodec.nnc_core import coder

    from tracker.codecs.nnc_guard import checked_shapes
    from tracker.memory import physical_bytes

    class Claim:
        nbytes = 4 * int(torch.tensor(shape, dtype=torch.float64).prod())

    original = coder.baseline.decode
    with checked_shapes(physical_bytes()), pytest.raises(TrackerError, match="impossible shape"):
        coder.baseline.decode(None, {"parameters": {"a": Claim()}}, None, "a")
    assert coder.baseline.decode is original


def test_forged_zero_dimension_does_not_end_the_process(tmp_path: Path) -> None:
    """Each byte of a tiny NNC bitstream set to 0 in turn: some of them are dimensions."""
    codec = build_codec({"nnc": CODERS["nnc"]})
    assert codec is not None
    source = tmp_path / "source"
    source.mkdir()
    tensors = {"w": torch.randn(3, 4)}
    context = Context(lambda model, inputs: inputs, lambda: [], 0, "cpu")
    manifest, _ = encode_bitstream(codec, tensors, torch.nn.Identity(), source, context)
    data = (source / "model.nnc").read_bytes()
    pid = os.fork()  # so that a crash is seen here and does not end pytest
    if pid == 0:
        status = 0
        for number in range(len(data)):
            folder = forged(source, tmp_path / str(number), manifest)
            changed = bytearray(data)
            changed[number] = 0
            (folder / "model.nnc").write_bytes(changed)
            (folder / "manifest.json").unlink()
            write_manifest(folder, manifest.coder, manifest.codec)
            try:
                decode_bitstream(folder)
            except TrackerError:
                pass
            except BaseException:
                status = 1
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/b", "..", ".", "", "a\\b", "a\0b", "x" * 300, "manifest.json", "\ud800"]
)
def test_manifest_names_only_plain_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    folder = tmp_path / "bitstream"
    folder.mkdir()
    with pytest.raises(TrackerError):
        decode_bitstream(sealed(folder, files=(name,)))


def test_links_and_pipes_are_not_followed(bitstream: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bitstream)
    for name in [*manifest.files, "manifest.json"]:
        folder = forged(bitstream, tmp_path / f"link-{name}", manifest)
        outside = tmp_path / f"outside-{name}"
        (folder / name).replace(outside)
        (folder / name).symlink_to(outside)
        with pytest.raises(TrackerError, match="plain file"):
            decode_bitstream(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)  # reading it would wait for ever
        with pytest.raises(TrackerError, match="plain file"):
            decode_bitstream(folder)


@pytest.mark.parametrize(
    "coder",
    [
        "os.system",
        "this.exit",
        "antigravity.fly",
        "tracker.decode.main",
        "tracker.codecs.base.Coder",
        "tracker.codecs.packed.ZstdCoder",
        "tracker.codecs.external.subprocess.run",
        "tracker.codecs.external.shutil",
        "tracker.codecs.chain.Codec",
        "tracker.codecs.nnc",
        "tracker.codecs.nnc.Nnc.encode",
        "tracker.codecs.",
        "tracker.codecs..",
        "tracker.codecs.a\0b",
        "",
    ],
)
def test_hostile_coders_are_refused_and_not_imported(tmp_path: Path, coder: str) -> None:
    (tmp_path / "model.zst").write_bytes(b"x")
    sys.modules.pop("antigravity", None)
    sys.modules.pop("this", None)
    with pytest.raises(TrackerError):
        decode_bitstream(sealed(tmp_path, coder=coder))
    assert not {"antigravity", "this"} & sys.modules.keys()


def test_another_coder_of_tracker_than_the_one_that_made_it_is_refused(bitstream: Path, tmp_path: Path) -> None:
    folder = forged(bitstream, tmp_path / "other", read_manifest(bitstream))
    (folder / "manifest.json").unlink()
    write_manifest(folder, "tracker.codecs.floats.Fp16", ["fp16"])
    try:
        names = decode_bitstream(folder).keys()
    except TrackerError:
        return
    # int4's file is a safetensors file too: what comes out has int4's own names, which fit no architecture.
    assert not {"0.weight", "3.weight"} & names


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '{"format":"tracker-1"}', "9" * 5000, "\xff"])
def test_manifests_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(TrackerError, match=r"damaged|get the bitstream again"):
        decode_bitstream(tmp_path)


def test_another_bitstream_than_the_expected_one_is_refused(bitstream: Path) -> None:
    sha256 = json.loads((bitstream / "manifest.json").read_text())["sha256"]
    assert decode_bitstream(bitstream, sha256=sha256)
    with pytest.raises(TrackerError, match="not " + "0" * 64):
        decode_bitstream(bitstream, sha256="0" * 64)


def test_decode_command_tells_one_line_and_leaves_no_output(
    bitstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = forged(bitstream, tmp_path / "damaged", read_manifest(bitstream))
    coded = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    coded.write_bytes(coded.read_bytes()[:-1])
    output = tmp_path / "out.safetensors"
    assert decode.main([str(folder), str(output)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and not told.out
    assert not output.exists()
    assert decode.main([str(bitstream), str(output)]) == 0
    assert output.exists()
    assert decode.main([str(bitstream), str(tmp_path / "no" / "such" / "folder.safetensors")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
