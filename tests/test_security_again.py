"""Every command can be typed again until it succeeds: killed before each file change in turn.

One process has everything imported and forks; a fork opens engines, and is killed.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

WALK = """
import os, shutil, signal, sys
from pathlib import Path

sys.path.insert(0, {tests!r})
from conftest import HashEncoder, make_bundle, make_passages, write_data
from typer.testing import CliRunner
from two_tower.ingest.cli import app
from two_tower.ingest.loading import loader
from two_tower.ingest.versions import snapshots, versions
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.retriever.engine.connect import connect

what, root = sys.argv[1], Path(sys.argv[2])
template, work = root / "template", root / "work"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = {{"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate"}}


def in_fork(job):
    pid = os.fork()
    if not pid:
        try:
            os._exit(job())
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(99)
    return os.waitpid(pid, 0)[1]


def make():
    template.mkdir()
    if what in ("prepare", "prepare --force"):
        (template / "rows.csv").write_text("query,passage\\na,one\\nb,two\\nc,three\\n")
    if what == "prepare --force":
        write_data(template / "DATA", make_passages(3))
    if what == "save --force":
        make_bundle(template / "bundle")
        make_bundle(template / "other", seed=1)
    if what in ("restore --promote", "drop --yes", "snapshot"):
        engine = connect(path=template / "edge")
        for seed in (0, 1):
            data = write_data(template / "D", make_passages(4 + seed))
            made = loader.load(engine, data, HashEncoder(seed=seed), name="c")
            versions.promote(engine, "c", made.collection)
        snapshots.snapshot(engine, made.collection, template / "out")
        engine.close()
        shutil.rmtree(template / "D")
    if what == "restore --promote":
        shutil.rmtree(template / "edge")
    return 0


def words():
    edge = ["--path", work / "edge"]
    if what.startswith("prepare"):
        return ["prepare", work / "rows.csv", "--out", work / "DATA", *what.split()[1:]]
    if what == "restore --promote":
        (file,) = (work / "out").glob("*.zip")
        return ["restore", file, "--promote", *edge]
    if what == "snapshot":
        return ["snapshot", "c", "--out", work / "out2", *edge]
    return ["drop", "c", "--yes", *edge]


def run():
    if what == "save --force":
        ModelBundle.load(work / "other").save(work / "bundle", force=True)
        return 0
    done = CliRunner().invoke(app, [str(word) for word in words()])
    if done.exit_code:
        print(done.output, done.exception, file=sys.stderr, flush=True)
    return done.exit_code


def killed_at(number):
    seen = 0
    always = work / ("DATA" if what == "prepare --force" else "bundle")

    def hook(event, args):
        nonlocal seen
        if event == "open":
            path, _, flags = args
            if not isinstance(flags, int) or not flags & WRITING:
                return
        elif event in CHANGES:
            path = args[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not os.fsdecode(path).startswith(str(work)):
            return
        if what.endswith("--force") and not always.exists():
            os._exit(98)
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return run()


def left_over():
    odd = [p for p in work.rglob("*") if p.name.endswith((".partial", ".part", ".old"))]
    odd += [p for p in work.rglob(".old-*")]
    print(odd, file=sys.stderr) if odd else None
    return len(odd)


assert in_fork(make) == 0
number = 0
while True:
    # A restore writes dozens of files alike.
    number += 9 if what == "restore --promote" and number > 12 else 1
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(template, work, symlinks=True)
    ended = in_fork(lambda: killed_at(number))
    again = in_fork(run)
    assert ended in (0, signal.SIGKILL), (number, ended)
    # Without --force DATA is never replaced: where it is complete, the second call says so.
    is_there = what == "prepare" and (work / "DATA" / "manifest.json").exists()
    assert again == 0 or is_there, (number, "again", again)
    assert left_over() == 0, number
    if ended == 0:
        break
print(number - 1)
"""


@pytest.mark.parametrize(
    "what",
    ["prepare", "prepare --force", "save --force", "restore --promote", "drop --yes", "snapshot"],
)
def test_it_succeeds_after_a_kill_before_any_file_change(tmp_path: Path, what: str) -> None:
    program = WALK.format(tests=str(ROOT / "tests"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, what, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 3
