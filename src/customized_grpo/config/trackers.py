"""Which experiment trackers there are, and why the others that accelerate knows are refused."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic_core import PydanticCustomError

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]

_NO_IMAGES = "accelerate's class for it takes no images, and nobody has tried it here"
_UNTRIED = "nobody has tried its images and its resumed runs here"

REFUSED = {
    "aim": "a run that Aim 3.29 had written was not found in its own repository",
    "all": "it would start whatever happens to be installed; name each tracker",
    "clearml": _UNTRIED,
    "comet_ml": _NO_IMAGES,
    "dvclive": _NO_IMAGES,
    "swanlab": _UNTRIED,
}
"""{name that accelerate knows: why it is not offered}."""


def refuse_known(names: Any) -> Any:
    """Refuse trackers that accelerate knows and this package does not offer; other names are for the schema.

    Raises:
        PydanticCustomError: The reason, and what there is.
    """
    reasons = []
    for name in names if isinstance(names, list | tuple) else ():
        if isinstance(name, str) and name in REFUSED:
            reasons.append(f"{name} is not offered: {REFUSED[name]}")
    if reasons:
        known = ", ".join(get_args(TrackerName))
        offer = f"There are {known}; metrics.jsonl has every number without any of them."
        text = f"{'; '.join(reasons)}\n    {offer}"
        raise PydanticCustomError("part", "{text}", {"text": text})
    return names
