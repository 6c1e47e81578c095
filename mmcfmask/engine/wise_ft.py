"""WiSE-FT: evaluate interpolations of the pretrained and the fine-tuned weights (Wortsman et al., CVPR 2022)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmpretrain.registry import HOOKS, LOOPS, MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from ..models import CLIPDistillHead
from ..models.interpolation import check_same_model
from .checkpoints import check_checkpoint, inherited_meta
from .hooks import unwrapped
from .test_loop import Clock, MultiSetTestLoop, split_metrics
from .testing import build_model
from .values import is_a
from .weight_line import WeightLine, own_weights
from .wise_ft_results import DEFAULT_ALPHA, save_interpolated, write_results


def parse_alphas(texts: Sequence[str | float]) -> list[float]:
    """Read ``['0:1:0.25']`` (first, last, step; with both ends) or ``['0', '0.5', '1']`` as sorted numbers in [0, 1].

    Raises:
        ConfigError: Not numbers, outside [0, 1], or a step that does not lead from the first to the last.
    """
    alphas = []
    for text in texts:
        try:
            parts = [float(part) for part in str(text).split(':')]
        except ValueError:
            parts = []
        if len(parts) == 1:
            alphas += parts
        elif (
            len(parts) == 3
            and parts[2] > 0
            and 0 < (parts[1] - parts[0]) / parts[2] < 1e3
            and math.isclose((parts[1] - parts[0]) / parts[2], round((parts[1] - parts[0]) / parts[2]), abs_tol=1e-6)
        ):
            steps = round((parts[1] - parts[0]) / parts[2])
            alphas += [parts[0] + (parts[1] - parts[0]) * step / steps for step in range(steps + 1)]
        else:
            raise ConfigError(
                f'alphas: {text!r} is neither a number nor FIRST:LAST:STEP with a step that leads from the first to '
                'the last, in at most 1000 steps'
            )
    alphas = sorted({round(alpha, 6) for alpha in alphas})
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):  # NaN is not
        raise ConfigError(
            'alphas must lie in [0, 1] (0 is the pretrained model, 1 the fine-tuned one), got '
            f'{" ".join(map(str, texts))}'
        )
    return alphas


def pretrained_weights(model: dict) -> dict[str, Tensor]:
    """Return θ0, the pretrained weights of a model config, on the CPU.

    Raises:
        ConfigError: The config has no pretrained head.
    """
    head = model.get('head') or {}
    if is_a(CLIPDistillHead, head.get('type'), MODELS) and head.get('class_weights') is None:
        raise ConfigError(
            'the pretrained weights are needed, but model.head.class_weights=None leaves the head random: give it '
            'class embeddings'
        )
    return build_model(copy.deepcopy(model)).state_dict()


@LOOPS.register_module()
class WiSEFTLoop(MultiSetTestLoop):
    """A :class:`MultiSetTestLoop` over the weights (1 − α) θ0 + α θ1, which reads every image once for all α.

    θ0 are the :func:`pretrained_weights` of the runner's config, θ1 the weights of the runner's model, which has them
    again after the run. Adapters are scaled by α. Metrics are named ``alpha=<α>/<set>/<metric>``. If a text
    tower makes the head (:class:`mmcfmask.models.losses.flyp.FLYP`), the loop interpolates the text towers and makes
    the head of each α from the result.

    Args:
        *args, **kwargs: Arguments of :class:`MultiSetTestLoop`; ``keep_predictions`` keeps those at α = 0.5.
        alphas (Sequence[float]): In [0, 1].

    Attributes:
        pretrained (dict[str, Tensor]): θ0.
        line (WeightLine): After ``run``, the weights of every α.
        by_alpha (dict[float, dict]): After ``run``, the ``results`` of every α.
    """

    def __init__(self, runner, *args, alphas: Sequence[float] = (DEFAULT_ALPHA,), **kwargs) -> None:
        self.alphas = parse_alphas(alphas)
        super().__init__(runner, *args, **kwargs)
        self.pretrained = pretrained_weights(runner.cfg.model)
        check_same_model(self.pretrained, own_weights(self.model))
        self.by_alpha: dict[float, dict] = {alpha: {} for alpha in self.alphas}

    @property
    def model(self) -> nn.Module:
        return unwrapped(self.runner.model)

    def _build_evaluator(self, name: str, cfg: dict | list, keep_predictions: bool = False, prefix: str = ''):
        return {
            alpha: super(WiSEFTLoop, self)._build_evaluator(
                name, cfg, keep_predictions and alpha == DEFAULT_ALPHA, f'alpha={alpha:g}/'
            )
            for alpha in self.alphas
        }

    def run(self) -> dict[str, float]:
        """Evaluate every set at every α and return all metrics."""
        self.line = WeightLine(self.model, self.pretrained)
        try:
            return super().run()
        finally:
            self.line.move_to(1.0)

    @torch.inference_mode()
    def _run_batch(self, name: str, batch, clock: Clock) -> list:
        batch = self.model.data_preprocessor(batch, False)
        for alpha in self.alphas:
            self.line.move_to(alpha)
            # Autocast keeps its copies of the weights while its context is open, so each α needs its own.
            with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=self.amp):
                outputs = self.model(**batch, mode='predict')
            clock.lap('forward')
            self.evaluators[name][alpha].process(data_samples=outputs, data_batch=batch)
            clock.lap('metric')
        return outputs

    def _evaluate(self, name: str, images: int) -> dict[str, float]:
        metrics = {}
        for alpha in self.alphas:
            of_alpha, others = split_metrics(self.evaluators[name][alpha].evaluate(images))
            metrics.update(of_alpha)
            self.by_alpha[alpha][name] = dict(
                metrics={key.split('/', 2)[2]: value for key, value in of_alpha.items()},
                details={
                    **{key.split('/', 2)[2]: value for key, value in others.items()},
                    **self._details(self.evaluators[name][alpha]),
                },
            )
        self.results[name] = self.by_alpha[self.alphas[-1]][name]
        return metrics

    def _run_set(self, name: str, batches: Iterator, done: int) -> dict[str, float]:
        metrics = super()._run_set(name, batches, done)
        for results in self.by_alpha.values():  # of all α together
            results[name]['speed'] = self.results[name]['speed']
        return metrics

    def _logged(self, metrics: dict[str, float]) -> dict[str, float]:
        # All metrics of all α would fill screens.
        return {name: value for name, value in metrics.items() if name.endswith('/top1')}

    def _averages(self, metrics: dict[str, float]) -> dict[str, float]:
        if not self.averaged:
            return {}
        return {
            f'alpha={alpha:g}/ood_average/top1': self.ood_average(results) for alpha, results in self.by_alpha.items()
        }


@HOOKS.register_module()
class WiSEFTHook(Hook):
    """After the training, test interpolations of the pretrained and the fine-tuned weights on the config's test sets.

    This writes ``wise_ft.json``, ``wise_ft.md``, the curve and, if asked, a checkpoint to ``<work dir>/wise_ft``. The
    hook checks before the training that the test sets can be read.

    Args:
        alphas (Sequence[float]): In [0, 1]. Defaults to (0.5, ).
        checkpoint (str): θ1: 'best' (by the validation set, or the last without a validation) or 'last'. Defaults to
            'best'.
        save (float, optional): Write the checkpoint at this α. Defaults to None.
        amp (bool): bfloat16 autocast. Defaults to False.

    Raises:
        ConfigError: Bad arguments; no test sets in the config; a model without pretrained weights.
    """

    priority = 'LOWEST'  # after the last checkpoint is saved

    def __init__(
        self,
        alphas: Sequence[float] = (DEFAULT_ALPHA,),
        checkpoint: str = 'best',
        save: float | None = None,
        amp: bool = False,
    ) -> None:
        if checkpoint not in ('best', 'last'):
            raise ConfigError(f"WiSEFTHook: checkpoint={checkpoint!r} must be 'best' or 'last'")
        self.alphas = parse_alphas(alphas)
        self.save = None if save is None else parse_alphas([save])[0]
        self.checkpoint = checkpoint
        self.amp = amp

    def before_train(self, runner) -> None:
        """Build the pretrained weights and the loop over the test sets."""
        cfg: Config = runner.cfg
        if not cfg.get('test_dataloader') or 'id_set' not in (cfg.get('test_cfg') or {}):
            raise ConfigError("WiSEFTHook needs test_dataloader and test_cfg=dict(type='MultiSetTestLoop', id_set=…)")
        settings = {key: value for key, value in cfg.test_cfg.items() if key not in ('type', 'amp')}
        self.loop = WiSEFTLoop(
            runner, cfg.test_dataloader, cfg.test_evaluator, amp=self.amp, alphas=self.alphas, **settings
        )

    def after_train(self, runner) -> None:
        """Evaluate and write."""
        barrier()  # the main process may still write the checkpoint
        info = runner.message_hub.runtime_info
        best = (
            [value for key, value in info.items() if key.startswith('best_ckpt')] if self.checkpoint == 'best' else []
        )
        path = best[0] if best else None
        last = {name: value.clone() for name, value in self.loop.model.state_dict().items()}
        meta = dict(seed=runner.seed, cfg=runner.cfg.pretty_text)
        if path is not None:
            best = check_checkpoint(path)
            self.loop.model.load_state_dict(best['state_dict'])
            meta.update(inherited_meta(best))
        elif average := next((hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)), None):
            self.loop.model.load_state_dict(average.module.state_dict())  # as in the last checkpoint
        runner.logger.info(
            f'WiSE-FT of {path or "the last weights"} at α = {", ".join(f"{alpha:g}" for alpha in self.alphas)}'
        )
        with _test_loop(runner, self.loop):
            self.loop.run()
        self.loop.model.load_state_dict(last)
        if is_main_process():
            folder = Path(runner.work_dir) / 'wise_ft'
            written = write_results(self.loop, folder, runner.cfg.filename or 'config', path, meta)['written']
            if self.save is not None:
                written.append(folder / f'wise_ft_{self.save:g}.pth')
                save_interpolated(self.loop, self.save, written[-1], meta)
            runner.logger.info(f'WiSE-FT: {", ".join(map(str, written))}')


@contextmanager
def _test_loop(runner, loop) -> Iterator[None]:
    """Inside the context ``loop`` is the runner's test loop, so mmengine's hooks log its progress."""
    before, runner._test_loop = runner._test_loop, loop
    try:
        yield
    finally:
        runner._test_loop = before
