"""The temporary folder of a launch, and those of launchers that were killed."""

import os
import signal
import subprocess
import sys
import tempfile

from moe_megatron.platform.scratch import remove_leftovers, scratch_folder

HOLDS = """
import tempfile, time
from moe_megatron.platform.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    time.sleep(100)
"""


def test_children_write_into_the_folder_that_is_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it when it compiles
    code = "import tempfile; print(tempfile.mkdtemp())"
    before = dict(os.environ)
    with scratch_folder() as folder:
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.stdout.startswith(str(folder))
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path / "torchinductor_"))
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


def test_leftovers_are_removed_when_their_launcher_is_dead_and_not_before(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        folder = holder.stdout.readline().strip()
        try:
            remove_leftovers(tmp_path)
            assert os.listdir(tmp_path) == [os.path.basename(folder)]
        finally:
            holder.send_signal(signal.SIGKILL)
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
