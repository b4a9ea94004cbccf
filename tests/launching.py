"""Helpers for tests of the launch scripts: copies, fake tools, processes."""
from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
# Seconds after which a test gives up waiting. Large, because the machine may be
# busy with other work; a test that passes never waits that long.
LIMIT = 300
_TOOLS = ('gcloud', 'kubectl', 'nvidia-smi', 'sbatch', 'srun')

# The end of a fake mixer.main, as a bash script. It takes the first line of the
# file $BOX/codes$id, where `id` is the number of the process, and does what the
# line says: an exit code, or one of the words below.
ACT = '''
cd "$BOX"
code=$(head -n 1 "codes$id")
sed -i 1d "codes$id"
case $code in
wait)      # until TERM comes, or until the file `lost` reports a lost peer
  trap 'sleep "${SAVE_SECONDS:-0}"; echo saved; exit 42' TERM
  echo $$ >"waits$id"
  until [[ -e lost ]]; do sleep 0.02; done
  rm lost
  exit 134 ;;
hang)      # whatever comes
  trap 'echo TERM >>"terms$id"' TERM
  echo $$ >"waits$id"
  while true; do sleep 0.02; done ;;
go-*)      # when the test makes the file `go`
  until [[ -e go ]]; do sleep 0.02; done
  exit "${code#go-}" ;;
then-*)    # when process 0 waits
  until [[ -e waits0 ]]; do sleep 0.02; done
  exit "${code#then-}" ;;
9) kill -KILL $$ ;;
*) exit "$code" ;;
esac'''

# Runs a command with the default reaction to these signals. nohup ignores HUP,
# and a script ignores INT in the commands that it starts in the background. The
# tests may run in either, and bash cannot trap a signal that was ignored when
# it started. Python itself ignores PIPE. A preexec_fn could do the same, but is
# not safe in a process with threads.
_DEFAULT_SIGNALS = '''
import os, signal, sys
for name in ('SIGHUP', 'SIGINT', 'SIGPIPE', 'SIGQUIT', 'SIGTERM'):
  signal.signal(getattr(signal, name), signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'''


def run(*command: object, cwd: pathlib.Path = ROOT,
        **env: str) -> subprocess.CompletedProcess[str]:
  """Runs a command to its end; `env` adds to the environment."""
  return subprocess.run(
      [str(c) for c in command], cwd=cwd, env={**os.environ, **env}, text=True,
      stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
  """Waits for the end of a process that `Sandbox.begin` started."""
  out, err = process.communicate(timeout=LIMIT)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def script(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes an executable bash script."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)
  return path


def copy(path: pathlib.Path) -> pathlib.Path:
  """Makes a checkout with only the launch scripts and short requirements."""
  shutil.copytree(ROOT / 'launch', path / 'launch')
  (path / 'requirements.txt').write_text('a==1\n')
  (path / 'launch' / 'requirements-cuda.txt').write_text(
      '-r ../requirements.txt\nb==1\n')
  return path


def lines(path: pathlib.Path) -> list[str]:
  """Returns the lines of a file, or none if it does not exist."""
  return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], object], pause: float = 0.02) -> None:
  """Waits until `condition()` is true; `pause` is in seconds."""
  end = time.monotonic() + LIMIT
  while not condition():
    assert time.monotonic() < end, f'not true after {LIMIT} seconds'
    time.sleep(pause)


def gone(pid: int) -> bool:
  """Returns whether a process has ended."""
  try:
    return ' Z ' in pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return True


def interrupt_until_end(process: subprocess.Popen[str],
                        number: int = signal.SIGINT) -> None:
  """Sends Ctrl-C, or another signal, until a process ends.

  One more Ctrl-C may not be enough: on a busy machine bash may see two signals
  as one.
  """
  def ended() -> bool:
    if process.poll() is None:
      process.send_signal(number)
    return process.poll() is not None
  until(ended, pause=0.001)


def check_usage_error(
    done: subprocess.CompletedProcess[str], message: str) -> None:
  """Checks for exit code 2 and an error of one line that has `message`."""
  assert done.returncode == 2, done
  assert done.stderr.startswith('error: ') and message in done.stderr
  assert done.stderr.count('\n') == 1


def dry_run(path: pathlib.Path, name: str, *command: object) -> None:
  """Compares the output of a dry run with golden/NAME.txt.

  Also checks that it calls no tool. To accept an intended change, run the
  command of the test by hand and put its output into the file.
  """
  done = _with_recording_tools(path, *command)
  assert done.returncode == 0, done.stderr
  assert done.stdout == (GOLDEN / f'{name}.txt').read_text()


def usage_error(path: pathlib.Path, message: str, *command: object) -> None:
  """Checks that a command reports a usage error and calls no tool."""
  check_usage_error(_with_recording_tools(path, *command), message)


def _with_recording_tools(
    path: pathlib.Path,
    *command: object) -> subprocess.CompletedProcess[str]:
  for tool in _TOOLS:
    script(path / tool, f'echo "$@" >>{path}/called')
  done = run(*command, PATH=f'{path}:{os.environ["PATH"]}')
  assert sorted(os.listdir(path)) == sorted(_TOOLS)
  return done


class Sandbox:
  """A copy of the launch scripts with fake tools, and what was started there.

  Attributes:
    path: the folder of everything; the environment variable BOX of scripts.
    copy: the checkout that holds the launch scripts.
    env: the environment of scripts.
  """

  def __init__(self, path: pathlib.Path, **env: str):
    self.path, self.copy = path, copy(path / 'copy')
    self.env = {**os.environ, 'BOX': str(path), 'RESTART_SECONDS': '0',
                'PATH': f'{path}/bin:{os.environ["PATH"]}', **env}

  def tool(self, name: str, text: str) -> pathlib.Path:
    """Puts a bash script on PATH."""
    return script(self.path / 'bin' / name, text)

  def lines(self, name: str) -> list[str]:
    """Returns the lines of a file in the sandbox."""
    return lines(self.path / name)

  def begin(self, command: str | pathlib.Path, *args: object,
            codes: Sequence[Sequence[object]] = (),
            cwd: pathlib.Path | None = None,
            **env: str) -> subprocess.Popen[str]:
    """Starts a launcher.

    Args:
      command: the name of a script in launch/, or a path.
      *args: its arguments.
      codes: for each process of mixer.main, what its starts do; see ACT.
      cwd: the current directory; by default the sandbox.
      **env: additions to the environment.
    """
    for i, mine in enumerate(codes):
      (self.path / f'codes{i}').write_text(''.join(f'{c}\n' for c in mine))
    return subprocess.Popen(
        [sys.executable, '-I', '-S', '-c', _DEFAULT_SIGNALS,
         str(self.copy / 'launch' / command), *map(str, args)],
        cwd=cwd or self.path, env={**self.env, **env}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True)

  def call(self, command: str | pathlib.Path, *args: object,
           codes: Sequence[Sequence[object]] = (),
           cwd: pathlib.Path | None = None,
           **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a launcher to its end; takes the arguments of `begin`."""
    return finish(self.begin(command, *args, codes=codes, cwd=cwd, **env))

  def waiting(self, process: int) -> int:
    """Waits until a process of mixer.main waits or hangs; returns its pid."""
    name = f'waits{process}'
    until(lambda: self.lines(name))
    return int(self.lines(name)[0])

  def close(self) -> None:
    """Kills what still runs: all processes that have BOX of this sandbox."""
    mark = f'BOX={self.path}\0'.encode()
    for file in pathlib.Path('/proc').glob('[0-9]*/environ'):
      try:
        if mark in file.read_bytes():
          os.kill(int(file.parent.name), signal.SIGKILL)
      except OSError:   # it has ended, or belongs to another user
        pass
