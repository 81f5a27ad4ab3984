"""The classifier for Python users: windows of sensor signals in, wear classes out, with checkpoints of its training."""

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
from projects.tool_wear.learner import Learner, Recipe, brief, optimizer_with, threads
from projects.tool_wear.model import WearLSTM, logits_of

logger = logging.getLogger(__name__)

History = dict[str, list[float]]


class ToolWearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """Classifies windows of shape (T, C), any number of steps, channels and classes, with a stacked LSTM.

    The network and its training are those of ``mltrain train tool_wear``. It keeps the habits of scikit-learn: parameters
    are stored as they are given, :meth:`fit` starts afresh, ``clone``, ``get_params``, ``set_params`` and ``score`` work, and
    what training finds has a name that ends in an underscore.

    >>> classifier = ToolWearClassifier(epochs=30, seed=1)
    >>> history = classifier.train((X, y), val_data=(X_val, y_val), checkpoint_path="wear.ckpt")
    >>> classifier.predict(X_new)

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        epochs: the total, also when a training is resumed.
        batch_size: windows in a batch, at most.
        epoch_steps: least steps of an epoch, so that ``epochs`` and ``patience`` mean something on small data: batches
            become smaller, then an epoch passes over the windows several times.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        hidden: width of the LSTM.
        layers: stacked LSTM layers.
        kernels: random convolution kernels beside the LSTM; 0 leaves them out.
        dropout: between the layers and before the head.
        balanced: weigh classes in the loss by how rare they are.
        gain_jitter: random gain of each channel in training, as a relative spread.
        patience: stop after this many epochs without a lower loss on the validation data. If ``None``, never.
        seed: everything random follows from it; the caller's random numbers are left alone.
        num_threads: CPU threads while training. If ``None``, as torch is set.

    Attributes:
        model_: the network, with the weights of the best epoch where there was validation data, else of the last.
        classes_: the classes, as they were given.
        history_: what :meth:`train` returned.
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
        """Train, or continue a training, and return its history from the first epoch on.

        With validation data, training stops early and the best epoch's weights are used. Split by tool before: windows
        of one tool in both sets make the result look better than it is. Ctrl+C (and SIGTERM) finishes the step, saves,
        and ends the program; without a ``checkpoint_path`` it ends it at once.

        Args:
            train_data: signals (N, T, C) and N classes.
            val_data: the same, of tools that are not in ``train_data``.
            checkpoint_path: a file that every epoch's checkpoint replaces as a whole, which needs no server; or the id of
                an MLflow run, which then gets checkpoints and curves. If ``None``, where the training is resumed from.
            resume_from_checkpoint: a file, or the id of a run, to continue from; ``True`` is ``checkpoint_path``, if there is
                a checkpoint. On the same machine the result is, bit for bit, that of a training without interruption.

        Returns:
            One list a column (``epoch``, ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, …), with one
            value an epoch; NaN where nothing was measured.

        Raises:
            DataError: the data do not fit together, or not to the checkpoint.
            NoCheckpoint, DamagedCheckpoint, StateMismatch: the checkpoint cannot be resumed from.
        """
        classes, split = split_of(train_data, val_data)
        resume_from_checkpoint = places.resumed(resume_from_checkpoint, checkpoint_path)
        source = places.place(resume_from_checkpoint)
        target = places.place(checkpoint_path) if checkpoint_path is not None else source
        stop = StopRequest()  # which is deaf unless it is entered
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

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 - the name that scikit-learn gives it
        """Train afresh on signals (N, T, C) and N classes, without validation data, for all epochs."""
        self.train((X, y))
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the most likely class of each window, shape (N,), for signals (N, T, C)."""
        likeliest = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[likeliest])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the probability of each class, in the order of ``classes_``: shape (N, classes), for signals (N, T, C).

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
        """An optimizer with the state of the training, or of the checkpoint that was loaded; a copy.

        Raises:
            NotFittedError: nothing was trained or loaded.
        """
        check_is_fitted(self, "model_")
        return optimizer_with(self.model_, self._state["optimizer"], lr=self.lr, weight_decay=self.weight_decay)

    def save_checkpoint(
        self,
        file_path: str | Path,
        *,
        optimizer_state: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        best_epoch: int | None = None,
        epochs_without_improvement: int | None = None,
    ) -> None:
        """Write everything that is known of the training into one file: weights, optimizer, counters, history, random numbers.

        Args:
            file_path: the file; one of this name is replaced.
            optimizer_state: of an optimizer of a loop of your own. If ``None``, as trained.
            epoch: epochs done, where a loop of your own counted them. If ``None``, as trained.
            best_epoch: the best of them. If ``None``, as trained.
            epochs_without_improvement: evaluations since then. If ``None``, as trained.

        Raises:
            NotFittedError: nothing was trained or loaded.
            StorageError: the disk refuses.
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
        """Take over the network, classes and history of a checkpoint, to predict with them; parameters stay as they are.

        Args:
            file_path: a file, or the id of an MLflow run. Of a run of ``mltrain train tool_wear`` the best checkpoint is
                taken, of its file what is in it; their classes are numbered from 0.

        Returns:
            Epochs done, the best of them, and the epochs without improvement since; it unpacks into these three.

        Raises:
            NoCheckpoint, DamagedCheckpoint: the checkpoint is missing or damaged.
            StateMismatch: it is of another network.
        """
        where = places.place(file_path)
        state = where.read()
        if OWN not in state and isinstance(where, places.Run):
            best = mltrain.load_best(where.id)
            classes = np.arange(WearLSTM.of(best).classes)
            state[OWN] = {"best": best, "classes": classes, "parameters": {}, "validated": True}
        elif OWN not in state and state.keys() >= {"model", "progress", "stopping", "history"}:
            classes = np.arange(WearLSTM.of(state["model"]).classes)
            state[OWN] = {"best": {}, "classes": classes, "parameters": {}, "validated": True}
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
