"""The training loop of Customized-GRPO, which reads as its own table of contents: `Trainer.fit`.

How this GRPO departs from the textbook: advantages are normalised per reward and stay apart until the loss;
there they are combined by a rule (SARS) with weights of the true denoising step (TDW); the policy is a
stochastic sampler of a flow model, whose last step is deterministic and never trained; only a LoRA is
trained; there is no critic, and no KL unless asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from customized_grpo import components, rollout
from customized_grpo.checkpoint.optimizer import flatten_optimizer, restore_optimizer
from customized_grpo.checkpoint.runlock import RunLock
from customized_grpo.checkpoint.store import CheckpointStore
from customized_grpo.config import Config, config_hash, diff_configs, load_config
from customized_grpo.data.examples import Example
from customized_grpo.data.sampler import prompt_indices
from customized_grpo.encoding import PromptEncoder
from customized_grpo.engine.engine import Engine
from customized_grpo.engine.signals import Interrupted, StopFlag
from customized_grpo.errors import UserError
from customized_grpo.evaluation import held_out
from customized_grpo.evaluation.alarms import MonitorRecord, Thresholds, TrainingHealth, check_alarms
from customized_grpo.evaluation.held_out import HeldOutScores
from customized_grpo.iteration_metrics import (
    Clock,
    mean_health,
    pixel_diversity,
    signal_health,
    signal_metrics,
)
from customized_grpo.optimisation import Signal, Updater, UpdateReport, load_average, name_average
from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.reporting.progress import Progress, progress
from customized_grpo.reporting.report import write_report
from customized_grpo.reporting.trackers import Trackers
from customized_grpo.rewards.base import score_all
from customized_grpo.rollout import Trajectory
from customized_grpo.run_folder import RunFolder, versions

SAMPLE_ROWS = 8  # held-out prompts whose pictures are kept for the report
UNCHANGEABLE = "only run.dir, run.overwrite, trackers and train.iterations may change on resume"


def train(config: Config) -> int:
    """Train a new run; returns the exit status: 0, 130 (Ctrl-C) or 143 (SIGTERM).

    Raises:
        UserError: Something the user can mend; the run folder then is untouched or resumable.
    """
    RunFolder.check_free(config)
    data = components.build_data(config)
    rewards = components.build_rewards(config)
    components.check_held_out(data, rewards)
    policy = components.build_policy(config)
    folder = RunFolder.create(config)
    with RunLock(folder.path):
        return Trainer(config, folder, data, rewards, policy).run()


def resume(run_dir: Path) -> int:
    """Continue a run exactly where its newest checkpoint left it; returns the exit status as `train` does.

    Raises:
        UserError: There is nothing to continue, or it is not the run of this folder's config.
    """
    folder = RunFolder(run_dir)
    config = load_config(str(run_dir / "config.yaml"), [f"run.dir={json.dumps(str(run_dir))}"])
    with RunLock(run_dir):
        store = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep)
        if store.latest() is None:
            raise UserError(
                f"{run_dir} has no complete checkpoint to resume from",
                "Start again with `cgrpo train` and run.overwrite=true.",
            )
        data = components.build_data(config)
        rewards = components.build_rewards(config)
        components.check_held_out(data, rewards)
        trainer = Trainer(config, folder, data, rewards, components.build_policy(config))
        trainer.load()
        return trainer.run()


class Trainer:
    """One run: its parts, its state, and the loop.

    State that a checkpoint holds: adapter, its average, optimizer, number of finished iterations, rollouts
    and seconds so far, skipped updates in a row, and what the alarms remember. Everything else is a function
    of the recipe, for all random numbers come from (seed, iteration, prompt, sample).
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        data: components.Data,
        rewards: list[Any],
        policy: Any,
    ) -> None:
        self.config, self.folder, self.data, self.rewards, self.policy = config, folder, data, rewards, policy
        self.encode = PromptEncoder.of(config, policy)
        self.engine = Engine(policy.device)
        self.sampler = rollout.build_sampler(policy, config.rollout, *self.encode.size)
        self.updater = Updater(
            policy, self.sampler, self.engine, config.train, config.advantage, config.model.precision
        )
        self.store = CheckpointStore(folder.path / "checkpoints", config.checkpoint.keep)
        self.iteration = 0
        self.rollouts = 0
        self.seconds = 0.0
        self.history: list[MonitorRecord] = []
        self.health: list[dict[str, float]] = []  # of iterations since the last evaluation
        self.base: HeldOutScores | None = None
        self.latest: HeldOutScores | None = None
        self.stop = StopFlag()

    # The loop

    def run(self) -> int:
        """Train to the end and write the report, or stop at a signal; returns the exit status."""
        config, path = self.config, self.folder.path
        with ExitStack() as stack:
            trackers = stack.enter_context(
                closing(Trackers(config.trackers, path, config.model_dump(mode="json")))
            )
            self.metrics = stack.enter_context(
                MetricsWriter.open(path / "metrics.jsonl", upto_iteration=self.iteration, trackers=trackers)
            )
            self.progress: Progress = stack.enter_context(progress(config.train.iterations, self.iteration))
            stack.enter_context(self.stop)
            self.store.sweep()
            self.started = time.monotonic() - self.seconds
            try:
                self.fit()
            except Interrupted as signal:
                self.save()
                self.progress.message(f"interrupted; continue with: cgrpo resume {path}")
                return signal.status
            finally:
                self.seconds = time.monotonic() - self.started
        report = write_report(path)
        print(f"report: {report}")
        return 0

    def fit(self) -> None:
        """Alternate sampling, scoring and updating; evaluate and save on the way."""
        self.evaluate_base()
        while self.iteration < self.config.train.iterations:
            clock = Clock()
            examples = self.next_examples()
            with clock.phase("rollout"):
                trajectory = self.collect(examples)
            with clock.phase("reward"):
                scores = self.score(examples, trajectory)
            signal = self.signal(scores)
            with clock.phase("update"):
                report = self.update(trajectory, signal)
            self.iteration += 1
            self.rollouts += len(trajectory)
            self.record(signal, report, trajectory, clock)
            if self.is_due(self.config.evaluation.every):
                self.evaluate()
            if self.is_due(self.config.checkpoint.every):
                self.save()
            self.stop.check()
        self.finish()

    def is_due(self, every: int) -> bool:
        """Return whether something done every so many iterations (0: only at the end) is due now."""
        at_end = self.iteration == self.config.train.iterations
        return at_end or (every > 0 and self.iteration % every == 0)

    # Sampling and scoring

    def next_examples(self) -> list[Example]:
        """Return the prompts of this iteration."""
        config = self.config
        rows = prompt_indices(
            len(self.data.train), config.train.prompts_per_iteration, self.iteration, config.run.seed
        )
        return [self.data.train[row] for row in rows]

    def collect(self, examples: list[Example]) -> Trajectory:
        """Draw a group of samples for every prompt."""
        config = self.config
        self.progress.phase("rollout")
        plan = rollout.step_plan(
            config.rollout, config.train.trained_fraction, self.iteration, config.run.seed
        )
        return rollout.collect(
            self.policy,
            self.sampler,
            examples,
            config.rollout,
            encode=self.encode,
            group_size=config.train.group_size,
            plan=plan,
            seeds=(config.run.seed, self.iteration),
            keep_means=config.train.ratio_normalisation,
            between=self.stop.check,
        )

    def score(self, examples: list[Example], trajectory: Trajectory) -> torch.Tensor:
        """Ask every reward about every sample: [N, K], NaN where one could not score."""
        self.progress.phase("reward")
        self.stop.check()
        per_sample = [example for example in examples for _ in range(trajectory.group_size)]
        return score_all(self.rewards, held_out.scoring_batch(trajectory.images, per_sample))

    def signal(self, scores: torch.Tensor) -> Signal:
        """Normalise every reward in its group and reduce rewards [N, K] to kinds [N, 2]."""
        return Signal.of(self.config, self.rewards, scores, self.iteration)

    def update(self, trajectory: Trajectory, signal: Signal) -> UpdateReport:
        """Take the iteration's optimizer steps."""
        self.progress.phase("update")
        self.stop.check()
        return self.updater.update(trajectory, signal, self.iteration)

    # Measuring

    def record(self, signal: Signal, report: UpdateReport, trajectory: Trajectory, clock: Clock) -> None:
        """Write the iteration's line of metrics."""
        group_size = trajectory.group_size
        line = {
            **signal_metrics(signal, group_size),
            **report.metrics(),
            "policy/learning_rate": self.updater.learning_rate(self.iteration - 1),
            "diversity/in_group": pixel_diversity(trajectory.images, group_size),
            **clock.metrics(),
        }
        self.health.append(signal_health(signal, group_size))
        self.progress.iteration(self.write("train", line))

    def write(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        """Append one line to metrics.jsonl and return it."""
        self.seconds = time.monotonic() - self.started
        line = {
            "kind": kind,
            "iteration": self.iteration,
            "rollouts": self.rollouts,
            "wall_s": round(self.seconds, 3),
            **values,
        }
        self.metrics.write(line)
        return line

    def evaluate_base(self) -> None:
        """Measure the base once, before the first iteration; a resumed run reads it back."""
        if not self.data.held_out:
            return
        if self.base is not None:
            self.progress.evaluation({"kind": "eval", "iteration": 0, **self.base.metrics()})
            return
        rows = [
            SampleRow(e.prompt, e.references[0], subject=e.subject, target=e.target)
            for e in self.data.held_out[:SAMPLE_ROWS]
        ]
        start_samples(self.folder.path / "samples", rows)
        self.evaluate()

    def evaluate(self) -> None:
        """Judge the policy on held-out prompts, keep pictures, raise alarms."""
        if not self.data.held_out:
            return
        self.progress.phase("evaluate")
        scores, images = self.held_out_scores()
        self.folder.write_json(_evaluation_file(self.iteration), scores.to_json())
        shown = images[:: self.config.evaluation.samples_per_prompt][:SAMPLE_ROWS]
        save_samples(self.folder.path / "samples", self.iteration, shown)
        gaps = held_out.train_gaps(scores, mean_health(self.health).reward) if self.health else {}
        self.progress.evaluation(self.write("eval", {**scores.metrics(), **gaps}))
        if self.base is None:
            self.base = scores
        else:
            self.watch(scores, self.base)
        self.latest = scores

    def held_out_scores(self) -> tuple[HeldOutScores, torch.Tensor]:
        """Generate and judge the held-out pictures with the adapter, or its average, as it is now."""
        config = self.config.evaluation
        steps = config.steps or self.config.rollout.steps
        with self.result():
            return held_out.evaluate_policy(
                self.policy,
                self.data.held_out,
                self.rewards,
                self.data.judges,
                encode=self.encode,
                reward_weights=[reward.weight for reward in self.config.rewards],
                sigmas=self.policy.sigmas(steps, self.policy.n_tokens(*self.encode.size)),
                samples_per_prompt=config.samples_per_prompt,
                seed=config.seed,
                batch_size=config.batch_size,
            )

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside the block the policy is what the run is judged by: with use_ema the adapter's average."""
        current = self.policy.adapter_tensors()
        if self.config.evaluation.use_ema:
            assert self.updater.average is not None
            load_average(self.updater.parameters, name_average(self.updater.average))
        try:
            yield
        finally:
            self.policy.load_adapter_tensors(current)

    def watch(self, scores: HeldOutScores, base: HeldOutScores) -> None:
        """Compare with the base and raise what alarms there are."""
        health = mean_health(self.health)
        self.health = []
        self.history.append(held_out.monitor_record(self.iteration, scores, base, health))
        alarms = check_alarms(self.history, Thresholds())
        for alarm in alarms:
            self.write("event", {"event": "alarm", "message": alarm.message})
            self.progress.message(f"alarm ({alarm.name}): {alarm.message}")
        if alarms and self.config.evaluation.on_alarm == "stop":
            self.save()
            raise UserError(
                f"stopped by alarm {alarms[0].name}: {alarms[0].message}",
                f"The run is saved; go on with `cgrpo resume {self.folder.path}`.",
            )

    # Saving

    def save(self) -> None:
        """Write a checkpoint of the state after the last finished iteration, unless there is one."""
        if self.store.latest() == self.iteration:
            return
        optimizer, optimizer_state = flatten_optimizer(self.updater.optimizer)
        tensors = {"adapter": self.policy.adapter_tensors(), "optimizer": optimizer}
        if self.updater.average is not None:
            tensors["average"] = name_average(self.updater.average)
        self.store.save(
            self.iteration,
            tensors,
            {
                "iteration": self.iteration,
                "rollouts": self.rollouts,
                "seconds": time.monotonic() - self.started,
                "skipped_in_a_row": self.updater.skipped_in_a_row,
                "health": self.health,
                "history": [
                    {
                        "iteration": r.iteration,
                        "zero_std": dict(r.zero_std_share),
                        "nan": dict(r.nan_share),
                        "reward": dict(r.train_reward),
                    }
                    for r in self.history
                ],
                "optimizer": optimizer_state,
                "config": self.config.model_dump(mode="json"),
                "config_hash": config_hash(self.config),
                "rewards": [reward.fingerprint() for reward in self.rewards],
                "versions": versions(),
            },
        )

    def load(self) -> None:
        """Restore the newest checkpoint.

        Raises:
            UserError: It is damaged, or belongs to another recipe or other rewards.
        """
        step = self.store.latest()
        assert step is not None
        checkpoint = self.store.load(step)
        state: Any = checkpoint.state
        self.check_same_run(state)
        self.policy.load_adapter_tensors(dict(checkpoint.tensors["adapter"]))
        restore_optimizer(self.updater.optimizer, checkpoint.tensors["optimizer"], state["optimizer"])
        if self.updater.average is not None:
            load_average(self.updater.average, checkpoint.tensors["average"])
        self.iteration, self.rollouts = state["iteration"], state["rollouts"]
        self.seconds, self.health = state["seconds"], state["health"]
        self.updater.skipped_in_a_row = state["skipped_in_a_row"]
        self.restore_evaluations(state["history"])

    def check_same_run(self, state: Any) -> None:
        """Refuse a checkpoint of another recipe or of other rewards, and say what differs."""
        saved = Config.model_validate_json(json.dumps(state["config"]))
        changed = [
            f"{path}: {old} in the checkpoint, {new} now"
            for path, old, new in diff_configs(saved, self.config)
            if path not in {"run.dir", "run.overwrite", "train.iterations"}
            and not path.startswith("trackers")
        ]
        if state["rewards"] != [reward.fingerprint() for reward in self.rewards]:
            changed.append("rewards: their weights or preprocessing are not those of the checkpoint")
        if changed:
            raise UserError(
                "cannot resume exactly:\n  " + "\n  ".join(changed), UNCHANGEABLE.capitalize() + "."
            )

    def restore_evaluations(self, remembered: list[dict[str, Any]]) -> None:
        """Read the evaluations back from the folder; `remembered` says what the alarms know besides."""
        if not self.data.held_out:
            return
        self.base = self.latest = self.read_evaluation(0)
        for entry in remembered:
            self.latest = self.read_evaluation(entry["iteration"])
            health = TrainingHealth(entry["zero_std"], entry["nan"], entry["reward"])
            self.history.append(held_out.monitor_record(entry["iteration"], self.latest, self.base, health))

    def read_evaluation(self, iteration: int) -> HeldOutScores:
        """Return the scores that an evaluation of this run wrote."""
        return HeldOutScores.from_json(self.folder.read_json(_evaluation_file(iteration)))

    def finish(self) -> None:
        """Write the adapter for diffusers and the summary."""
        evaluated = self.history[-1].iteration if self.history else 0
        if evaluated < self.iteration:  # resumed, with train.iterations lowered to what was already done
            self.evaluate()
        self.save()
        with self.result():
            self.policy.save_lora(self.folder.path / "lora")
        self.seconds = time.monotonic() - self.started
        facts = {
            "iterations": self.iteration,
            "rollouts": self.rollouts,
            "wall_s": round(self.seconds, 1),
            "seed": self.config.run.seed,
            "device": str(self.policy.device),
            "finished": True,
        }
        scores = held_out.summary(self.base, self.latest) if self.base and self.latest else {}
        self.folder.write_json("summary.json", {**scores, **facts})


def _evaluation_file(iteration: int) -> str:
    return f"evaluations/iteration_{iteration:06d}.json"
