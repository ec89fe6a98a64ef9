"""Checkpoint files: whole or none, damage told by name, no code run, the disk full."""

import contextlib
import errno
import os
import pickle
import resource
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ssl import SimCLR, checkpoint
from lit_ssl.checkpoint import CheckpointError, WholeFileIO, clean, damage_of, load, newest_whole


def saved(path, value=0.0):
    WholeFileIO().save_checkpoint({"state_dict": {"weight": torch.full((300,), value)}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole") / "last.ckpt").read_bytes()


def value(path):
    return load(path)["state_dict"]["weight"][0].item()


# Whole files


def test_a_file_is_an_ordinary_one_with_a_checksum(tmp_path):
    path = saved(tmp_path / "new" / "a.ckpt", 2.0)
    assert damage_of(path) is None
    for mmap in (False, True):
        assert torch.load(path, weights_only=True, mmap=mmap)["state_dict"]["weight"].eq(2).all()
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"lit-ssl sha256 ")
        assert archive.testzip() is None
    assert os.listdir(path.parent) == ["a.ckpt"]


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_found(whole, tmp_path_factory, place, bit):
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.ckpt"
    path.write_bytes(data)
    assert damage_of(path) is not None


@given(length=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_any_truncation_is_found(whole, tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.ckpt"
    path.write_bytes(whole[: int(length * len(whole))])
    assert damage_of(path) is not None


@pytest.mark.parametrize("cut", range(1, 110))
def test_a_cut_within_the_checksum_is_found(whole, tmp_path, cut):
    (tmp_path / "cut.ckpt").write_bytes(whole[:-cut])
    assert damage_of(tmp_path / "cut.ckpt") is not None


def test_files_of_torch_itself_are_checked_by_their_records(tmp_path):
    path = tmp_path / "foreign.ckpt"
    torch.save({"weight": torch.ones(1000)}, path)
    assert damage_of(path) is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "does not match its checksum" in damage_of(path)
    path.write_bytes(data[:-5])
    assert "cut short" in damage_of(path)
    path.write_bytes(b"")
    assert "cut short" in damage_of(path)


def test_two_generations_of_last_are_kept(tmp_path):
    for generation in range(4):
        saved(tmp_path / "last.ckpt", generation)
        saved(tmp_path / "other.ckpt", generation)
    assert sorted(os.listdir(tmp_path)) == ["last-previous.ckpt", "last.ckpt", "other.ckpt"]
    assert [value(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt", "other.ckpt")] == [3, 2, 3]


def test_without_hard_links_two_generations_are_kept_as_well(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for generation in range(3):
        saved(tmp_path / "last.ckpt", generation)
    assert [value(tmp_path / name) for name in ("last.ckpt", "last-previous.ckpt")] == [2, 1]


@pytest.mark.parametrize("call", [("fsync", 1), ("link", 1), ("replace", 1), ("replace", 2), ("fsync", 2)])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_at_any_call_leaves_a_whole_newest_file(tmp_path, call, before):
    """The process ends, without any cleaning up, just before or behind each call that reaches the disk."""
    for generation in (1, 2):
        saved(tmp_path / "last.ckpt", generation)
    name, number = call
    if not (pid := os.fork()):
        real, calls = getattr(os, name), [0]

        def deadly(*args):
            calls[0] += 1
            if before and calls[0] == number:
                os._exit(9)
            result = real(*args)
            if calls[0] == number:
                os._exit(9)
            return result

        setattr(os, name, deadly)
        with contextlib.suppress(BaseException):
            saved(tmp_path / "last.ckpt", 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    files = list(tmp_path.glob("*.ckpt"))
    assert all(damage_of(file) is None for file in files)
    newest, damaged = newest_whole([tmp_path / "last.ckpt"])
    assert value(newest) in (2, 3)
    assert not damaged
    clean(tmp_path)
    assert not list(tmp_path.glob(".*"))


# Damage


def test_a_damaged_file_is_refused_and_the_one_before_it_named(tmp_path):
    for generation in (1, 2):
        saved(tmp_path / "last.ckpt", generation)
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"last.ckpt is not a whole checkpoint .*whole: .*last-previous.ckpt"):
        load(last)
    newest, damaged = newest_whole(tmp_path.glob("*.ckpt"))
    assert value(newest) == 1
    assert list(damaged) == [last]
    (tmp_path / "last-previous.ckpt").rename(tmp_path / "later.ckpt")
    os.utime(tmp_path / "later.ckpt", (2e9, 2e9))
    with pytest.raises(CheckpointError, match=r"the one beside it is whole: .*later\.ckpt"):
        load(last)
    (tmp_path / "later.ckpt").unlink()
    with pytest.raises(CheckpointError, match="there is no whole one beside it"):
        load(last)
    with pytest.raises(CheckpointError, match="there is no whole one beside it"):
        SimCLR.load_from_checkpoint(last)
    clean(tmp_path)
    assert os.listdir(tmp_path) == ["last.ckpt.damaged"]
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt"):
        load(last)


def test_what_is_no_file_is_passed_over(tmp_path):
    for generation in (1, 2):
        saved(tmp_path / "last.ckpt", generation)
    last, before = tmp_path / "last.ckpt", tmp_path / "last-previous.ckpt"
    for make in (last.mkdir, lambda: last.symlink_to(tmp_path / "nowhere"), lambda: os.mkfifo(last)):
        last.unlink(missing_ok=True)
        make()
        newest, damaged = newest_whole([last, before])
        assert value(newest) == 1
        assert list(damaged) == [last]
        clean(tmp_path)
        assert not os.path.lexists(last)
        assert value(before) == 1


class Call:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


def test_a_file_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Call()}, "evil.ckpt")
    for loading in (
        load,
        WholeFileIO().load_checkpoint,
        lambda p: WholeFileIO().load_checkpoint(p, weights_only=False),
    ):
        with pytest.raises(CheckpointError, match=r"asks to run code when it is loaded \(.*mkdir\): refused"):
            loading("evil.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load("evil.ckpt", weights_only=True)
    assert os.listdir() == ["evil.ckpt"]


# A full disk


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_file_and_says_so(tmp_path, monkeypatch, call):
    for generation in (1, 2):
        saved(tmp_path / "last.ckpt", generation)
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    message = r"could not save .*last.ckpt: No space left on device, .* MiB free; the one saved before it stays"
    with pytest.raises(CheckpointError, match=message):
        saved(tmp_path / "last.ckpt", 3)
    assert sorted(os.listdir(tmp_path)) == ["last-previous.ckpt", "last.ckpt"]
    assert value(tmp_path / "last.ckpt") == 2


@pytest.mark.parametrize("room", [0, 64, 1000, 1800])
def test_a_file_that_cannot_grow_leaves_the_older_one(tmp_path, room):
    """A real limit of the operating system, met at different places of the file."""
    saved(tmp_path / "last.ckpt", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not save .*File too large; the one saved before it stays"):
            saved(tmp_path / "last.ckpt", 2)
        with pytest.raises(CheckpointError, match="there is none before it"):
            saved(tmp_path / "first.ckpt", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert value(tmp_path / "last.ckpt") == 1


def test_a_failure_of_the_program_leaves_nothing_half_written(tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        WholeFileIO().save_checkpoint({"a": lambda: None}, tmp_path / "a.ckpt")
    assert not os.listdir(tmp_path)


# As Lightning's plugin


def test_the_plugin_serves_any_callback(tmp_path, make_trainer, tiny, loader, spec):
    saver = ModelCheckpoint(tmp_path, save_last=True)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[saver], plugins=[WholeFileIO()])
    trainer.fit(SimCLR(spec=spec, **tiny), loader)
    assert damage_of(tmp_path / "last.ckpt") is None
    assert b"lit-ssl sha256" in (tmp_path / "last.ckpt").read_bytes()[-checkpoint._SEAL :]
    SimCLR.load_from_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        trainer.fit(SimCLR(spec=spec, **tiny), loader, ckpt_path=tmp_path / "last.ckpt")
