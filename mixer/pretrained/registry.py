"""The Mixer weights that others have released, and what is known about them.

Sources: VT is the README of google-research/vision_transformer; BV is
big_vision's models/mlp_mixer.py; TIMM is the results tables and model entries
of pytorch-image-models; PAPER is table 3 of https://arxiv.org/abs/2105.01601v4;
AUTHOR is an author of the paper in timm's pull request 651. Facts that could
not be verified are marked UNVERIFIED.

The JFT weights, H/14, L/32 and everything at 448 pixels were never released.
"""
import dataclasses
import importlib.resources
import os
import re
from typing import Any

from mixer.core import errors

UNVERIFIED = 'unverified'
_HASHED = re.compile(r'[^/]*-[0-9a-f]{8}\.pth$')
_GOOGLE = 'https://storage.googleapis.com/mixer_models/'
_FILES = 'https://github.com/huggingface/pytorch-image-models/releases/download'
_TIMM, _MIIL = f'{_FILES}/v0.1-vitjx/jx_mixer_', f'{_FILES}/v0.1-tresnet/'

# What a network expects of its images; crop and interpolation are those of
# `mixer.images.eval_crops`. timm's bilinear is Pillow's, which antialiases.
_OFFICIAL = dict(crop='resmall', interpolation='area', scale='(-1, 1)')
_UNIT = dict(crop='resmall', interpolation='bilinear_antialias',
             scale='(0, 1)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
  """Weights that somebody has released.

  Attributes:
    name: the name here, such as 'Mixer-B/16-imagenet21k'.
    url: address of the file.
    also: other addresses of the same weights.
    data: the data that they were trained on.
    num_classes: width of the head.
    top1: ImageNet validation accuracy in percent, or UNVERIFIED, or None where
      the head has other classes than ImageNet-1k.
    conditions: how `top1` was measured, and by whom.
    note: what users should know, such as a misleading public name.
    preprocessing: what the network expects of its images.
    approximate_gelu: whether it was trained with the tanh form of GELU.
    loss: 'softmax' or 'sigmoid', which turns logits into probabilities; or
      UNVERIFIED.
    source: where these facts are from.
  """
  name: str
  url: str
  also: tuple[str, ...] = ()
  data: str
  num_classes: int
  top1: float | str | None
  conditions: str
  note: str = ''
  preprocessing: dict[str, str]
  approximate_gelu: bool = True
  loss: str
  source: str

  @property
  def model(self) -> str:
    """The name of the network, such as 'Mixer-B/16'."""
    return '-'.join(self.name.split('-')[:2])


def _google(name: str, folder: str, **more: Any) -> Release:
  file = name.split('-')[1].replace('/', '_')
  return Release(name=name, url=f'{_GOOGLE}{folder}/Mixer-{file}.npz',
                 preprocessing=_OFFICIAL, **more)


_SCRATCH = ('trained on ImageNet-1k from scratch for 300 epochs. timm calls '
            'the same weights goog_in21k_ft_in1k, which they are not: an '
            'author says that ImageNet-21k weights fine-tuned on ImageNet were '
            "never released; timm's old mixer_b16_224_in21k and "
            'mixer_l16_224_in21k are these weights too')
_HEAD_21K = ('the head has 21,843 classes; their order was not published with '
             'the weights, so the classes have no names; no source says that '
             'the loss of Mixer was the sigmoid')
_LIKE = ('; that they were trained with the preprocessing and the GELU of the '
         'other releases is an assumption')
_SAM = ('trained with sharpness-aware minimisation; users measured 68.9% to '
        '75.6% with their own preprocessing, the SAM paper has 77.4%' + _LIKE)
_PIXELS = ('trained with pixels in [0, 1]; the stem is changed here for pixels '
           'in [-1, 1]')
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
               note='the classes are those of ImageNet-21k-P, without names; '
               + _PIXELS),
       Release(name='Mixer-B/16-imagenet1k-miil',
               url='hf://timm/mixer_b16_224.miil_in21k_ft_in1k',
               also=(_MIIL + 'mixer_b16_224_miil-9229a591.pth',),
               data='ImageNet-21k-P, then ImageNet-1k', num_classes=1000,
               top1=82.314, conditions='TIMM, bilinear, 256 to 224',
               preprocessing=_UNIT, approximate_gelu=False, loss='softmax',
               note=_PIXELS, source='TIMM')])


def names() -> tuple[str, ...]:
  """Returns the names of all releases."""
  return tuple(r.name for r in RELEASES)


def find(name: str) -> Release | None:
  """Returns the release of a name, or None.

  Args:
    name: of a release; or an address of one; or a path of one of timm's files,
      which are known by the checksums in their names.

  Raises:
    UserError: if the name has the form of a release's but is unknown.
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


def _plain(address: str) -> str:
  """Returns the same form for all the addresses that a file may have."""
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


def class_names(release: Release) -> tuple[str, ...] | None:
  """Returns the class names of ImageNet-1k, or None for other classes.

  A name is a synset and WordNet's first word for it, 'n01440764 tench'. They
  are in ImageNet's order, which is the alphabetical order of synsets.
  """
  if release.num_classes != 1000:
    return None
  text = importlib.resources.files(__package__).joinpath('imagenet1k.txt')
  return tuple(text.read_text().splitlines())
