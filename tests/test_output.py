import os
import subprocess
import sys

TOOL = """
import sys
from mmcfmask.output import run_tool
def main():
    for _ in range(20000):
        print("\\u03b1 = 0.5", "caf\\udce9")
    print("finished", file=sys.stderr)
    return 3
run_tool(main)
"""


def start(**kwargs):
    environment = {**os.environ, **kwargs.pop('env', {})}
    return subprocess.Popen([sys.executable, '-c', TOOL], env=environment, stderr=subprocess.PIPE, **kwargs)


def test_readers_that_leave_stop_no_tool():
    tool = start(stdout=subprocess.PIPE)
    assert tool.stdout.readline() == 'α = 0.5 caf\\udce9\n'.encode()
    tool.stdout.close()  # head -1
    assert tool.stderr.read() == b'finished\n' and tool.wait() == 3


def test_letters_that_a_terminal_lacks():
    tool = start(stdout=subprocess.PIPE, env=dict(PYTHONIOENCODING='ascii'))
    out, error = tool.communicate()
    assert out.splitlines()[0] == b'\\u03b1 = 0.5 caf\\udce9' and error == b'finished\n' and tool.returncode == 3


def test_full_disk_is_said_once():
    with open('/dev/full', 'wb') as full:
        tool = start(stdout=full)
        assert (
            tool.stderr.read().splitlines() == [b'cannot write the output: No space left on device', b'finished']
            and tool.wait() == 3
        )


def test_no_output_at_all():
    tool = subprocess.run(['sh', '-c', '"$0" -c "$1" >&-', sys.executable, TOOL], stderr=subprocess.PIPE)
    assert tool.stderr == b'finished\n' and tool.returncode == 3
