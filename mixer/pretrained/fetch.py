"""Files of weights from the web, kept in a cache and checked.

When a file is fetched for the first time, its SHA-256 is pinned beside it in
the cache; from then on the file has to match. The names of PyTorch's files also
hold the beginning of their SHA-256: mixer_b16_224-76587d61.pth.
"""
import contextlib
import hashlib
import os
import re
import shutil
from typing import Any
import urllib.error
import urllib.parse
import urllib.request
import uuid

from etils import epath

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.pretrained import headers

_TIMEOUT = 60   # seconds without a byte
_BUCKETS = 'https://storage.googleapis.com/'
_HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.(pth|pt)([?#].*)?$')
_DEFAULT_FILE = 'model.safetensors'   # of a repository on the Hugging Face hub


def is_url(path: str) -> bool:
  """Returns whether `local` is needed to read the path."""
  return path.startswith(('https://', 'http://', 'gs://', 'hf://'))


def cached(url: str) -> bool:
  """Returns whether the file is in the cache."""
  return os.path.exists(_place(_of_file(url)))


def local(url: str) -> str:
  """Returns the path of a local copy, fetched if there is none yet.

  Args:
    url: 'https://...', 'gs://BUCKET/PATH' (public buckets need no
      credentials), or 'hf://OWNER/NAME[@REVISION][/FILE]', by default the
      file 'model.safetensors'.

  Raises:
    UserError: if the file cannot be fetched, is a web page or a Git LFS
      pointer, or its checksum is wrong.
  """
  url = _of_file(url)
  named = _checksum_in_name(url)
  path = _place(url)
  folder, pin = os.path.dirname(path), path + '.sha256'
  if os.path.exists(path) and headers.stand_in(path):
    for old in (path, pin):   # kept before files were looked at
      with contextlib.suppress(FileNotFoundError):
        os.remove(old)
  pinned = files.read(pin)
  if not os.path.exists(path):
    # Several processes may fetch the same file, each to a name of its own.
    part = f'{path}.{uuid.uuid4().hex}'
    log.info('fetching %s', url)
    try:
      os.makedirs(folder, exist_ok=True)
      _fetch(url, part)
      other = headers.stand_in(part)
      if other:
        raise errors.UserError(
            f'{url!r} answers with {other}, not a file of weights; nothing is '
            f'kept as {path!r}. Give the address of the file itself')
      _check(part, url, named, pinned)
      os.replace(part, path)
    except OSError as e:
      raise errors.UserError(
          f'{url!r} cannot be kept in {folder!r}: {e.strerror or e}; set '
          'XDG_CACHE_HOME to another directory') from e
    finally:
      with contextlib.suppress(OSError):
        os.remove(part)
  else:
    _check(path, url, named, pinned)
  if pinned is None:
    files.write(pin, _digest(path) + '\n')
  return path


def beside(url: str, name: str) -> str | None:
  """Returns the path of a local copy of another file of the same folder on the
  Hugging Face hub; None if there is none, or the folder is elsewhere.

  Args:
    url: of a file, as `local` takes it.
    name: of the other file.

  Raises:
    UserError: if it cannot be fetched for another reason than that there is no
      such file, or its checksum is wrong.
  """
  url = _of_file(url)
  if url.startswith('hf://'):
    repository, revision, file = _on_hub(url)
    at = f'@{revision}' if revision else ''
    url = f'hf://{repository}{at}/{file}'
  elif not url.startswith('https://huggingface.co/'):
    return None
  url = f'{url.rpartition("/")[0]}/{name}'
  path = _place(url)
  if not os.path.exists(path):
    try:
      local(url)
    except errors.UserError as e:
      why: Any = e.__cause__
      if 404 not in (getattr(why, 'code', None), getattr(
          getattr(why, 'response', None), 'status_code', None)):
        raise
      files.write(path, '')   # so it is asked for once
  return path if os.path.getsize(path) else None


def _of_file(url: str) -> str:
  """Returns the address of a file, also if given the page that shows it on the
  Hugging Face hub."""
  return re.sub('^(https://huggingface.co/[^/]+/[^/]+)/blob/', r'\1/resolve/',
                url)


def check_name(path: str) -> None:
  """Checks a local file by the checksum that its name may hold.

  Raises:
    UserError: if the file does not match, or there is no such file.
  """
  named = _checksum_in_name(path)
  headers.check_kind(path)
  if named and not _digest(path).startswith(named):
    raise errors.UserError(
        f'{path!r}: its SHA-256 is {_digest(path)[:16]}..., but its name says '
        f'{named}: the file is damaged, or it is another one')


def _checksum_in_name(url: str) -> str | None:
  found = _HASH_IN_NAME.search(url)
  return found[1] if found else None


def _place(url: str) -> str:
  """Returns where the cache keeps a file."""
  name = hashlib.sha256(url.encode()).hexdigest()[:16]
  return os.path.join(files.cache(), 'weights', name, _basename(url))


def _check(path: str, url: str, named: str | None,
           pinned: str | None) -> None:
  """Raises a UserError if a file does not match one of two checksums."""
  digest = _digest(path)
  for expected, source in ((named, 'its name'),
                           (pinned, 'the first time it was fetched')):
    if expected and not digest.startswith(expected.strip()):
      raise errors.UserError(
          f'{url!r}: its SHA-256 is {digest[:16]}..., but {source} says '
          f'{expected.strip()[:16]}...: the file is damaged or has changed. If '
          f'you trust it, remove {os.path.dirname(path)!r} and fetch it again')


def _digest(path: str) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def _basename(url: str) -> str:
  if url.startswith('hf://'):
    return os.path.basename(_on_hub(url)[2])
  name = os.path.basename(urllib.parse.urlparse(url).path)
  return 'weights' if name in ('', '.', '..') else name


def _fetch(url: str, part: str) -> None:
  try:
    if url.startswith('hf://'):
      _from_hub(url, part)
    elif url.startswith('gs://'):
      _from_bucket(url, part)
    else:
      _from_web(url, part)
  except errors.UserError:
    raise
  except Exception as e:   # three libraries raise all kinds
    why = ' '.join(str(e).split())[:300] or type(e).__name__
    raise errors.UserError(f'{url!r} cannot be fetched: {why}; if you have the '
                           'file, give its path instead') from e


def _from_web(url: str, part: str) -> None:
  with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
    expected = response.headers.get('Content-Length')
    with open(part, 'wb') as out:
      shutil.copyfileobj(response, out, 2**20)
  # urllib does not complain if a connection ends early.
  if expected is not None and os.path.getsize(part) != int(expected):
    raise OSError(f'only {os.path.getsize(part)} of {expected} bytes arrived')


def _from_bucket(url: str, part: str) -> None:
  """Fetches a public object over the web, any other with the user's
  credentials."""
  try:
    _from_web(_BUCKETS + urllib.parse.quote(url.removeprefix('gs://')), part)
  except urllib.error.HTTPError as e:
    if e.code not in (401, 403):
      raise
    epath.Path(url).copy(part, overwrite=True)


def _from_hub(url: str, part: str) -> None:
  try:
    import huggingface_hub
  except ImportError as e:
    raise errors.UserError(
        f'{url!r} needs huggingface_hub, which is not installed: pip install '
        'huggingface_hub') from e
  repository, revision, name = _on_hub(url)
  shutil.copyfile(huggingface_hub.hf_hub_download(
      repository, name, revision=revision), part)


def _on_hub(url: str) -> tuple[str, str | None, str]:
  """Returns (repository, revision or None, file)."""
  parts = url.removeprefix('hf://').split('/')
  if len(parts) < 2 or not all(parts[:2]):
    raise errors.UserError(f'{url!r}: expected hf://OWNER/NAME[@REVISION]'
                           '[/FILE]')
  name, _, revision = parts[1].partition('@')
  return (f'{parts[0]}/{name}', revision or None,
          '/'.join(parts[2:]) or _DEFAULT_FILE)
