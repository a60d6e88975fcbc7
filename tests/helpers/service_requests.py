"""Requests to a reward service as a client without our code would send them."""

from __future__ import annotations

import io
from typing import Any

import httpx
from PIL import Image

from customized_grpo.config.schema import RewardConfig
from customized_grpo.rewards.service.protocol import to_base64

MOODY = RewardConfig(name="own_rewards:Moody")
JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def png(mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def ask(service: Any, *samples: dict[str, Any], reward: str = MOODY.name, **other: Any) -> httpx.Response:
    empty = {"prompt": "x", "references": [], "reference_masks": None, "image_mask": None, "meta": {}}
    body = {
        "reward": reward,
        "digest": service.service.digests.get(reward, "0" * 64),
        "samples": [{**empty, "image": to_base64(png()), **sample} for sample in samples],
        **other,
    }
    return httpx.post(f"{service.url}/v1/score", json=body)


def is_problem(answer: httpx.Response, status: int, detail: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert answer.status_code == status == problem["status"], answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in problem["detail"], problem
    assert "Traceback" not in answer.text and "/" not in problem["detail"].replace("application/json", "")
    return problem
