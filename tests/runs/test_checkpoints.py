"""The promises of CheckpointStore, one test each."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forked
from customized_grpo.errors import UserError
from customized_grpo.runs.checkpoints import COMMIT, PARTIAL, Checkpoint, CheckpointStore
from kill_child import content
from processes import run_python


def assert_holds(checkpoint: Checkpoint, step: int) -> None:
    tensors, state = content(step)
    assert checkpoint.step == step
    assert checkpoint.state == state
    assert checkpoint.tensors.keys() == tensors.keys()
    for entry, group in tensors.items():
        assert checkpoint.tensors[entry].keys() == group.keys()
        for name, tensor in group.items():
            assert torch.equal(checkpoint.tensors[entry][name], tensor)
            assert checkpoint.tensors[entry][name].dtype == tensor.dtype


def store_with(tmp_path: Path, *steps: int, keep: int = 0) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep)
    for step in steps:
        store.save(step, *content(step))
    return store


def flip_byte(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_saved_comes_back_equal(tmp_path: Path) -> None:
    assert_holds(store_with(tmp_path, 7).load(7), 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    store = CheckpointStore(tmp_path, 1)
    store.save(1, {"adapter": {"w": tensor}, "ema": {}}, {})
    loaded = store.load(1).tensors
    assert loaded["adapter"]["w"].dtype == dtype and torch.equal(loaded["adapter"]["w"], tensor)
    assert loaded["ema"] == {}


def test_shared_and_transposed_tensors_are_saved_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    store = CheckpointStore(tmp_path, 1)
    store.save(
        1, {"adapter": {"a": base, "b": base, "c": base.T, "d": base[1], "e": base.requires_grad_()}}, {}
    )
    loaded = store.load(1).tensors["adapter"]
    assert all(
        torch.equal(loaded[n], t) for n, t in {"a": base, "b": base, "c": base.T, "d": base[1]}.items()
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_json_state_comes_back_equal(tmp_path: Path, state: dict[str, Any]) -> None:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    store = CheckpointStore(tmp_path / "c", 1)
    store.save(1, {}, state)
    assert store.load(1).state == state


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": float("nan")}, {"a": object()}])
def test_state_that_json_would_change_is_refused(tmp_path: Path, state: Any) -> None:
    store = store_with(tmp_path)
    with pytest.raises(ValueError):
        store.save(1, {}, state)
    assert store.latest() is None


def test_nothing_on_disk_is_pickled(tmp_path: Path) -> None:
    folder = store_with(tmp_path, 1).folder / "step_000001"
    assert sorted(p.name for p in folder.iterdir()) == [
        "COMMIT.json",
        "adapter.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert all(b"torch" not in p.read_bytes() for p in folder.iterdir())


def test_latest_is_the_highest_committed_folder_by_number_not_by_name(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    assert store.latest() is None
    store = store_with(tmp_path, 2, 999_999, 1_000_000)
    (store.folder / "step_2000000").mkdir()  # no COMMIT.json
    (store.folder / "step_3").mkdir()
    (store.folder / "notes.txt").write_text("mine")
    assert store.latest() == 1_000_000
    assert store.steps() == [2, 999_999, 1_000_000]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_keep_counts_the_newest_and_zero_keeps_all(tmp_path: Path, keep: int, left: list[int]) -> None:
    assert store_with(tmp_path, 1, 2, 3, 4, keep=keep).steps() == left


def test_negative_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        CheckpointStore(tmp_path, -1)


def test_a_committed_step_is_never_overwritten(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    for step in (5, 4):
        with pytest.raises(ValueError, match="rewind"):
            store.save(step, *content(9))
    assert_holds(store.load(5), 5)


@pytest.mark.parametrize("name", ["state", "../up", "Adapter", "a/b", ""])
def test_entry_names_that_are_no_plain_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="entry name"):
        CheckpointStore(tmp_path, 1).save(1, {name: {}}, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_model_is_never_saved(tmp_path: Path, value: float) -> None:
    store = store_with(tmp_path, 1)
    tensors, state = content(2)
    tensors["adapter"]["down"][1, 1] = value
    with pytest.raises(UserError, match="1 of the 6 values of adapter/down are not finite"):
        store.save(2, tensors, state)
    assert [p.name for p in store.folder.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("position", [0, -1])
def test_a_flipped_byte_is_an_error_that_names_the_file_and_older_steps(
    tmp_path: Path, name: str, position: int
) -> None:
    store = store_with(tmp_path, 1, 2, 3)
    flip_byte(store.folder / "step_000003" / name, position)
    with pytest.raises(UserError, match=re.escape(f"step_000003/{name}")) as caught:
        store.load(3)
    assert caught.value.hint is not None and "steps 2, 1" in caught.value.hint
    assert_holds(store.load(2), 2)


def test_missing_truncated_and_unlisted_files_are_told_apart(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2, 3)
    (store.folder / "step_000001/adapter.safetensors").unlink()
    with pytest.raises(UserError, match="adapter.safetensors is missing") as caught:
        store.load(1)
    assert caught.value.hint == "There is no older checkpoint in this folder to fall back to."
    with (store.folder / "step_000002/adapter.safetensors").open("r+b") as file:
        file.truncate(9)
    with pytest.raises(UserError, match="has 9 bytes instead of"):
        store.load(2)
    (store.folder / "step_000003/evil.safetensors").write_bytes(b"never read")
    assert "evil" not in store.load(3).tensors


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "step": 1, "files": {}}',
        '{"format": 1, "step": 2, "files": {"state.json": {"sha256": "", "bytes": 0}}}',
        '{"format": 1, "step": 1, "files": {}}',
        '{"format": 1, "step": 1, "files": {"../x": {"sha256": "", "bytes": 0}}}',
    ],
)
def test_a_damaged_commit_record_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    store = store_with(tmp_path, 1)
    (store.folder / "step_000001" / COMMIT).write_text(text)
    with pytest.raises(UserError, match=COMMIT):
        store.load(1)


def test_an_uncommitted_step_is_an_error_that_lists_the_committed_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        store_with(tmp_path).load(1)
    store = store_with(tmp_path, 1, 2)
    with pytest.raises(UserError, match="committed steps: 2, 1"):
        store.load(3)


def test_rewind_sets_later_steps_aside_and_deletes_nothing(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1, 2, 3)
    assert [p.name for p in store.rewind(1)] == ["abandoned-1-step_000003", "abandoned-1-step_000002"]
    assert store.latest() == 1
    store.save(2, *content(2))
    assert [p.name for p in store.rewind(1)] == ["abandoned-2-step_000002"]
    assert store.rewind(1) == []
    with pytest.raises(UserError, match="step 2"):
        store.rewind(2)


def test_sweep_removes_leftovers_and_nothing_else(tmp_path: Path) -> None:
    store = store_with(tmp_path)
    assert store.sweep() == []
    store = store_with(tmp_path, 1)
    for name in (".partial-step_000002", ".pruned-step_000000", "step_000009", "mine"):
        (store.folder / name).mkdir()
        (store.folder / name / "file").write_text("x")
    assert [p.name for p in store.sweep()] == [".partial-step_000002", ".pruned-step_000000"]
    assert sorted(p.name for p in store.folder.iterdir()) == ["mine", "step_000001", "step_000009"]


def test_a_save_passes_over_a_leftover_of_the_same_step(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    (store.folder / f"{PARTIAL}step_000002").mkdir()
    (store.folder / f"{PARTIAL}step_000002" / "old.safetensors").write_bytes(b"rubbish")
    store.save(2, *content(2))
    assert_holds(store.load(2), 2)
    assert not (store.folder / "step_000002/old.safetensors").exists()


def test_everything_is_durable_before_the_rename_and_pruning_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, 1, keep=1)
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        in_partial = PARTIAL in str(path)
        assert not in_partial or path.is_dir() or path.stat().st_size > 0, "synced before it was written"
        draft = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.draft", path.name)
        events.append(f"fsync draft of {draft[1]}" if draft else f"fsync {path.name}")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        if source.name.startswith(PARTIAL):
            assert (source / COMMIT).is_file()
            assert (store.folder / "step_000001" / COMMIT).is_file(), "pruned before the commit"
        events.append(f"rename {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    store.save(2, *content(2))
    files = ["adapter.safetensors", "optimizer.safetensors", "state.json", "COMMIT.json"]
    assert events == [
        *(f"{event} {file}" for file in files for event in ("fsync draft of", "rename")),
        "fsync .partial-step_000002",
        "rename step_000002",
        "fsync checkpoints",
        "rename .pruned-step_000001",
    ]


@pytest.mark.slow
def test_a_kill_at_any_instant_of_a_save_loses_nothing(tmp_path: Path) -> None:
    instants = int(forked.script("kill_child.py", tmp_path))
    assert instants >= 16
    seen = set()
    for kill_at in range(instants):
        store = CheckpointStore(tmp_path / f"kill_{kill_at:03d}", keep=1)
        latest = store.latest()
        assert latest in (1, 2), f"no checkpoint left after a kill at instant {kill_at}"
        assert_holds(store.load(latest), latest)
        store.sweep()
        committed = {f"step_{step:06d}" for step in store.steps()}
        assert {p.name for p in store.folder.iterdir()} == committed, "a partial folder or a leftover"
        for step in store.steps():
            assert_holds(store.load(step), step)
        store.save(3, *content(3))
        assert store.steps() == [3]
        seen.add(latest)
    assert seen == {1, 2}, "kills fell only before, or only after, the commit"


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore(Path(sys.argv[1]), keep=1)
store.save(1, {"adapter": {"w": torch.ones(4)}}, {"iteration": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
try:
    store.save(2, {"adapter": {"w": torch.ones(1 << 16)}}, {"iteration": 2})
except UserError as error:
    print(error.message)
    print(error.hint)
"""


def test_a_real_write_failure_names_path_and_bytes_and_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    run = run_python("-c", LIMITED, tmp_path / "c")
    assert run.returncode == 0, run.stderr
    assert f"{tmp_path / 'c' / 'step_000002'} (262,16" in run.stdout  # 4 * 65,536 bytes and a short state
    assert "File too large" in run.stdout and "Older checkpoints are intact" in run.stdout
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step_000001"]
    assert CheckpointStore(tmp_path / "c", 1).load(1).state == {"iteration": 1}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_no_space_left_at_any_call_is_a_user_error_and_leaves_no_partial_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = store_with(tmp_path, 1)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        UserError, match=r"step_000002 \(.* bytes; .* bytes are free there\): .*No space left"
    ):
        store.save(2, *content(2))
    monkeypatch.undo()
    assert [p.name for p in store.folder.iterdir()] == ["step_000001"]
    assert_holds(store.load(1), 1)


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save checkpoint"):
        CheckpointStore(tmp_path / "file" / "checkpoints", 1).save(1, {}, {})


def test_the_commit_record_lists_hash_and_size_of_every_other_file(tmp_path: Path) -> None:
    folder = store_with(tmp_path, 1).folder / "step_000001"
    commit = json.loads((folder / COMMIT).read_text())
    assert commit["step"] == 1
    assert sorted([*commit["files"], COMMIT]) == sorted(p.name for p in folder.iterdir())
    assert all(len(f["sha256"]) == 64 for f in commit["files"].values())


# Unusual file systems


def refuse(number: int, *, folders: bool) -> Callable[[int], None]:
    """Return an fsync that says that error of every folder or every file."""
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    return refusing


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("folders", [True, False])
def test_a_mount_without_fsync_takes_checkpoints(
    tmp_path: Path, number: int, folders: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(number, folders=folders))
    store = CheckpointStore(tmp_path / "checkpoints", 1)
    store.probe()
    store.save(3, *content(3))
    assert_holds(store.load(3), 3)


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    store.probe()
    assert [path.name for path in store.folder.iterdir()] == ["step_000001"]


def test_a_probe_finds_what_every_save_would_fail_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def only_files(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        replace(source, target)

    store = CheckpointStore(tmp_path / "checkpoints", 1)
    monkeypatch.setattr(os, "replace", only_files)
    with pytest.raises(UserError, match=f"checkpoints cannot be saved in {store.folder}") as refused:
        store.probe()
    assert os.strerror(errno.EXDEV) in refused.value.message
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO, folders=True))
    with pytest.raises(UserError, match="Input/output error"):
        store.probe()
    assert list(store.folder.iterdir()) == []
