from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from customized_grpo.libraries import undisturbed_imports


@pytest.mark.slow
def test_what_diffusers_misses_of_torchao_is_not_said() -> None:
    """`cgrpo plan two-scale` imports diffusers outside of every `quiet`."""
    pytest.importorskip("torchao")
    code = (
        "from customized_grpo.libraries import quiet_imports\n"
        "with quiet_imports():\n    from diffusers import ModelMixin\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchao" not in said.stderr + said.stdout


def test_nothing_looks_for_garbage_while_the_libraries_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    with pytest.raises(ImportError), undisturbed_imports():
        assert not gc.isenabled()
        modules = [[] for _ in range(100)]
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() > frozen + len(modules)


@pytest.mark.parametrize("reason", ["imported", "switched off"])
def test_where_there_is_nothing_to_spare_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "imported":
        monkeypatch.setitem(sys.modules, "diffusers", sys)
    else:
        monkeypatch.delitem(sys.modules, "diffusers", raising=False)
        gc.disable()
    try:
        enabled = gc.isenabled()
        frozen = gc.get_freeze_count()
        with undisturbed_imports():
            assert gc.isenabled() == enabled
        # fewer when frozen objects of other tests have ended meanwhile
        assert gc.isenabled() == enabled and gc.get_freeze_count() <= frozen
    finally:
        gc.enable()
