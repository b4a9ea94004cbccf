"""The HTML page of near-duplicates."""
import base64
import html.parser
import io
import re

import photos
from PIL import Image

from mixer.images import thumbnails
from mixer.preparation import contact_sheet


class _Page(html.parser.HTMLParser):
  """The images, addresses and text of a page whose tags are balanced."""

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.addresses, self.text = [], [], [], ''
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.addresses += [v for k, v in attrs if k in ('src', 'href')]
    if tag == 'img':
      self.images.append(dict(attrs)['src'])
    elif tag not in ('meta', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_loads_nothing_and_shows_the_least_alike_pairs_first():
  removed = [
      dict(record=i, name=f'/d/<script>{i}', test=0, match=i, distance=i % 9,
           matches=1 + i % 2, against='a&b:test', match_name=f'm"{i}')
      for i in range(40)]
  uri = thumbnails.of_pixels(photos.crop(0, 300, 400))
  text = contact_sheet.make_page(
      'source', removed, listed='removed.jsonl', searched=12345, distance=16,
      most_pairs=30,
      thumbnails=lambda line: (uri, uri))
  page = _Page(text)
  assert len(page.images) == 60 and set(page.addresses) == {uri}
  assert 'url(' not in text and '<script' not in text
  for part in ('40 near-duplicates in source', '12,345', 'a&b:test', '30 of 40',
               '<script>7', 'm"7', '1 more match'):
    assert part in page.text
  distances = [int(d) for d in re.findall(r'(\d+) bits,', page.text)]
  assert distances == sorted((i % 9 for i in range(40)), reverse=True)[:30]


def test_thumbnails_are_small_and_keep_the_shape():
  uri = thumbnails.of_pixels(photos.crop(0, 300, 400))
  file = base64.b64decode(uri.partition(',')[2])
  with Image.open(io.BytesIO(file)) as image:
    assert max(image.size) <= 200 and image.width * 3 == image.height * 4
