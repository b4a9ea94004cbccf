"""Fine-tunes pre-trained weights as in appendix C of the paper (ViT's recipe).

  python -m mixer.main --config=configs/finetune.py:b16,cifar10 \\
    --config.data.dir=$DATA_DIR
  python -m mixer.main --config=configs/finetune.py:b16,folder=PHOTOS
  python -m mixer.study sweep --config=configs/finetune.py:b16,cifar10 \\
    --config.data.dir=$DATA_DIR

The config takes an argument, MODEL,DATASET, after a colon (default
b16,cifar10):

  MODEL    s32, s16, b32, b16, l32, l16 or h14. Only b16 and l16 have released
           ImageNet-21k weights. The others need --config.start.weights=WORKDIR
           (or a file). Weights of a network that is none of the paper's
           decide the widths and the patch size, whichever name is given.
  DATASET  imagenet2012, cifar10, cifar100, oxford_iiit_pet, oxford_flowers102;
           folder=PATH or manifest=PATH for your own images; or vtab-TASK for
           one of the 19 tasks of VTAB-1k (see TASKS below).

Training. SGD with momentum 0.9, gradient clipping at 1, batches of 512, softmax
loss, cosine decay to 0, no weight decay, and a new head that starts at zero.
Each image is resized to a square of 8/7 of the image size, cropped at random
and randomly mirrored. The paper does not state the warm-up, which is the
official code's here, or the crop, which is BiT's.

Learning rate. The paper tries a grid of rates on held-out training images.
`mixer.study sweep` does this; its settings are the `sweep` section, which
mixer.main ignores. Without a sweep the rate is 0.03, as in the official code,
and 0.01 for VTAB, as in ViT. The paper reports means of 3 runs; add
--config.run.seed=1 for another one.

Evaluation. As in table 2 of the paper, the whole image is resized to a square
of 8/7 of the image size, and the centre is cropped. For table 3, which resizes
the shorter side, add --config.evals.test.crop=resmall. The evaluation is called
`validation` instead of `test` for imagenet2012 and your own images. Table 2
uses 448 pixels: --config.run.image_size=448 enlarges the weights, and
--config.run.micro_batches=8 saves memory. VTAB uses 448 pixels, or 224 where
the images are smaller than 96x96, and is evaluated once, at the end.

Your own images are evaluated on their validation split, or on every tenth image
if they have none. A sweep chooses the learning rate on these images too, so its
final score is slightly too good. Hold out other images for an unbiased score.

The README lists the accuracy and the cost that the paper reports. This code
has not been run at that scale yet.
"""
import ml_collections

from configs import recipe

MODELS = {'s32': 'Mixer-S/32', 's16': 'Mixer-S/16', 'b32': 'Mixer-B/32',
          'b16': 'Mixer-B/16', 'l32': 'Mixer-L/32', 'l16': 'Mixer-L/16',
          'h14': 'Mixer-H/14'}
RELEASED = ('b16', 'l16')

# For each data set: steps (table 4 of ViT, https://arxiv.org/abs/2010.11929),
# percentage of the training images that a sweep trains on (the rest selects the
# learning rate), training splits, evaluation split. The paper trains on 2k
# images of Flowers: these are its two splits of 1,020 images.
DATASETS = {
    'imagenet2012': (20_000, 99, ('train',), 'validation'),
    'cifar10': (10_000, 98, ('train',), 'test'),
    'cifar100': (10_000, 98, ('train',), 'test'),
    'oxford_iiit_pet': (500, 90, ('train',), 'test'),
    'oxford_flowers102': (500, 90, ('train', 'validation'), 'test'),
}
OWN = ('folder', 'manifest')
RATES, VTAB_RATES = (0.003, 0.01, 0.03, 0.06), (0.003, 0.01, 0.03)

# For each VTAB-1k task, what differs from the default. 'small': its images have
# fewer than 96x96 pixels, so the run uses 224 pixels. 'noflip' and 'nocrop':
# the task leaves out an augmentation that would change its labels (BiT,
# https://arxiv.org/abs/1912.11370, appendix F). 'nocrop' also turns off the
# crop in evaluation.
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


def get_config(argument: str = 'b16,cifar10') -> ml_collections.ConfigDict:
  """Returns the config for 'MODEL,DATASET'.

  Raises:
    ValueError: if the model or the data set is unknown.
  """
  model, _, dataset = argument.partition(',')
  kind, _, path = dataset.partition('=')
  vtab, _, task = dataset.partition('-')
  own = kind in OWN and bool(path)
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
  # The empty string makes a run stop with an explanation unless the user sets
  # start.weights; None would train from scratch.
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


def _usual(c: ml_collections.ConfigDict, dataset: str) -> None:
  """Sets what a TFDS data set in DATASETS needs."""
  steps, percent, parts, test = DATASETS[dataset]
  c.data.update(name=dataset, split='+'.join(parts))
  c.evals = {test: recipe.evaluation(test, crop='resize_crop')}
  _length(c, steps)
  c.sweep = _sweep(RATES, train='+'.join(f'{p}[:{percent}%]' for p in parts),
                   dev='+'.join(f'{p}[{percent}%:]' for p in parts))


def _own(c: ml_collections.ConfigDict, name: str) -> None:
  """Sets what the user's own images need."""
  c.data.name = name
  c.evals.validation = recipe.evaluation('validation', crop='resize_crop')
  _length(c, 500)
  c.checkpoint.best = 'eval/validation/accuracy'
  # The sweep cannot hold out the end of 'train': folders are read class by
  # class, so it would hold only the last classes.
  c.sweep = _sweep(RATES, train='train', dev='validation')


def _vtab(c: ml_collections.ConfigDict, task: str) -> None:
  """Sets what a VTAB-1k task needs.

  A sweep trains on 800 images and chooses on 200. The final run trains on all
  1,000.
  """
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


def _length(c: ml_collections.ConfigDict, steps: int) -> None:
  """Sets the number of steps, and the warm-up and the periods to match."""
  short = steps == 500
  c.schedule.update(learning_rate=0.03, warmup_steps=100 if short else 500)
  c.run.update(total_steps=steps, log_every=10 if short else 50,
               eval_every=max(100, steps // 10))
  c.checkpoint.every = 100 if short else 500


def _sweep(rates: tuple[float, ...], *, train: str,
           dev: str) -> ml_collections.ConfigDict:
  """Returns the settings of `mixer.study sweep`, which training ignores."""
  return ml_collections.ConfigDict(dict(
      learning_rates=rates, train=train, dev=dev,
      metric='eval/dev/accuracy'))
