"""Predictions held against what real models allocate on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import tiny_families
from customized_grpo.config import Config, load_config
from customized_grpo.config.schema import LoraConfig, ModelConfig
from customized_grpo.planning import memory, replay
from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.estimate import Planner
from customized_grpo.planning.host import predict_host
from customized_grpo.planning.layout import RealLayout
from customized_grpo.planning.memory import GIB, PROGRAM_BYTES, dequantised_bytes
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.reference_rule import reference_size_of

pytestmark = pytest.mark.slow

TOLERANCE = 0.05
"""Largest relative error of a predicted peak; 0.032 was seen."""
BATCH = 3

DRY_RUNS: dict[str, DryRun] = {}
"""By model. No measure depends on those before it, which a test below holds, so that tests share them."""


def dry_run(model: ModelConfig) -> DryRun:
    key = model.model_dump_json()
    if key not in DRY_RUNS:
        DRY_RUNS[key] = DryRun(read_architecture(model), model, [(model.width, model.height)])
    return DRY_RUNS[key]


def planner(config: Config) -> Planner:
    # an adapter to start from is counted beside the model, which it does not change
    key = f"{config.model.model_dump_json(exclude={'start_lora'})} {reference_size_of(config)}"
    made = Planner(config, dry_run=DRY_RUNS.get(key))
    DRY_RUNS[key] = made.dry_run
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of each family."""
    root = tmp_path_factory.mktemp("checkpoints")
    saved = {"flux1": "toybox"}
    for family, _, _ in FAMILIES:
        if family not in saved:
            saved[family] = str(tiny_families.save(family, root / family))
    return saved


FAMILIES = [
    ("flux1", 24, 2.5),
    ("flux2", 96, 4.0),
    ("qwen_edit", 288, 4.0),
    ("qwen_image21", 17, 1.0),
    ("flux3", 80, 4.0),
]
"""Family, text tokens and guidance, which takes two calls for flux2, flux3 and qwen_edit."""


@pytest.fixture(params=FAMILIES, ids=lambda family: family[0])
def model(request: pytest.FixtureRequest, folders: dict[str, str]) -> ModelConfig:
    family, text, guidance = request.param
    return ModelConfig(
        family=family,
        path=folders[family],
        options={"text_layers": [1, 2, 3]} if family in ("flux2", "flux3") else {},
        guidance=guidance,
        height=64,
        width=64,
        max_text_tokens=text,
        lora=LoraConfig(rank=4),
        device="cpu",
    )


def velocity_of(policy: Policy) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A call of the policy for BATCH samples of one reference, and the tensors that were there before."""
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    encoded = policy.encode(["a fox"], [[image]], 64, 64).repeat_interleave(BATCH)
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(BATCH)], 64, 64)
    for parameter in policy.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.no_grad():
        # the rotary tables that Qwen-Image-Edit keeps from its first call are the model's, not a pass's
        policy.velocity(x, 0.5, encoded)
    known = [x, *encoded.per_sample.values(), *encoded.shared.values()]
    return lambda: policy.velocity(x, 0.5, encoded), [*known, *replay.known_tensors(policy.transformer)]


def saved_bytes(call: Callable[[], Tensor], known: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights and inputs not counted."""
    storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_a_backward_pass_are_as_predicted(model: ModelConfig, precision: str) -> None:
    model = model.model_copy(update={"precision": precision})
    call, known = velocity_of(load_policy(model, seed=0))
    run = dry_run(model)
    predicted = run.update_bytes(BATCH, checkpointing=False, kl=False)
    kept = saved_bytes(call, known)
    # the rest is the working memory of a layer: 6 to 19 % in these models, below 1 % in those of 57 blocks
    assert 0 <= predicted - kept < run.rollout_bytes(BATCH)
    assert predicted == pytest.approx(kept, rel=0.2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_graph_that_is_kept_takes_what_is_predicted(model: ModelConfig, checkpointing: bool) -> None:
    policy = load_policy(model.model_copy(update={"gradient_checkpointing": checkpointing}), seed=0)
    call, known = velocity_of(policy)
    run = dry_run(model)
    predicted = run.graph_bytes(BATCH, checkpointing=checkpointing)
    # 7.5 % too low for flux1 with checkpointing, where so small a model keeps little
    assert predicted == pytest.approx(replay.bytes_left(call, known), rel=0.08)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_real_backward_pass_is_as_predicted(model: ModelConfig, checkpointing: bool) -> None:
    policy = load_policy(model.model_copy(update={"gradient_checkpointing": checkpointing}), seed=0)
    call, known = velocity_of(policy)
    measured = replay.peak_bytes(lambda: call().square().mean().backward(), known)  # type: ignore[no-untyped-call]
    run = dry_run(model)
    predicted = run.update_bytes(BATCH, checkpointing=checkpointing, kl=False)
    assert predicted == pytest.approx(measured, rel=TOLERANCE)


def test_the_peak_of_a_rollout_is_as_predicted_and_below_that_of_training(model: ModelConfig) -> None:
    call, known = velocity_of(load_policy(model, seed=0))
    with torch.no_grad():
        measured = replay.peak_bytes(call, known)
    run = dry_run(model)
    assert run.rollout_bytes(BATCH) == pytest.approx(measured, rel=TOLERANCE)
    assert run.rollout_bytes(BATCH) < run.update_bytes(BATCH, checkpointing=False, kl=False)


def test_parameters_and_conditioning_are_counted_exactly(model: ModelConfig) -> None:
    policy = load_policy(model, seed=0)
    run = dry_run(model)
    adapter = policy.trainable_parameters()
    assert run.adapter_parameters == sum(parameter.numel() for parameter in adapter)
    everything = sum(parameter.numel() for parameter in policy.transformer.parameters())
    assert run.base_parameters == everything - run.adapter_parameters
    held = sum(
        parameter.nbytes for parameter in policy.transformer.parameters() if not parameter.requires_grad
    )
    # FLUX.3's class keeps its norms of queries and keys in fp32: a few hundred numbers
    assert memory.base_bytes(run, None) == pytest.approx(held, rel=2e-3 if model.family == "flux3" else 0)
    assert run.vae_parameters == sum(parameter.numel() for parameter in policy.pipe.vae.parameters())
    image = torch.zeros(3, 64, 64)
    encoded = policy.encode(["a fox"], [[image]], 64, 64)
    wide = [tensor for name, tensor in encoded.per_sample.items() if not name.endswith(("_mask", "_length"))]
    text_is_fp32 = model.family == "flux1"  # ToyBox's encoders, being small, are never held in bf16
    assert (
        run.conditioning_bytes
        <= sum(tensor.nbytes for tensor in wide)
        <= (2 if text_is_fp32 else 1) * (run.conditioning_bytes)
    )


def test_optimizer_state_and_trajectory_are_counted_exactly(recipe: Callable[..., Any]) -> None:
    config = recipe("train.group_size=4", "train.trained_fraction=1.0")
    plan = planner(config).estimate()
    policy = load_policy(config.model, seed=0)
    optimizer = torch.optim.AdamW(policy.trainable_parameters())
    for parameter in policy.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [value for values in optimizer.state.values() for name, value in values.items() if name != "step"]
    assert plan.memory.parts["optimizer"] == sum(tensor.nbytes for tensor in state)
    assert plan.memory.parts["gradients"] == sum(p.nbytes for p in policy.trainable_parameters())
    samples, steps, tokens, channels = 2 * 4, 3, 16, 160
    images = samples * 3 * 64 * 64
    assert plan.memory.parts["trajectory"] == 4 * (3 * steps * samples * tokens * channels + images)


def test_further_groups_of_dynamic_sampling_count_beside_those_that_they_replace() -> None:
    settings = ["train.prompts_per_iteration=4", "train.group_size=3"]
    overrides = (("train.dynamic_sampling.budget=3",), ("train.dynamic_sampling.budget=9",), ())
    plans = [planner(load_config("toybox", [*settings, *more])).estimate() for more in overrides]
    trajectories = [plan.memory.parts["trajectory"] for plan in plans]
    assert [memory / trajectories[2] for memory in trajectories] == [7 / 4, 2, 1]
    conditionings = [plan.memory.parts["conditioning"] for plan in plans]
    assert [(n - conditionings[2]) // (conditionings[2] // (4 + 12)) for n in conditionings] == [3, 4, 0]
    per_prompt = plans[2].passes
    extra = [plan.passes_per_process - 4 * per_prompt.iteration for plan in plans]
    assert extra == [3 * per_prompt.rollout, 9 * per_prompt.rollout, 0]
    assert plans[1].seconds_per_iteration(1.0) > plans[0].seconds_per_iteration(1.0)


def test_evaluation_images_count_at_their_own_size_and_guidance(folders: dict[str, str]) -> None:
    settings = [
        "model.family=flux2",
        f"model.path={folders['flux2']}",
        "model.options={text_layers: [1, 2, 3]}",
    ]
    settings += ["model.guidance=1.0", "model.max_text_tokens=96", "model.height=64", "model.width=64"]
    own = ["evaluation.height=128", "evaluation.width=192", "evaluation.guidance=4.0"]
    same = planner(load_config("toybox-smoke", settings)).estimate()
    other = planner(load_config("toybox-smoke", settings + own)).estimate()
    as_model = [setting.replace("evaluation.", "model.") for setting in own]
    large = Planner(load_config("toybox-smoke", settings + as_model)).estimate()
    for part in ("evaluation pass", "evaluation decoding"):
        assert same.memory.parts[part] < other.memory.parts[part] == large.memory.parts[part]
    assert other.memory.phases["evaluate"] > same.memory.phases["evaluate"]
    assert other.memory.phases["update"] == same.memory.phases["update"]
    cost = large.flops_per_pass / same.flops_per_pass
    assert cost > 2 and other.flops_per_pass == same.flops_per_pass
    assert other.passes.evaluation == round(cost * large.passes.evaluation)
    assert large.passes.evaluation == 2 * same.passes.evaluation


def test_the_adapter_that_training_began_with_stays_in_memory(tmp_path: Path) -> None:
    model = load_config("toybox-smoke").model
    load_policy(model, seed=0).save_lora(tmp_path)
    plain = load_config("toybox-smoke")
    continued = load_config("toybox-smoke", [f"model.start_lora={tmp_path}"])
    start = load_policy(continued.model, seed=0)._start
    assert start is not None
    copied = sum(tensor.nbytes for tensor in start.values())
    before = planner(plain).estimate().memory
    after = planner(continued).estimate().memory
    assert (before.parts["start"], after.parts["start"]) == (0, copied)
    for phase in before.phases:
        assert after.phases[phase] == before.phases[phase] + copied, phase


def test_a_large_evaluation_batch_alone_is_made_smaller() -> None:
    small = ["rollout.batch_size=1", "train.micro_batch_size=1", "model.gradient_checkpointing=true"]
    config = load_config("toybox-smoke", [*small, "evaluation.batch_size=500"])
    plan = planner(config)
    least = plan.estimate(("evaluation.batch_size=1",)).memory
    assert plan.estimate().memory.needed > 1.01 * least.needed
    advice = plan.find_fit(1.005 * least.needed / GIB)
    assert advice.fits and advice.overrides == ("evaluation.batch_size=1",)


def test_weights_in_nf4_take_what_bitsandbytes_makes_of_them() -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    weight = torch.randn(384, 512)
    held = nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
    state = held.quant_state
    measured = held.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert memory.nf4_bytes(weight.numel()) == measured


def reward_models() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    from transformers import CLIPModel, Dinov2Model, Qwen2VLForConditionalGeneration

    large_clip = {
        "projection_dim": 1024,
        "text_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "vision_config": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    }
    qwen2_vl = {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16},
        "tie_word_embeddings": False,
    }
    yield "dino", Dinov2Model, {"image_size": 518}
    yield "clip_t", CLIPModel, {}
    yield "pickscore", CLIPModel, large_clip
    yield "hpsv3", Qwen2VLForConditionalGeneration, qwen2_vl


@pytest.mark.parametrize(
    ("name", "model_class", "options"), list(reward_models()), ids=lambda value: str(value)[:9]
)
def test_reward_models_have_as_many_parameters_as_is_said(
    name: str, model_class: Any, options: dict[str, Any]
) -> None:
    with torch.device("meta"):
        module = model_class(model_class.config_class(**options))
    assert sum(p.numel() for p in module.parameters()) == memory.REWARD_PARAMETERS[name]


def test_the_types_of_rewards_count_and_unknown_ones_are_named() -> None:
    rewards = load_config("flux1-kontext").rewards
    known, unknown = memory.reward_bytes(rewards)
    assert known == 4 * memory.REWARD_PARAMETERS["dino"] + 2 * memory.REWARD_PARAMETERS["hpsv3"]
    assert unknown == ()
    own = rewards[1].model_copy(update={"name": "mine:Reward"})
    assert memory.reward_bytes([own]) == (0, ("mine:Reward",))


def test_bytes_live_as_long_as_their_tensor_and_views_are_free() -> None:
    with replay.LiveBytes() as live:
        first = torch.zeros(256)
        view = first[:10]
        assert live.now == 1024
        second = torch.zeros(128)
        del first
        assert live.now == 1024 + 512  # the view keeps it
        del view, second
    assert (live.now, live.peak) == (0, 1536)


def test_operations_of_a_forward_pass_are_those_of_its_products_and_attention() -> None:
    config = load_config("toybox-smoke")
    run = DryRun(read_architecture(config.model), config.model, [(config.model.width, config.model.height)])
    width, text, image = 256, 18, 32
    tokens = text + image
    attention = 4 * tokens**2 * width
    modulation = 2 * width * 6 * width
    double = 2 * tokens * 12 * width**2 + attention + 2 * modulation
    single = 2 * tokens * 12 * width**2 + attention + 2 * width * 3 * width
    adapter_rank = config.model.lora.rank
    double_lora = 2 * tokens * 4 * 2 * width * adapter_rank
    single_lora = 2 * tokens * (3 * 2 * width + 6 * width) * adapter_rank
    blocks = double + double_lora + 3 * (single + single_lora)
    around = 2 * (
        image * 160 * width * 2 + text * 96 * width + (2 * 256 + 96 + 3 * width + 2 * width) * width
    )
    assert run.flops == pytest.approx(blocks + around, rel=1e-6)


def test_the_autoencoder_decodes_in_fp32_between_its_products_on_accelerators() -> None:
    """CUDA's autocast normalises groups in fp32; the last block then holds, of [12, 256, 512, 512] numbers,
    the residual in 2 bytes each, its copy in fp32 and the normalised one: 10 bytes, 7.5 GiB."""
    config = load_config("flux1-kontext", ["model.device=cuda"])
    run = DryRun(read_architecture(config.model), config.model, [(config.model.width, config.model.height)])
    assert run.decode_bytes(12) == pytest.approx(7.5 * GIB, rel=0.01)


def test_the_machine_needs_memory_for_what_is_read_and_for_what_waits() -> None:
    run = cast(DryRun, SimpleNamespace(dtype=torch.bfloat16, base_parameters=10 * GIB))
    parts = {"text encoders": 5 * GIB, "autoencoder": GIB, "base": 6 * GIB}
    on_card = memory.Memory(parts, {"update": 20 * GIB}, ())
    quantised = load_config("flux1-kontext-24gb")
    assert quantised.model.text_encoders == "offload" and quantised.model.offload_vae
    host = predict_host(quantised, run, on_card)
    assert host.loading == (20 + 5 + 1) * GIB + PROGRAM_BYTES == host.peak
    assert host.training == (5 + 6 + 1) * GIB + PROGRAM_BYTES
    kept = load_config("flux1-kontext", ["model.text_encoders=keep"])
    assert predict_host(kept, run, on_card).training == PROGRAM_BYTES
    on_cpu = memory.Memory(parts, {"update": 20 * GIB}, (), on_cpu=True)
    assert predict_host(kept, run, on_cpu).training == on_cpu.needed == (20 + 1) * GIB + PROGRAM_BYTES


@pytest.mark.parametrize(("kind", "n_bytes"), [(None, 0), ("nf4", 2), ("int8", 6), ("fp8", 6)])
def test_the_largest_layer_is_unpacked_in_fp32_unless_it_is_nf4(kind: Any, n_bytes: int) -> None:
    run = cast(DryRun, SimpleNamespace(dtype=torch.bfloat16, block_linears=[(2, 3), (10, 10)]))
    assert dequantised_bytes(run, kind) == 100 * n_bytes


def test_no_measure_of_a_dry_run_depends_on_those_before_it(folders: dict[str, str]) -> None:
    """The rotary tables of Qwen-Image-Edit are cached by the first call, in which they would count."""
    model = ModelConfig(family="qwen_edit", path=folders["qwen_edit"], guidance=1.0, height=64, width=64)
    measures: list[Callable[[DryRun], object]] = [
        lambda run: (run.flops, run.moved_bytes),
        lambda run: run.rollout_bytes(1),
        lambda run: run.update_bytes(1, checkpointing=False, kl=False),
        lambda run: run.graph_bytes(1, checkpointing=False),
    ]
    counts: list[list[object]] = []
    for order in (range(4), range(3, -1, -1)):
        run = DryRun(read_architecture(model), model, [(64, 64)])
        found = {number: measures[number](run) for number in order}
        counts.append([found[number] for number in range(4)])
    assert counts[0] == counts[1]
    stub = run._stub("num_layers", 2)
    with run.mode, RealLayout():
        inputs, _ = stub._inputs(1)
        assert stub.work == stub._work_of_pass(inputs)


@pytest.mark.parametrize("model", [FAMILIES[1]], indirect=True, ids=["flux2"])
def test_with_guidance_what_the_first_call_leaves_is_alive_in_the_second(model: ModelConfig) -> None:
    one, two = [dry_run(model.model_copy(update={"guidance": guidance})) for guidance in (1.0, 4.0)]
    assert (one.calls, two.calls) == (1, 2)
    update_of_one, update_of_two = [
        run.update_bytes(BATCH, checkpointing=True, kl=False) for run in (one, two)
    ]
    graph = one.graph_bytes(BATCH, checkpointing=True)
    assert two.graph_bytes(BATCH, checkpointing=True) == 2 * graph
    assert update_of_two == pytest.approx(update_of_one + graph, rel=5e-3)
    velocity = 4 * BATCH * one.token_channels * one.n_image  # in fp32
    assert two.rollout_bytes(BATCH) == one.rollout_bytes(BATCH) + velocity


def test_no_number_of_an_adapter_is_drawn_for_a_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of FLUX.1 at rank 512 would take 2 GiB and seconds."""
    devices: set[str] = set()
    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", lambda tensor, **_: devices.add(tensor.device.type))
    model = load_config("toybox-smoke").model
    DryRun(read_architecture(model), model, [])
    assert devices == {"meta"}
