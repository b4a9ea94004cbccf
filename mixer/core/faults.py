"""Says in one line what failed: a flag, or what JAX or a device raised."""
from collections.abc import Iterator
import os
import re
import traceback
from typing import Any

from mixer.core import errors
from mixer.core import processes

# Words of XLA's errors that mean that a device is broken or gone.
_BROKEN = re.compile(
    'DATA_LOSS|halted unexpectedly|uncorrectable|device is lost|'
    'CUDA_ERROR_(ECC|NVLINK|ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|LAUNCH|'
    'HARDWARE|MISALIGNED|DEVICE_UNAVAILABLE|CONTAINED|UNKNOWN)|'
    'hipError(ECC|Illegal|Launch|Unknown)')


def explain(error: Exception, flags: Any) -> Exception:
  """Returns an error of one line for what a device causes, or `error` itself.

  Args:
    error: what a command raised.
    flags: absl's flags, parsed; they tell the batch size.

  Returns:
    A PeerLost if another process or a device is gone, which a restart may mend;
    a RunError if the memory of the devices is used up; a UserError if JAX finds
    no devices.
  """
  import jax
  if processes.lost(error):
    return errors.PeerLost('another process of this run is gone; start all of '
                           f'them again ({_first_line(error)})')
  chain = list(_chain(error))
  for one in chain:
    if not isinstance(one, jax.errors.JaxRuntimeError):
      continue
    text = str(one)
    if 'RESOURCE_EXHAUSTED' in text:
      return errors.RunError(_out_of_memory(one, flags))
    if _BROKEN.search(text):
      return errors.PeerLost(
          f'a device failed ({_first_line(one)}); start the same command again '
          'to resume, and if it fails again, leave the device out')
  for one in chain:
    if not isinstance(one, errors.UserError) and any(
        frame.f_globals.get('__name__') == 'jax._src.xla_bridge'
        for frame, _ in traceback.walk_tb(one.__traceback__)):
      return errors.UserError(_no_devices(one))
  return error


def in_flags(error: Exception, argv: list[str], flags: Any
             ) -> errors.UserError | str:
  """Returns a mistake in the flags of a command as one readable sentence.

  Args:
    error: what absl or ml_collections raised.
    argv: the command line.
    flags: absl's flags.
  """
  return _unknown_key(argv, flags) or _plain(error, flags)


def _chain(error: BaseException) -> Iterator[BaseException]:
  """Yields an error and what caused it, up to one raised `from None`."""
  seen: list[BaseException] = []
  one: BaseException | None = error
  while one is not None and one not in seen:
    seen.append(one)
    yield one
    one = one.__cause__ or (
        None if one.__suppress_context__ else one.__context__)


def _unknown_key(argv: list[str], flags: Any) -> errors.UserError | None:
  """Returns an error for the first override of a key that does not exist."""
  config: Any = None
  for flag, after in zip(argv[1:], [*argv[2:], '']):
    name, given, value = flag.lstrip('-').partition('=')
    value = value if given else after
    if name == 'config' and name in flags.FLAGS:
      try:
        config = flags.FLAGS[name].parser.parse(value)
        if not hasattr(config, 'keys'):   # loads the file
          return None
      except (AttributeError, KeyError) as e:   # of the file's own code
        return _in_config(flag if given else f'{flag}={value}', e)
      except (TypeError, ValueError, OSError):
        return None
    elif name.startswith('config.') and config is not None:
      node = config
      for key in name.split('.')[1:]:
        if not hasattr(node, 'keys') or key not in node:
          return errors.unknown(
              flag, key, sorted(getattr(node, 'keys', list)()))
        node = node[key]
  return None


def _in_config(flag: str, error: Exception) -> errors.UserError:
  """Returns an error for a config file whose own code fails."""
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  text = ' '.join(str(error.args[0] if error.args else error).split())
  if 'get_config' in text:
    text = ('the file has no function get_config, which returns the config; '
            'give a file such as configs/digits.py')
  return errors.UserError(f'{flag}: {text}')


def _plain(error: Exception, flags: Any) -> str:
  """Returns what absl or ml_collections raised, as one readable sentence."""
  text = str(error)
  if 'Failed loading config file' in text:
    path, why = text.split('Attempted [Relative path]:')[-1].split(None, 1)
    return (f'--config: cannot read {path!r} ({why.strip()}); give a file such '
            'as --config=configs/digits.py')
  if 'earlier failure to load: ' in text:
    return ('--config: cannot be read '
            f'({text.split("earlier failure to load: ")[1]}); give a file such '
            'as --config=configs/digits.py')
  if 'Traceback (most recent call last)' in text:
    flag = text.partition(': Error whilst')[0]
    last = text.strip().splitlines()[-1].partition('Error: ')[2]
    if 'get_config() takes 0 positional' in last:
      last = 'this config takes no argument after the colon'
    return f'{flag}: {last}'
  if isinstance(error, flags.UnrecognizedFlagError):
    end = '' if text.endswith('?') else ';'
    return f'{text.replace(" ?", "?")}{end} --help lists all flags'
  return text


def _out_of_memory(error: BaseException, flags: Any) -> str:
  """Returns what to lower, with its value."""
  known = flags.FLAGS if flags.FLAGS.is_parsed() else {}
  why = f'the memory of a device is used up ({_first_line(error)}); '
  if 'config' in known and known['config'].value:
    run = known['config'].value.get('run') or {}
    return why + (
        f'lower run.batch_size (now {run.get("batch_size")}), raise '
        f'run.micro_batches (now {run.get("micro_batches", 1)}), or set '
        'model.remat; python -m mixer.plan with the same --config tells what '
        'a device needs')
  if 'batch_size' in known:
    return why + f'lower --batch_size (now {known["batch_size"].value})'
  return why + 'use fewer images at a time, or a device with more memory'


def _no_devices(error: BaseException) -> str:
  """Returns what JAX was told to use, and why it cannot."""
  wanted = os.environ.get('JAX_PLATFORMS')
  why = _first_line(error) or 'there is none'
  if wanted:
    return (f'JAX_PLATFORMS={wanted}: JAX cannot use such a device: {why}; '
            'unset JAX_PLATFORMS to use the devices that are there, or '
            'install the JAX for this kind of device')
  return (f'JAX cannot use a device: {why}; check the driver and the '
          'installed JAX, or set JAX_PLATFORMS=cpu')


def _first_line(error: BaseException) -> str:
  return (str(error).strip().splitlines() or [''])[0][:200]
