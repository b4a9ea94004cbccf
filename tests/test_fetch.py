"""Fetching weights: real HTTP on loopback, a cache, and checksums."""
import hashlib
import http.server
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.pretrained import fetch
from mixer.pretrained import formats

DATA = b'weights' * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
COMMIT = 'c' * 40


class Server:
  """Serves files over HTTP, with the headers of the Hugging Face hub.

  Attributes:
    files: {path: bytes, or the status of an error}.
    cut: paths of which only half the bytes are sent.
    asked: the paths that were asked for.
    address: 'http://HOST:PORT'.
  """

  def __init__(self):
    self.files, self.asked, self.cut = {}, [], set()
    server = self

    class Handler(http.server.BaseHTTPRequestHandler):

      def do_GET(self):
        server.asked.append(self.path)
        data = server.files.get(self.path, 404)
        self.send_response(data if isinstance(data, int) else 200)
        body = b'' if isinstance(data, int) else data
        self.send_header('Content-Length', str(len(body)))
        self.send_header('ETag', f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header('X-Repo-Commit', COMMIT)
        if data == 404:
          self.send_header('X-Error-Code', 'EntryNotFound')
        self.end_headers()
        if self.command == 'GET':
          cut = self.path in server.cut
          self.wfile.write(body[:len(body) // 2] if cut else body)

      do_HEAD = do_GET

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.address = f'http://127.0.0.1:{self.http.server_port}'
    threading.Thread(target=self.http.serve_forever, daemon=True).start()

  def stop(self):
    self.http.shutdown()
    self.http.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A server, with an empty cache in `tmp_path` and no proxy."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(name, raising=False)
  running = Server()
  yield running
  running.stop()


def cached(tmp_path):
  """{name: path} of the files in the cache."""
  return {path.name: path for path in (tmp_path / 'cache').rglob('*')
          if path.is_file()}


def refused(url):
  """The error for a URL, one line that names it."""
  with pytest.raises(errors.UserError) as error:
    fetch.local(url)
  assert url in str(error.value) and '\n' not in str(error.value)
  return str(error.value)


def test_a_file_is_fetched_once(server, tmp_path):
  server.files['/some/w.npz'] = DATA
  url = f'{server.address}/some/w.npz'
  path = fetch.local(url)
  assert path.startswith(str(tmp_path / 'cache' / 'mlp-mixer'))
  with open(path, 'rb') as f:
    assert f.read() == DATA
  assert server.asked == ['/some/w.npz']
  assert cached(tmp_path).keys() == {'w.npz', 'w.npz.sha256'}
  assert cached(tmp_path)['w.npz.sha256'].read_text().strip() == DIGEST
  server.stop()
  assert fetch.local(url) == path


def test_files_of_the_same_name_are_kept_apart(server):
  for folder in 'ab':
    server.files[f'/{folder}/w.npz'] = folder.encode()
  a, b = (fetch.local(f'{server.address}/{folder}/w.npz') for folder in 'ab')
  assert open(a).read() == 'a' and open(b).read() == 'b'


def test_another_file_at_the_same_address_is_refused(server, tmp_path):
  """The checksum of the first is kept, even if the file itself is removed."""
  server.files['/w.npz'] = DATA
  url = f'{server.address}/w.npz'
  path = fetch.local(url)
  os.remove(path)
  server.files['/w.npz'] = DATA + b'!'
  line = refused(url)
  assert DIGEST[:16] in line and 'the first time it was fetched' in line
  assert os.path.dirname(path) in line
  assert cached(tmp_path).keys() == {'w.npz.sha256'}
  server.files['/w.npz'] = DATA
  assert fetch.local(url) == path


def test_a_damaged_file_in_the_cache_is_refused(server):
  server.files['/w.npz'] = DATA
  url = f'{server.address}/w.npz'
  path = fetch.local(url)
  with open(path, 'r+b') as f:
    f.seek(99)
    f.write(b'?')
  assert 'the first time it was fetched' in refused(url)


def test_a_file_has_to_match_the_checksum_in_its_name(server, tmp_path):
  right, wrong = f'/m_224-{DIGEST[:8]}.pth', '/m_224-01234567.pth'
  server.files[right] = server.files[wrong] = DATA
  fetch.local(server.address + right)
  assert 'says 01234567' in refused(server.address + wrong)
  wrong += '?download=true'
  server.files[wrong] = DATA
  assert 'says 01234567' in refused(server.address + wrong)
  assert not any('01234567' in name for name in cached(tmp_path))


def test_failed_downloads_leave_nothing_in_the_cache(server, tmp_path):
  server.files.update({'/cut.npz': DATA, '/busy.npz': 503})
  server.cut.add('/cut.npz')
  assert '404' in refused(f'{server.address}/none.npz')
  assert '503' in refused(f'{server.address}/busy.npz')
  assert f'of {len(DATA)} bytes' in refused(f'{server.address}/cut.npz')
  assert cached(tmp_path) == {}
  server.stop()
  assert 'cannot be fetched' in refused(f'{server.address}/none.npz')


def test_a_public_object_in_a_bucket_needs_no_credentials(server, monkeypatch):
  """Also if its name has characters that URLs escape."""
  monkeypatch.setattr(fetch, '_BUCKETS', server.address + '/')
  server.files['/models/a%20folder/w.npz'] = DATA
  path = fetch.local('gs://models/a folder/w.npz')
  assert open(path, 'rb').read() == DATA
  assert '404' in refused('gs://models/none.npz')


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
  """The server, which huggingface_hub takes for its hub."""
  from huggingface_hub import constants
  monkeypatch.setattr(constants, 'ENDPOINT', server.address)
  monkeypatch.setattr(
      constants, 'HUGGINGFACE_CO_URL_TEMPLATE',
      server.address + '/{repo_id}/resolve/{revision}/{filename}')
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
  return server


def test_files_of_the_hub_by_repository_revision_and_name(hub, tmp_path):
  hub.files.update({
      '/timm/mixer/resolve/main/model.safetensors': DATA,
      '/timm/mixer/resolve/v1/sub/w.npz': b'older'})
  path = fetch.local('hf://timm/mixer')
  assert os.path.basename(path) == 'model.safetensors'
  assert open(path, 'rb').read() == DATA
  path = fetch.local('hf://timm/mixer@v1/sub/w.npz')
  assert os.path.basename(path) == 'w.npz'
  assert open(path, 'rb').read() == b'older'
  assert {'model.safetensors', 'w.npz'} <= cached(tmp_path).keys()
  assert 'cannot be fetched' in refused('hf://timm/none')
  for bad in ('hf://timm', 'hf:///mixer', 'hf://timm/'):
    assert 'expected hf://OWNER/NAME' in refused(bad)


def test_a_file_beside_another_on_the_hub_is_asked_for_once(hub):
  """Also if there is none. Another error is none of these."""
  at = '/timm/{}/resolve/main/config.json'.format
  hub.files.update({at('mixer'): b'{}', at('odd'): 403})
  for _ in range(2):
    path = fetch.beside('hf://timm/mixer/model.safetensors', 'config.json')
    assert open(path, 'rb').read() == b'{}'
    assert fetch.beside('hf://timm/none', 'config.json') is None
  assert len(set(hub.asked)) == 2 and len(hub.asked) <= 3
  with pytest.raises(errors.UserError, match='config.json.*cannot be fetched'):
    fetch.beside('hf://timm/odd', 'config.json')
  assert fetch.beside('https://timm/odd/model.pth', 'config.json') is None


def test_the_hub_needs_its_library(server, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert 'pip install huggingface_hub' in refused('hf://timm/mixer')


def test_a_network_is_opened_by_its_address(server, tmp_path):
  """Its model is inferred from shapes; a web page in its place is refused."""
  model = models.create('Mixer-S/8', hidden_dim=8, num_blocks=1, num_classes=3,
                        tokens_mlp_dim=4, channels_mlp_dim=4)
  params = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))['params']
  formats.save(str(tmp_path / 'w.npz'), params)
  server.files['/w.npz'] = (tmp_path / 'w.npz').read_bytes()
  network = pretrained.open_network(f'{server.address}/w.npz')
  assert network.image_size == (16, 16) and network.model.num_classes == 3
  assert np.array_equal(network.params['stem']['kernel'],
                        params['stem']['kernel'])
  server.files['/page.npz'] = b'<html>sign in</html>'
  with pytest.raises(errors.UserError, match='page.npz'):
    pretrained.open_network(f'{server.address}/page.npz')


@pytest.mark.parametrize('body, what', (
    (b'\n<!DOCTYPE html><html>sign in</html>', 'a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
     'a Git LFS pointer')))
def test_a_page_in_place_of_weights_is_named_and_not_kept(
    server, tmp_path, body, what):
  server.files['/w.pth'] = body
  url = f'{server.address}/w.pth'
  with pytest.raises(errors.UserError, match=what) as e:
    fetch.local(url)
  assert url in str(e.value) and str(tmp_path / 'cache') in str(e.value)
  assert not cached(tmp_path)
  (tmp_path / 'w.pth').write_bytes(body)
  with pytest.raises(errors.UserError, match=f'w.pth.* is {what}'):
    formats.read(str(tmp_path / 'w.pth'))


def test_a_page_that_was_cached_is_fetched_again(server):
  server.files['/w.npz'] = DATA
  url = f'{server.address}/w.npz'
  path = fetch.local(url)
  with open(path, 'wb') as f:
    f.write(b'<html>')
  with open(path + '.sha256', 'w') as f:
    f.write(hashlib.sha256(b'<html>').hexdigest())
  with open(fetch.local(url), 'rb') as f:
    assert f.read() == DATA
  with open(path + '.sha256') as f:
    assert f.read().strip() == DIGEST
