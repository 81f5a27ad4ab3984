"""Checks whether this machine can train a configuration."""

import logging

from pydantic import ValidationError

from mltrain.checkpoint.policies import Best, Latest, parse
from mltrain.checkpoint.retention import Policy
from mltrain.config import Config
from mltrain.errors import ConfigError, StorageError
from mltrain.ownership.run_folder import refuse_unwritable_places
from mltrain.store.folders import refuse_unwritable
from mltrain.tracking.client import TrackingClient

log = logging.getLogger(__name__)

_MEANINGFUL = {"early_stopping_patience": "early_stopping_patience=10", "on_nonfinite": "on_nonfinite=skip"}
"""Example settings of the keys without which other keys have no effect."""


def policy_of(config: Config, of_task: Policy | None = None) -> Policy:
    """Return the retention policy of a training.

    Args:
        config: the configuration; its key ``retention`` takes precedence.
        of_task: the task's policy. If ``None``, ``max_to_keep`` and ``checkpoint_mode`` decide.

    Raises:
        ConfigError: the expression in ``retention`` is invalid.
    """
    if config.retention is not None:
        return parse(config.retention)
    if of_task is not None:
        return of_task
    return Latest(1 if config.checkpoint_mode == "latest" else config.max_to_keep) | Best(1)


def refuse_unusable(config: Config, server: TrackingClient) -> None:
    """Refuse a configuration that this machine cannot train.

    Raises:
        ConfigError: a value is out of bounds, this machine lacks the device, or the retention policy cannot be read.
        StorageError: a folder that the training writes to is not writable.
    """
    from mltrain import device as devices  # imports torch, which takes seconds; policy_of() does without

    try:
        # A project may redeclare a key to change its default; the key's bounds still apply.
        Config.model_validate({name: getattr(config, name) for name in Config.model_fields if hasattr(config, name)})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(
            f"{first['loc'][0]}={first['input']!r:.80} is not accepted: {first['msg'].lower()}."
        ) from None
    policy_of(config)
    devices.chosen(config.device)
    refuse_unwritable_places(server)
    if config.model_save_path is not None:
        refuse_unwritable(config.model_save_path, "Give another folder as model_save_path=FOLDER.")
    elif config.export != "weights":
        raise ConfigError(f"export={config.export} has no folder to write to. Try: add model_save_path=FOLDER")
    if config.checkpoint_path is not None:
        if config.checkpoint_path.is_dir():
            raise StorageError(f"checkpoint_path={config.checkpoint_path} is a folder. Expected a file in it.")
        refuse_unwritable(config.checkpoint_path.parent, "Give another file as checkpoint_path=FILE.")


def warn_without_effect(config: Config) -> None:
    """Warn about keys that are set but have no effect."""
    for key, switch in config.without_effect().items():
        log.warning("%s=%s has no effect without %s. Try: %s", key, getattr(config, key), switch, _MEANINGFUL[switch])
    if config.retention is not None and config.max_to_keep != type(config).model_fields["max_to_keep"].default:
        log.warning("max_to_keep=%d has no effect beside retention=%r.", config.max_to_keep, config.retention)


def refuse_for_several(config: Config) -> None:
    """Refuse settings that work with one process only.

    Raises:
        ConfigError: the configuration has such a setting.
    """
    if config.on_nonfinite == "rollback":
        raise ConfigError(
            "on_nonfinite=rollback works with one process only. Expected abort or skip. Try: on_nonfinite=skip"
        )
    if config.save_every_minutes:
        raise ConfigError(
            "save_every_minutes works with one process only, because clocks differ. Expected an interval in steps. "
            "Try: save_every_steps=N"
        )
    if ":" in config.device:
        raise ConfigError(
            f"device={config.device} would put all processes of this machine on one GPU. Expected cuda, which gives each process "
            "its own. Try: device=cuda"
        )
    if config.strategy == "fsdp" and config.logged_models != "none":
        raise ConfigError(
            f"logged_models={config.logged_models} needs the whole model in one process, and strategy=fsdp shards it. Expected "
            "logged_models=none. Try: strategy=ddp"
        )
