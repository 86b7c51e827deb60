"""Exports that are killed (SIGKILL) before every call that changes files: the name holds nothing, the earlier export or the new one."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
from resources.export_folder import ExportFolder

home, replacing = Path(sys.argv[1]), sys.argv[2] == "replace"

def export(folder, word):
    with ExportFolder(folder, replace=replacing) as out:
        for place in range(3):
            out.write(f"explanations/0/{place}.jsonl", word.encode())
        out.write("neuronledger.json", b"{}")

def held(folder):
    if not folder.exists():
        return "nothing"
    words = [path.read_text() for path in sorted(folder.rglob("*.jsonl"))]
    whole = len(words) == 3 and len(set(words)) == 1 and (folder / "neuronledger.json").read_text() == "{}"
    return words[0] if whole else f"half: {words}"

def killed_before(nth):
    calls = itertools.count()
    def counting(function):
        def called(*args, **kwargs):
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return called
    for owner, name in ((Path, "open"), (Path, "mkdir"), (Path, "touch"), (Path, "rename"), (shutil, "rmtree"), (os, "open"), (os, "rmdir"), (os, "unlink")):
        setattr(owner, name, counting(getattr(owner, name)))

found = []
for nth in itertools.count():
    folder = home / f"{nth}" / "out"
    folder.parent.mkdir()
    if replacing:
        export(folder, "old")
    child = os.fork()
    if child == 0:
        killed_before(nth)
        export(folder, "new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    before = held(folder)
    export(folder, "again") if replacing or before == "nothing" else None
    left = sorted(path.name for path in folder.parent.iterdir())
    found.append([before, held(folder), left, os.WIFSIGNALED(status)])
    if not os.WIFSIGNALED(status):
        break
print(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["new", "replace"])
def test_a_killed_export_leaves_nothing_half_made_and_the_next_is_whole(tmp_path, how):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 10
    assert [killed for *_, killed in found] == [True] * (len(found) - 1) + [False]
    for before, after, left, _ in found:
        assert before in ({"nothing", "new"} if how == "new" else {"nothing", "old", "new"})
        assert after in ({"again", "new"} if how == "new" else {"again"})
        assert left == ["out"]


def test_an_earlier_export_comes_back_when_a_killed_one_had_put_it_aside(tmp_path):
    script = SCRIPT.replace(
        'export(folder, "again") if replacing or before == "nothing" else None', "ExportFolder(folder, replace=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "replace"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {after for _, after, _, _ in json.loads(done.stdout)} == {"old", "new"}
