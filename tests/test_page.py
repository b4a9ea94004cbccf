"""HTML pages show text as it is and need no other file."""
import html.parser

from mixer.core import page


class _Parsed(html.parser.HTMLParser):
  """The text of a page whose tags are balanced."""

  def __init__(self, source):
    super().__init__()
    self.open, self.text = [], ''
    self.feed(source)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    if tag != 'meta':
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_a_file_name_that_is_not_text_can_be_written():
  assert page.escape('a\udcff<') == 'a\\udcff&lt;'


def test_a_page_shows_text_that_looks_like_html_as_it_is():
  made = page.make('a <b> & "c"', 'about <i>', [page.fact('<1>', 'x & y')],
                   ['<figure>one</figure>'], 'figure { margin: 0 }')
  text = _Parsed(made).text
  for part in ('a <b> & "c"', 'about <i>', '<1>', 'x & y', 'one'):
    assert part in text
  assert 'figure { margin: 0 }' in made
  assert 'http' not in made and 'url(' not in made and '<script' not in made
