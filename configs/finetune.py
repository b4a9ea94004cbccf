"""Fine-tuning as in the paper (appendix C, which takes up ViT's recipe).

  python -m mixer.main --config=configs/finetune.py:b16,cifar10 \\
    --config.data.dir=$DATA_DIR
  python -m mixer.main --config=configs/finetune.py:b16,folder=PHOTOS
  python -m mixer.study sweep --config=configs/finetune.py:b16,cifar10 \\
    --config.data.dir=$DATA_DIR

Argument MODEL,DATASET (default b16,cifar10). MODEL: s32 s16 b32 b16 l32 l16
h14. ImageNet-21k weights are released for b16 and l16 only; the others take
--config.start.weights=WORKDIR, or a file. DATASET: imagenet2012, cifar10,
cifar100, oxford_iiit_pet, oxford_flowers102, folder=PATH or manifest=PATH of
your own images, or vtab-TASK for the 19 tasks of VTAB-1k (TASKS below).

SGD with momentum 0.9, clipping at 1, batches of 512, cosine to 0, no weight
decay, softmax, a new head that starts at zero. Images are resized to a square
of 8/7 of the size and cropped at random, and mirrored. The paper states neither
the warm-up (here that of the official code) nor the crop (here BiT's).

The paper picks each learning rate from a grid on held-out training images:
`mixer.study sweep` does that, with the `sweep` section, which plain training
ignores; without it the rate is the official code's 0.03, on VTAB ViT's 0.01.
The paper has means of 3 runs: --config.run.seed=1 is another.

Evaluation is the paper's table 2: the whole image to 8/7 of the size, then the
centre. Its table 3 resizes the shorter side instead:
--config.evals.test.crop=resmall; for ImageNet and your own images the name is
validation, not test. Table 2 is at 448 pixels: --config.run.image_size=448 (the
weights are enlarged), where --config.run.micro_batches=8 saves memory. VTAB is
at 448 except for images of less than 96x96 pixels, and is tested once, at the
end.

Your own images are tested on their validation split; if they have none, on
every tenth. A sweep chooses by the same images, so that its final score is a
little too good: hold out others for an honest one.
"""
import ml_collections

from configs import recipe

MODELS = {'s32': 'Mixer-S/32', 's16': 'Mixer-S/16', 'b32': 'Mixer-B/32',
          'b16': 'Mixer-B/16', 'l32': 'Mixer-L/32', 'l16': 'Mixer-L/16',
          'h14': 'Mixer-H/14'}
RELEASED = ('b16', 'l16')

# Steps (ViT, https://arxiv.org/abs/2010.11929, table 4), percent of the
# training images that learning rates are tried on (the rest judges them),
# splits of training, split of evaluation. The paper counts 2k Flowers, which
# are both its splits of 1,020.
DATASETS = {
    'imagenet2012': (20_000, 99, ('train',), 'validation'),
    'cifar10': (10_000, 98, ('train',), 'test'),
    'cifar100': (10_000, 98, ('train',), 'test'),
    'oxford_iiit_pet': (500, 90, ('train',), 'test'),
    'oxford_flowers102': (500, 90, ('train', 'validation'), 'test'),
}
OWN = ('folder', 'manifest')
RATES, VTAB_RATES = (0.003, 0.01, 0.03, 0.06), (0.003, 0.01, 0.03)

# The tasks of VTAB-1k, each with what differs: 'small', images of less than
# 96x96 pixels; 'noflip', 'nocrop' (BiT, https://arxiv.org/abs/1912.11370,
# appendix F). What is not cropped in training is shown whole in evaluation.
TASKS = {
    'caltech101': '', 'cifar100': 'small', 'dtd': '', 'oxford_flowers102': '',
    'oxford_iiit_pet': '', 'sun397': '', 'svhn': 'small',
    'patch_camelyon': '', 'eurosat': 'small', 'resisc45': '',
    'diabetic_retinopathy': '',
    'clevr_count': 'nocrop', 'clevr_distance': 'nocrop', 'dmlab': 'nocrop',
    'kitti': 'nocrop', 'dsprites_location': 'small noflip nocrop',
    'dsprites_orientation': 'small noflip', 'smallnorb_azimuth': 'noflip',
    'smallnorb_elevation': '',
}


def get_config(argument='b16,cifar10'):
  model, _, dataset = argument.partition(',')
  kind, _, path = dataset.partition('=')
  vtab, _, task = dataset.partition('-')
  own = kind in OWN and path
  if model not in MODELS or not (own or dataset in DATASETS or (
      vtab == 'vtab' and task in TASKS)):
    raise ValueError(
        f'config argument {argument!r}: expected MODEL,DATASET with MODEL one '
        f'of {", ".join(MODELS)} and DATASET one of {", ".join(DATASETS)}, '
        f'folder=PATH, manifest=PATH, or vtab-TASK with TASK one of '
        f'{", ".join(TASKS)}')
  c = recipe.base()
  name = MODELS[model]
  c.model.name = name
  # Of the others '' is refused with a remedy, unless something is given.
  c.start.update(weights=f'{name}-imagenet21k' if model in RELEASED else '',
                 dont_load='head/.*')
  c.optimizer.momentum_dtype = 'bfloat16'   # as in the official code
  c.data.crop = 'bit'
  c.augment.flip = True
  c.run.batch_size = 512
  if own:
    _own(c, f'{kind}:{path}')
  elif dataset in DATASETS:
    _usual(c, dataset)
  else:
    _vtab(c, task)
  return c


def _usual(c, dataset):
  """A data set by its name in TFDS."""
  steps, percent, parts, test = DATASETS[dataset]
  c.data.update(name=dataset, split='+'.join(parts))
  c.evals = {test: recipe.evaluation(test, crop='resize_crop')}
  _length(c, steps)
  c.sweep = _sweep(RATES, train='+'.join(f'{p}[:{percent}%]' for p in parts),
                   dev='+'.join(f'{p}[{percent}%:]' for p in parts))


def _own(c, name):
  """Somebody's image files."""
  c.data.name = name
  c.evals.validation = recipe.evaluation('validation', crop='resize_crop')
  _length(c, 500)
  c.checkpoint.best = 'eval/validation/accuracy'
  # Not the end of 'train': folders lie class by class.
  c.sweep = _sweep(RATES, train='train', dev='validation')


def _vtab(c, task):
  """800 images to train on and 200 to choose by, then all 1,000."""
  differs = TASKS[task].split()
  whole = 'nocrop' in differs
  c.data.update(name=f'vtab:{task}', split='train800val200',
                crop='resize' if whole else 'bit')
  c.augment.flip = 'noflip' not in differs
  c.evals.test = recipe.evaluation(
      'test', crop='resize' if whole else 'resize_crop')
  _length(c, 2500)
  c.schedule.learning_rate = 0.01
  c.run.update(image_size=224 if 'small' in differs else 448, eval_every=0)
  c.sweep = _sweep(VTAB_RATES, train='train800', dev='val200')


def _length(c, steps):
  """Steps, and the periods that go with them."""
  short = steps == 500
  c.schedule.update(learning_rate=0.03, warmup_steps=100 if short else 500)
  c.run.update(total_steps=steps, log_every=10 if short else 50,
               eval_every=max(100, steps // 10))
  c.checkpoint.every = 100 if short else 500


def _sweep(rates, *, train, dev):
  """What `mixer.study sweep` is told, and training ignores."""
  return ml_collections.ConfigDict(dict(
      learning_rates=rates, train=train, dev=dev,
      metric='eval/dev/accuracy'))
