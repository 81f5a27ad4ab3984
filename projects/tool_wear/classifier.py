"""A classifier of wear for Python users, with checkpoints."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

import mltrain
from mltrain import device as devices
from mltrain.checkpoint import checkpoint_file
from mltrain.errors import DataError
from mltrain.rng import own_rng
from mltrain.signals import StopRequest
from projects.tool_wear import places
from projects.tool_wear.baselines import Baselines
from projects.tool_wear.examples import Examples, signals_of, split_of
from projects.tool_wear.held_out import HeldOut
from projects.tool_wear.keeper import OWN, Keeper, Position, before, own_part
from projects.tool_wear.learner import Learner, Recipe, brief, threads
from projects.tool_wear.model import WearLSTM, logits_of

logger = logging.getLogger(__name__)

History = dict[str, list[float]]


class ToolWearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """Classifies windows (T, C) of any size with a stacked LSTM.

    Network and training are those of ``mltrain train tool_wear``. The class follows the conventions of scikit-learn: ``clone``,
    ``get_params`` and ``score`` work, :meth:`fit` starts afresh, and the names of fitted attributes end in an underscore.

    >>> classifier = ToolWearClassifier(epochs=30, seed=1)
    >>> history = classifier.train((X, y), val_data=(X_val, y_val), checkpoint_path="wear.ckpt")
    >>> classifier.predict(X_new)

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        epochs: total number of epochs, also when a training is resumed.
        batch_size: largest number of windows in a batch.
        epoch_steps: least steps per epoch: small data get smaller batches, then several passes over the windows.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        clip: largest norm of the gradient.
        hidden: width of the LSTM.
        layers: number of LSTM layers.
        kernels: number of random convolution kernels beside the LSTM; 0 leaves them out.
        dropout: dropout rate between the layers and before the head.
        balanced: weigh classes in the loss by how rare they are.
        gain_jitter: random gain of each channel in training, as a relative spread.
        patience: stop after this many epochs without a lower validation loss. If ``None``, training never stops early.
        seed: seed of all random numbers; the caller's random state does not change.
        num_threads: CPU threads in training. If ``None``, torch's setting applies.

    Attributes:
        model_: the network, with the weights of the best epoch if there was validation data, else of the last.
        classes_: the classes, as given.
        history_: the history that :meth:`train` returned.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        epochs: int = 25,
        batch_size: int = 64,
        epoch_steps: int = 20,
        lr: float = 2e-3,
        weight_decay: float = 0.1,
        clip: float = 1.0,
        hidden: int = 64,
        layers: int = 2,
        kernels: int = 1000,
        dropout: float = 0.4,
        balanced: bool = True,
        gain_jitter: float = 0.03,
        patience: int | None = 10,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.device = device
        self.epochs = epochs
        self.batch_size = batch_size
        self.epoch_steps = epoch_steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.clip = clip
        self.hidden = hidden
        self.layers = layers
        self.kernels = kernels
        self.dropout = dropout
        self.balanced = balanced
        self.gain_jitter = gain_jitter
        self.patience = patience
        self.seed = seed
        self.num_threads = num_threads

    def train(
        self,
        train_data: Examples,
        val_data: Examples | None = None,
        *,
        checkpoint_path: str | Path | None = None,
        resume_from_checkpoint: str | Path | bool | None = None,
    ) -> History:
        """Train or resume, and return the history of all epochs.

        With validation data, training stops early and the classifier uses the weights of the best epoch. Split by tool
        first: windows of one tool in both sets make the scores too good. Ctrl+C and SIGTERM finish the step, save, and
        end the program; without a ``checkpoint_path`` they end it at once.

        Args:
            train_data: signals (N, T, C) and N classes.
            val_data: signals and classes of tools that are not in ``train_data``.
            checkpoint_path: a file that every epoch's checkpoint replaces atomically, without a server; or the id of an
                MLflow run, which then gets checkpoints and curves. If ``None``, ``resume_from_checkpoint`` is used.
            resume_from_checkpoint: a file, or the id of a run, to continue from; ``True`` is ``checkpoint_path``, if it has
                a checkpoint. On the same machine the result equals that of an uninterrupted training, bit for bit.

        Returns:
            One list per column (``epoch``, ``train/loss``, ``val/accuracy``, …) with a value per epoch; NaN for missing values.

        Raises:
            DataError: the data are inconsistent, or do not fit the checkpoint.
            NoCheckpoint, DamagedCheckpoint, StateMismatch: the checkpoint cannot be resumed from.
        """
        classes, split = split_of(train_data, val_data)
        resume_from_checkpoint = places.resumed(resume_from_checkpoint, checkpoint_path)
        source = places.place(resume_from_checkpoint)
        target = places.place(checkpoint_path) if checkpoint_path is not None else source
        stop = StopRequest()  # it handles signals only if it is entered
        with (
            own_rng(self.seed),
            threads(self.num_threads),
            stop if target != places.Nowhere() else nullcontext(),
            target.opened() as opened,
        ):
            state: dict[str, Any] = {}
            if resume_from_checkpoint is not None:
                state = opened.resume() if source == target else source.read()
            learner = Learner.on(split.train, before(state, Recipe.of(self)))
            held_out = HeldOut(learner.model, split, learner.weights, Baselines(split.train, self.seed))
            evaluate = held_out.evaluate if val_data is not None else None
            keeper = Keeper(opened.saver, classes, self.get_params(), validated=val_data is not None)
            trainer = mltrain.Trainer(
                mltrain.Task(learner.step, learner.loader, evaluate=evaluate),
                self._config("val/loss" if val_data is not None else "train/loss"),
                opened.tracker,
                keeper,
                stop,
            )
            if state:
                trainer.restore(keeper.taken_apart(state, source))
                for group in learner.step.optimizer.param_groups:
                    group.update(lr=self.lr, weight_decay=self.weight_decay)
                if source != target:
                    trainer.save("epoch" if trainer.progress.batch == 0 else "step")
            stop.finish_steps()
            for progress in trainer.steps():
                if progress.batch == 0:
                    logger.info("Epoch %d of %d: %s", progress.epoch, self.epochs, brief(trainer.measured))
            self._take(keeper.put_together(trainer.state.state_dict()))
        if stop.requested and not trainer.done:
            logger.warning(
                "Stopped by %s at step %d. Continue with train(..., resume_from_checkpoint=%r).",
                stop.reason,
                trainer.progress.step,
                str(target),
            )
            raise KeyboardInterrupt if stop.reason == "SIGINT" else SystemExit(stop.exit_code)
        return self.history_

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - scikit-learn's name
        """Train afresh for all epochs, on signals (N, T, C) and N classes."""
        self.train((X, y))
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most likely class (N,) of signals (N, T, C)."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return class probabilities (N, classes) of signals (N, T, C), in the order of ``classes_``.

        Raises:
            NotFittedError: nothing was trained or loaded.
            DataError: the signals are not of that shape, or not of as many channels as those trained on.
        """
        check_is_fitted(self, "model_")
        signals = signals_of(X, "X")
        channels = self.model_.scaler.mean.numel()
        if signals.shape[2] != channels:
            raise DataError(f"X has {signals.shape[2]} channels, and the network was trained on {channels}.")
        probabilities: NDArray[np.float64] = torch.softmax(logits_of(self.model_, signals).double(), dim=1).numpy()
        return probabilities

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer with the trained or loaded state.

        Raises:
            NotFittedError: nothing was trained or loaded.
        """
        check_is_fitted(self, "model_")
        optimizer = torch.optim.AdamW(self.model_.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        optimizer.load_state_dict(self._state["optimizer"])
        return optimizer

    def save_checkpoint(
        self,
        file_path: str | Path,
        *,
        optimizer_state: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        best_epoch: int | None = None,
        epochs_without_improvement: int | None = None,
    ) -> None:
        """Write the whole state of the training to a file: weights, optimizer, counters, history, random numbers.

        The optional arguments replace values of this training by those of a loop of your own. If ``None``, the values of
        this training apply.

        Args:
            file_path: the file; an existing one is replaced.
            optimizer_state: state of the optimizer.
            epoch: number of epochs done.
            best_epoch: the best of them.
            epochs_without_improvement: evaluations since the best one.

        Raises:
            NotFittedError: nothing was trained or loaded.
            StorageError: the file cannot be written.
        """
        check_is_fitted(self, "model_")
        counted = {
            "progress": {"epoch": epoch},
            "loader": {"epoch": epoch},
            "stopping": {"best_epoch": best_epoch, "without_improvement": epochs_without_improvement},
        }
        state = dict(self._state)
        state["optimizer"] = {**state["optimizer"], **(optimizer_state or {})}
        for part, counters in counted.items():
            state[part] = state[part] | {name: value for name, value in counters.items() if value is not None}
        checkpoint_file.write(Path(file_path), state)

    def load_checkpoint(self, file_path: str | Path) -> Position:
        """Load network, classes and history of a checkpoint for predictions; parameters do not change.

        Args:
            file_path: a checkpoint file, or the id of an MLflow run. Of a run of ``mltrain train tool_wear`` the best
                checkpoint is loaded; its classes are numbered from 0.

        Returns:
            Epochs done, the best of them, and the epochs without improvement since; it unpacks into these three.

        Raises:
            NoCheckpoint, DamagedCheckpoint: the checkpoint is missing or damaged.
            StateMismatch: it belongs to another network.
        """
        where = places.place(file_path)
        state = where.read()
        whole = state.keys() >= {"model", "progress", "stopping", "history"}
        if OWN not in state and (whole or isinstance(where, places.Run)):
            best = mltrain.load_best(where.id) if isinstance(where, places.Run) else {}
            classes = np.arange(WearLSTM.of(best or state["model"]).classes)
            state[OWN] = {"best": best, "classes": classes, "parameters": {}, "validated": True}
        own_part(state, where)
        self._take(state)
        stopping = state["stopping"]
        return Position(state["progress"]["epoch"], stopping["best_epoch"], stopping["without_improvement"])

    def _config(self, metric: str) -> mltrain.Config:
        return mltrain.Config.load(
            overrides={
                "seed": self.seed,
                "epochs": self.epochs,
                "device": self.device,
                "best_metric": metric,
                "best_mode": "min",
                "early_stopping_patience": self.patience if metric.startswith("val/") else None,
            }
        )

    def _take(self, state: dict[str, Any]) -> None:
        own = state[OWN]
        weights = own["best"] if own["validated"] and own["best"] else state["model"]
        self.model_ = WearLSTM.of(weights).to(devices.chosen(self.device)).eval()
        self.classes_ = np.asarray(own["classes"])
        rows = state["history"]["rows"]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        self.history_ = {name: [float(row.get(name, np.nan)) for row in rows] for name in columns}
        self._state = state
