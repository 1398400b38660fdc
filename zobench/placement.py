"""Where the weights of a model lie: on the run's device, or laid over several by accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

DeviceMap = Literal["auto", "balanced"] | Mapping[str, Any]


def problems(device_map: DeviceMap) -> list[str]:
    """What is wrong with a device map: weights that move must lie on GPUs, or all of them on the CPU."""
    if isinstance(device_map, str):
        return []
    if not device_map:
        return ["model.device_map={}: places nothing; use null, auto or balanced"]
    named = {str(where) for where in device_map.values()}
    away = sorted(named & {"disk", "meta"})
    if away or ("cpu" in named and len(named) > 1):
        where = away[0] if away else "cpu"
        return [f"model.device_map: puts a part on {where}, from where accelerate would copy it for each forward; "
                "name GPUs alone"]  # fmt: skip
    return []


def of(device_map: DeviceMap | None, device: torch.device) -> str | dict[str, Any]:
    """For transformers' ``device_map``: the whole model straight on one device, without a copy on the host, if there is
    no map."""
    if device_map is None:
        here = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        return {"": torch.device(device.type, here)}
    return device_map if isinstance(device_map, str) else dict(device_map)


def random(auto: Any, on: str | dict[str, Any], device: torch.device, *, config: Any, **settings: Any) -> nn.Module:
    """A model with new weights, made where they will lie.

    Args:
        auto: the class of transformers that makes it.
        on: see `of`. Over several devices the weights are others than on one.
    """
    model: nn.Module
    if isinstance(on, dict) and set(on) == {""}:
        with device:
            model = auto.from_config(config, **settings)
    else:  # as a checkpoint without a tensor: transformers draws what is missing, where the map puts it
        made = auto._model_mapping[type(config)]
        model = made.from_pretrained(None, config=config, state_dict={}, device_map=on, **settings)
    return model


def check_room(model: nn.Module, device: torch.device) -> None:
    """accelerate lays what GPUs have no room for elsewhere, and would copy it for each forward.

    Raises:
        torch.OutOfMemoryError: it did.
    """
    away = [where for where in devices(model) if where.type != device.type]
    if away:
        raise torch.OutOfMemoryError(f"model.device_map: the GPUs have no room for it, so a part lies on {away[0]}")


def spread(model: nn.Module) -> bool:
    """Whether its weights lie on several devices."""
    return len(devices(model)) > 1


def devices(model: nn.Module) -> list[torch.device]:
    """Those its weights lie on, in their order."""
    return sorted({p.device for p in model.parameters()}, key=str)
