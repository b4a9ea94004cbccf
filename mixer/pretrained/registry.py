"""The Mixer weights that others have released: what they really are.

Sources: VT, the README of google-research/vision_transformer; BV, big_vision's
models/mlp_mixer.py; TIMM, the results tables and model entries of
pytorch-image-models; PAPER, https://arxiv.org/abs/2105.01601v4, table 3;
AUTHOR, an author of the paper in timm's pull request 651. What nobody could
verify is UNVERIFIED.

The JFT weights, H/14, L/32 and everything at 448 pixels are unreleased.
"""
import dataclasses
import importlib.resources
import os
import re

from mixer.core import errors

UNVERIFIED = 'unverified'
_HASHED = re.compile(r'[^/]*-[0-9a-f]{8}\.pth$')
_GOOGLE = 'https://storage.googleapis.com/mixer_models/'
_FILES = 'https://github.com/huggingface/pytorch-image-models/releases/download'
_TIMM, _MIIL = f'{_FILES}/v0.1-vitjx/jx_mixer_', f'{_FILES}/v0.1-tresnet/'

# What a network expects of its images; the crop and interpolation are
# `mixer.images.eval_crops`'. timm's bilinear is Pillow's, antialiased.
_OFFICIAL = dict(crop='resmall', interpolation='area', scale='(-1, 1)')
_UNIT = dict(crop='resmall', interpolation='bilinear_antialias',
             scale='(0, 1)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
  """Weights that somebody has released.

  Attributes:
    name: ours, 'Mixer-B/16-imagenet21k'.
    url: of the file.
    also: other addresses of the same weights.
    data: what they were trained on.
    num_classes: of the head.
    top1: ImageNet validation accuracy in percent, or UNVERIFIED, or None where
      the head is not ImageNet's.
    conditions: of `top1`, and whence it is known.
    note: what one should know, such as a wrong public name.
    preprocessing: what the network expects of its images.
    approximate_gelu: whether it was trained with the tanh form.
    loss: of its training: probabilities are its sigmoid's or softmax's.
    source: who says so.
  """
  name: str
  url: str
  also: tuple = ()
  data: str
  num_classes: int
  top1: float | str | None
  conditions: str
  note: str = ''
  preprocessing: dict
  approximate_gelu: bool = True
  loss: str
  source: str

  @property
  def model(self):
    """The name of the architecture, 'Mixer-B/16'."""
    return '-'.join(self.name.split('-')[:2])


def _google(name, folder, **more):
  file = name.split('-')[1].replace('/', '_')
  return Release(name=name, url=f'{_GOOGLE}{folder}/Mixer-{file}.npz',
                 preprocessing=_OFFICIAL, **more)


_SCRATCH = ('ImageNet-1k from scratch, 300 epochs. timm calls the same weights '
            'goog_in21k_ft_in1k, which they are not: ImageNet-21k weights '
            'fine-tuned on ImageNet were never released, an author says; '
            "timm's old mixer_b16_224_in21k and mixer_l16_224_in21k are these")
_HEAD_21K = ('the head has 21,843 classes; their order is not published with '
             'the weights, so classes have no names; that the loss was the '
             'sigmoid is not stated for Mixer')
_LIKE = ("; that they were trained on the other releases' images and GELU is "
         'an assumption')
_SAM = ('trained with sharpness-aware minimisation; users measured 68.9% to '
        '75.6% with their own preprocessing, the SAM paper has 77.4%' + _LIKE)
_PIXELS = 'made for pixels in [0, 1], which its stem here takes in [-1, 1]'
_GSAM = ('the number of classes is from memory; the paper is arXiv 2203.08065'
         + _LIKE)

RELEASES = tuple(
    [_google(f'Mixer-{m}-imagenet1k', 'imagenet1k', data='ImageNet-1k',
             num_classes=1000, top1=top1, loss='sigmoid', note=_SCRATCH,
             conditions='PAPER; timm measures '
             f'{timm} with bicubic, 256 to 224', source='VT, BV, AUTHOR',
             also=(_TIMM + file, f'hf://timm/{hub}.goog_in21k_ft_in1k'))
     for m, top1, timm, file, hub in (
         ('B/16', 76.44, 76.62, 'b16_224-76587d61.pth', 'mixer_b16_224'),
         ('L/16', 71.76, 72.08, 'l16_224-92f9adc4.pth', 'mixer_l16_224'))]
    + [_google(f'Mixer-{m}-imagenet21k', 'imagenet21k', data='ImageNet-21k',
               num_classes=21_843, top1=None, loss='sigmoid', note=_HEAD_21K,
               conditions=f'after fine-tuning the paper has {tuned}',
               source='VT, BV; the classes from TIMM',
               also=(_TIMM + file, f'hf://timm/{hub}.goog_in21k'))
       for m, tuned, file, hub in (
           ('B/16', 80.64, 'b16_224_in21k-617b3de2.pth', 'mixer_b16_224'),
           ('L/16', 82.89, 'l16_224_in21k-846aa33c.pth', 'mixer_l16_224'))]
    + [_google(f'Mixer-{m}-sam', 'sam', data='ImageNet-1k with SAM',
               num_classes=1000, top1=UNVERIFIED, conditions='', note=_SAM,
               loss=UNVERIFIED, source='public loaders of the files')
       for m in ('B/16', 'B/32')]
    + [_google(f'Mixer-{m}-gsam', 'gsam', data='ImageNet-1k with GSAM',
               num_classes=1000, top1=UNVERIFIED, conditions='', note=_GSAM,
               loss=UNVERIFIED, source=UNVERIFIED)
       for m in ('S/8', 'S/16', 'S/32', 'B/16', 'B/32')]
    + [Release(name='Mixer-B/16-imagenet21k-miil',
               url='hf://timm/mixer_b16_224.miil_in21k',
               also=(_MIIL + 'mixer_b16_224_miil_in21k-2a558a71.pth',),
               data='ImageNet-21k-P', num_classes=11_221, top1=None,
               conditions='', preprocessing=_UNIT, approximate_gelu=False,
               loss='softmax', source='TIMM',
               note='classes are those of ImageNet-21k-P, unnamed here; '
               + _PIXELS),
       Release(name='Mixer-B/16-imagenet1k-miil',
               url='hf://timm/mixer_b16_224.miil_in21k_ft_in1k',
               also=(_MIIL + 'mixer_b16_224_miil-9229a591.pth',),
               data='ImageNet-21k-P, then ImageNet-1k', num_classes=1000,
               top1=82.314, conditions='TIMM, bilinear, 256 to 224',
               preprocessing=_UNIT, approximate_gelu=False, loss='softmax',
               note=_PIXELS, source='TIMM')])


def names():
  """The names of all releases."""
  return tuple(r.name for r in RELEASES)


def find(name):
  """The release of this name, or that lies at this address, or in this file (of
  timm's, whose names hold their checksums); None if none does.

  Raises:
    UserError: if it looks like one of our names and is none.
  """
  address = _plain(name)
  for release in RELEASES:
    places = release.url, *release.also
    if address in (release.name, *places, *(
        place.rpartition('/')[2] for place in places if _HASHED.search(place))):
      return release
  if re.fullmatch('Mixer-[A-Z]/[^/.]+', name) and not os.path.exists(name):
    raise errors.unknown('weights', name, names())
  return None


def _plain(address):
  """One form of the many that an address of the same file may have."""
  if '://' in address:
    address = re.sub(r'[?#].*', '', address)
  elif _HASHED.fullmatch(os.path.basename(address)):
    return os.path.basename(address)
  address = address.replace('gs://mixer_models/', _GOOGLE)
  address = address.replace('github.com/rwightman/', 'github.com/huggingface/')
  address = re.sub('^https://huggingface.co/', 'hf://', address)
  address = re.sub('^(hf://[^/]+/[^/@]+)(@main)?(/(resolve|blob)/main)?'
                   '(/model.safetensors)?$', r'\1', address)
  return address


def class_names(release):
  """Of ImageNet-1k, 'n01440764 tench' and so on; else None.

  The synsets are in the order of ImageNet's own list, which is theirs
  alphabetically; the words are WordNet's first for each.
  """
  if release.num_classes != 1000:
    return None
  text = importlib.resources.files(__package__).joinpath('imagenet1k.txt')
  return tuple(text.read_text().splitlines())
