"""The training loop of Customized-GRPO, which reads as its own table of contents: `Trainer.fit`.

How this GRPO departs from the textbook: advantages are normalised per reward and stay apart until the loss;
there they are combined by a rule (SARS) with weights of the true denoising step (TDW); the policy is a
stochastic sampler of a flow model, whose last step is deterministic and never trained; only a LoRA is
trained; there is no critic, and no KL unless asked for.

Every process runs this loop on its own share of whole groups; what is decided is decided from numbers that
all of them have, and only the main process writes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from customized_grpo.algorithms.schedules import prompt_weights
from customized_grpo.config import Config, load_config
from customized_grpo.data.examples import Example
from customized_grpo.data.sampler import prompt_indices
from customized_grpo.engine.engine import Engine
from customized_grpo.engine.interrupts import Interrupted, StopFlag
from customized_grpo.engine.partition import padded_block
from customized_grpo.errors import UserError
from customized_grpo.evaluation import held_out
from customized_grpo.evaluation.alarms import Thresholds, TrainingHealth, check_alarms
from customized_grpo.evaluation.held_out import HeldOutScores
from customized_grpo.pages.run_page import write_report
from customized_grpo.policies.lora import load_average, name_average
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.policies.policy import Policy
from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from customized_grpo.reporting.metrics import MetricsWriter, read_metrics
from customized_grpo.reporting.progress import Progress, progress
from customized_grpo.reporting.trackers import Trackers
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rollout import collect as rollout
from customized_grpo.rollout.collect import Trajectory
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import RunFolder, disk_errors
from customized_grpo.runs.lock import RunLock
from customized_grpo.training import parts as components
from customized_grpo.training.metrics import (
    Clock,
    mean_health,
    pixel_diversities,
    signal_health,
    signal_metrics,
)
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.state import Counters, RunCheckpoints, remember
from customized_grpo.training.updater import Updater, UpdateReport
from customized_grpo.training.waste import find_waste

SAMPLE_ROWS = 8  # held-out prompts whose pictures are kept for the report


def train(config: Config) -> int:
    """Train a new run; returns the exit status: 0, 130 (Ctrl-C) or 143 (SIGTERM).

    Raises:
        UserError: Something the user can mend; the run folder then is untouched or resumable.
    """
    engine = components.build_engine(config)
    engine.from_main(lambda: RunFolder.check_free(config))
    data = components.build_data(config)
    folder = RunFolder(config.run.dir)
    with ExitStack() as stack:
        scorer = stack.enter_context(components.build_scorer(config, engine.device))
        components.check_held_out(data, scorer)
        policy = components.build_policy(config, engine.device)

        def open_folder() -> None:
            RunFolder.create(config)
            stack.enter_context(RunLock(folder.path))

        engine.from_main(open_folder)
        return Trainer(config, folder, engine, data, scorer, policy).run()


def resume(run_dir: Path, step: int | None = None) -> int:
    """Continue a run exactly where a checkpoint left it; returns the exit status as `train` does.

    Args:
        run_dir: The run's folder.
        step: Iteration of the checkpoint, whose successors are set aside; None: the newest.

    Raises:
        UserError: There is nothing to continue, or it is not the run of this folder's config.
    """
    config = load_config(str(run_dir / "config.yaml"), [f"run.dir={json.dumps(str(run_dir))}"])
    engine = components.build_engine(config)
    with ExitStack() as stack:

        def open_folder() -> None:
            stack.enter_context(RunLock(run_dir))
            if CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep).latest() is None:
                raise UserError(
                    f"{run_dir} has no complete checkpoint to resume from",
                    "Start again with `cgrpo train` and run.overwrite=true.",
                )

        engine.from_main(open_folder)
        data = components.build_data(config)
        scorer = stack.enter_context(components.build_scorer(config, engine.device))
        components.check_held_out(data, scorer)
        policy = components.build_policy(config, engine.device)
        trainer = Trainer(config, RunFolder(run_dir), engine, data, scorer, policy)
        trainer.load(step)
        return trainer.run()


class Trainer:
    """One run: its parts, its state, and the loop; `run_checkpoint` says what of it is saved."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        engine: Engine,
        data: components.Data,
        scorer: Scorer,
        policy: Policy,
    ) -> None:
        self.config, self.folder, self.engine = config, folder, engine
        self.data, self.scorer, self.policy = data, scorer, policy
        self.encode = PromptEncoder.of(config, policy)
        self.share = engine.share(config.train.updates_per_iteration)
        self.sampler = rollout.build_sampler(policy, config.rollout, *self.encode.size)
        self.updater = Updater(
            policy, self.sampler, engine, config.train, config.advantage, config.model.precision
        )
        self.store = CheckpointStore(folder.path / "checkpoints", config.checkpoint.keep)
        self.checkpoints = RunCheckpoints(self.store, config, engine, policy, self.updater, scorer)
        self.state = Counters()
        self.base: HeldOutScores | None = None
        self.latest: HeldOutScores | None = None
        self.stop = StopFlag(engine)
        self.processes_before = engine.world_size  # when the run was last saved

    @property
    def iteration(self) -> int:
        """Return the number of finished iterations."""
        return self.state.iteration

    # The loop

    def run(self) -> int:
        """Train to the end and write the report, or stop at a signal; returns the exit status."""
        with ExitStack() as stack:
            stack.enter_context(disk_errors(self.folder.path))
            self.open_outputs(stack)
            stack.enter_context(self.stop)
            self.started = time.monotonic() - self.state.seconds
            self.note_processes()
            config = self.config
            batches = {
                "train.micro_batch_size": config.train.micro_batch_size,
                "rollout.batch_size": config.rollout.batch_size,
                "evaluation.batch_size": config.evaluation.batch_size,
            }
            try:
                with explained(config.model, batches):
                    self.encode_everything()
                    self.fit()
            except Interrupted as signal:
                self.save()
                self.progress.message(f"interrupted; continue with: cgrpo resume {self.folder.path}")
                self.engine.close()
                return signal.status
        if self.engine.is_main:
            print(f"report: {write_report(self.folder.path)}")
        self.engine.close()
        return 0

    def open_outputs(self, stack: ExitStack) -> None:
        """Open what the main process writes to; the others keep silent."""
        config, path, is_main = self.config, self.folder.path, self.engine.is_main
        self.progress: Progress = stack.enter_context(
            progress(config.train.iterations, self.iteration, quiet=not is_main)
        )
        self.metrics: MetricsWriter | None = None
        if is_main:
            self.store.sweep()
            schedule = prompt_weights(config.schedule.build(), config.rollout.steps)
            self.folder.write_json("schedule.json", {"prompt_weights": schedule.tolist()})
            recipe = config.model_dump(mode="json")
            trackers = stack.enter_context(closing(Trackers(config.trackers, path, recipe)))
            self.metrics = stack.enter_context(
                MetricsWriter.open(path / "metrics.jsonl", upto_iteration=self.iteration, trackers=trackers)
            )

    def fit(self) -> None:
        """Alternate sampling, scoring and updating; evaluate and save on the way."""
        self.evaluate_base()
        self.evaluate_if_due()  # a checkpoint is saved before its iteration is evaluated
        while self.iteration < self.config.train.iterations:
            clock = Clock()
            examples = self.next_examples()
            with clock.phase("rollout"):
                trajectory = self.collect(examples, clock)
            with clock.phase("reward"):
                scores = self.score()
            signal = self.signal(scores)
            with clock.phase("update"):
                report = self.update(trajectory, signal)
            self.state.iteration += 1
            self.state.rollouts += len(scores)
            self.record(signal, report, trajectory, clock)
            self.count_waste(scores, signal)
            if self.is_due(self.config.checkpoint.every):
                self.save()
            self.evaluate_if_due()
            self.stop.check()
        self.finish()

    def note_processes(self) -> None:
        """Say when a run goes on with another number of processes than it was saved by."""
        before, now = self.processes_before, self.engine.world_size
        if before != now:
            message = (
                f"saved by {before} processes, resumed by {now}: the samples stay the same, but sums over "
                "processes may differ in their last bits"
            )
            self.write("event", {"event": "processes", "message": message})
            self.progress.message(message)

    def encode_everything(self) -> None:
        """Fill the cache with every row, when the text encoders shall be dropped after that."""
        if self.config.model.text_encoders != "drop":
            return
        self.progress.phase("encode")
        for rows in (self.data.train, self.data.held_out):
            mine = padded_block(len(rows), self.engine.rank, self.engine.world_size)
            self.encode.fill_cache((rows[row] for row in mine), self.stop.between(len(mine)))
        self.engine.wait_for_all()
        self.policy.drop_text_encoders()

    def is_due(self, every: int) -> bool:
        """Return whether something done every so many iterations (0: only at the end) is due now."""
        at_end = self.iteration == self.config.train.iterations
        return at_end or (every > 0 and self.iteration % every == 0)

    # Sampling and scoring

    def next_examples(self) -> list[Example]:
        """Return this process's prompts of this iteration."""
        rows = self.prompt_rows()
        return [self.data.train[rows[number]] for number in self.share.prompts(len(rows))]

    def prompt_rows(self) -> list[int]:
        """Return the rows of this iteration's prompts, those of all processes."""
        wanted = self.config.train.prompts_per_iteration
        return prompt_indices(len(self.data.train), wanted, self.iteration, self.config.run.seed)

    def collect(self, examples: list[Example], clock: Clock) -> Trajectory:
        """Draw a group of samples for every prompt; each batch of pictures goes to the rewards at once."""
        config, group_size = self.config, self.config.train.group_size
        self.progress.phase("rollout")
        plan = rollout.step_plan(
            config.rollout, config.train.trained_fraction, self.iteration, config.run.seed
        )
        samples = [example for example in examples for _ in range(group_size)]

        def drawn(rows: slice, images: torch.Tensor) -> None:
            with clock.phase("reward"):
                self.scorer.submit(held_out.scoring_batch(images, samples[rows]))

        return rollout.collect(
            self.policy,
            self.sampler,
            examples,
            config.rollout,
            encode=self.encode,
            group_size=group_size,
            plan=plan,
            seeds=(config.run.seed, self.iteration),
            keep_means=config.train.ratio_normalisation,
            between=self.stop.between(rollout.n_batches(examples, group_size, config.rollout.batch_size)),
            drawn=drawn,
        )

    def score(self) -> torch.Tensor:
        """Wait for what the rewards say about this process's samples; returns the scores of all processes.

        Returns:
            [N, K], N samples in the iteration's order, NaN where a reward could not score.
        """
        self.progress.phase("reward")
        self.stop.check()
        alone = self.engine.world_size == 1  # others could not be told while they wait for their own rewards
        scores = self.scorer.collect(self.stop.check) if alone else self.scorer.collect()
        return self.share.in_order(self.engine.gather(scores))

    def signal(self, scores: torch.Tensor) -> LearningSignal:
        """Normalise every reward in its group and reduce rewards [N, K] to kinds [N, 2]."""
        return LearningSignal.of(self.config, self.scorer.rewards, scores, self.iteration)

    def update(self, trajectory: Trajectory, signal: LearningSignal) -> UpdateReport:
        """Take the iteration's optimizer steps."""
        self.progress.phase("update")
        self.stop.check()
        return self.updater.update(trajectory, signal, self.iteration, self.note_skip)

    # Measuring

    def record(
        self, signal: LearningSignal, report: UpdateReport, trajectory: Trajectory, clock: Clock
    ) -> None:
        """Write the iteration's line of metrics."""
        group_size = trajectory.group_size
        diversities = self.engine.gather(pixel_diversities(trajectory.images, group_size))
        line = {
            **signal_metrics(signal, group_size),
            **report.metrics(),
            "policy/learning_rate": self.updater.learning_rate(self.iteration - 1),
            "diversity/in_group": float(diversities.mean()),
            **clock.metrics(),
        }
        self.state.health.append(signal_health(signal, group_size))
        self.progress.iteration(self.write("train", line))
        for message in self.scorer.take_dropped():
            self.write("event", {"event": "reward failed", "message": message})
            self.progress.message(f"scores are missing: {message}")

    def note_skip(self, step: int) -> None:
        """Write down which prompts an optimizer step was about that is left out: one may be to blame."""
        rows = self.prompt_rows()
        size = len(rows) // self.config.train.updates_per_iteration
        prompts = [self.data.train[row].id for row in rows[step * size : (step + 1) * size]]
        message = (
            f"an update with a non-finite loss or gradient was left out; its prompts: {', '.join(prompts)}"
        )
        self.write("event", {"event": "skipped", "iteration": self.iteration + 1, "message": message})
        self.progress.message(message)

    def count_waste(self, scores: torch.Tensor, signal: LearningSignal) -> None:
        """Warn of the first iteration that taught nothing; stop when there are too many in a row."""
        names, train = [reward.name for reward in self.scorer.rewards], self.config.train
        waste = find_waste(names, scores, signal, train.max_unscored_share)
        self.state.wasted_in_a_row = self.state.wasted_in_a_row + 1 if waste else 0
        if waste is None:
            return
        if self.state.wasted_in_a_row == 1:
            self.write("event", {"event": "wasted", "message": waste.message})
            self.progress.message(f"wasted iteration {self.iteration}: {waste.message}")
        if self.state.wasted_in_a_row > train.max_wasted_iterations:
            self.save()
            raise UserError(
                f"stopped after {self.state.wasted_in_a_row} wasted iterations in a row: {waste.message}",
                f"{waste.advice} The run is saved; go on with `cgrpo resume {self.folder.path}`.",
            )

    def write(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        """Append one line to metrics.jsonl and return it."""
        line = {
            "kind": kind,
            "iteration": self.iteration,
            "rollouts": self.state.rollouts,
            "wall_s": round(time.monotonic() - self.started, 3),
            **values,
        }
        if self.metrics is not None:
            self.metrics.write(line)
        return line

    def evaluate_base(self) -> None:
        """Measure the base once, before the first iteration; a resumed run reads it back."""
        if not self.data.held_out:
            return
        if self.base is not None:
            self.progress.evaluation({"kind": "eval", "iteration": 0, **self.base.metrics()})
            return
        if self.engine.is_main:
            rows = [
                SampleRow(e.prompt, e.references[0], subject=e.subject, target=e.target)
                for e in self.data.held_out[:SAMPLE_ROWS]
            ]
            start_samples(self.folder.path / "samples", rows)
        self.evaluate()

    def evaluate_if_due(self) -> None:
        """Evaluate after an iteration for which the recipe asks it, once."""
        evaluated = self.state.history[-1].iteration if self.state.history else 0
        if evaluated < self.iteration and self.is_due(self.config.evaluation.every):
            self.evaluate()

    def evaluate(self) -> None:
        """Judge the policy on held-out prompts, keep pictures, raise alarms."""
        if not self.data.held_out:
            return
        self.progress.phase("evaluate")
        scores, shown = self.held_out_scores()
        if self.engine.is_main:
            self.folder.write_json(_evaluation_file(self.iteration), scores.to_json())
            save_samples(self.folder.path / "samples", self.iteration, shown)
        health = self.state.health
        gaps = held_out.train_gaps(scores, mean_health(health).reward) if health else {}
        self.progress.evaluation(self.write("eval", {**scores.metrics(), **gaps}))
        if self.base is None:
            self.base = scores
        else:
            self.watch(scores, self.base)
        self.latest = scores

    def held_out_scores(self) -> tuple[HeldOutScores, torch.Tensor]:
        """Generate and judge the held-out pictures with the adapter, or its average, as it is now.

        Returns:
            the scores of all processes' pictures, and the first picture of each of the first SAMPLE_ROWS
            prompts [n, 3, H, W].
        """
        config, examples = self.config.evaluation, self.data.held_out
        mine = padded_block(len(examples), self.engine.rank, self.engine.world_size)
        own = [examples[number] for number in mine]
        steps = config.steps or self.config.rollout.steps
        with self.result():
            scores, images = held_out.evaluate_policy(
                self.policy,
                own,
                self.scorer,
                self.data.judges,
                encode=self.encode,
                reward_weights=[reward.weight for reward in self.config.rewards],
                sigmas=self.policy.sigmas(steps, self.policy.n_tokens(*self.encode.size)),
                samples_per_prompt=config.samples_per_prompt,
                seed=config.seed,
                batch_size=config.batch_size,
                between=self.stop.between(
                    rollout.n_batches(own, config.samples_per_prompt, config.batch_size)
                ),
            )
        firsts = images[:: config.samples_per_prompt]
        shown = torch.zeros(min(SAMPLE_ROWS, len(examples)), *images.shape[1:])
        for place, number in enumerate(mine):
            if number < len(shown) and number not in mine[:place]:
                shown[number] = firsts[place]
        everyone = scores.joined(self.engine.gather, examples, config.samples_per_prompt)
        return everyone, self.engine.total(shown)

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
        health = mean_health(self.state.health)
        self.state.health = []
        self.state.history.append(held_out.monitor_record(self.iteration, scores, base, health))
        alarms = check_alarms(self.state.history, Thresholds())
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
        self.state.seconds = time.monotonic() - self.started
        self.checkpoints.save(self.state)

    def load(self, step: int | None = None) -> None:
        """Restore the checkpoint of that iteration, or the newest.

        Raises:
            UserError: It is not there, is damaged, or belongs to another recipe or other rewards.
        """
        saved = self.checkpoints.restore(step)
        names = ("iteration", "rollouts", "seconds", "wasted_in_a_row", "health")
        self.state = Counters(**{name: saved[name] for name in names})
        self.restore_evaluations(saved["history"])
        self.processes_before = saved["processes"]

    def restore_evaluations(self, remembered: list[dict[str, Any]]) -> None:
        """Read the evaluations back from the folder; `remembered` says what the alarms know besides.

        A checkpoint is saved before its iteration is evaluated. That evaluation counts, too, if it was
        finished; else `fit` begins with it.
        """
        evaluated = self.engine.from_main(self.evaluated_iterations)
        if 0 not in evaluated:  # nothing is held out, or the run was interrupted before
            return
        known = [entry["iteration"] for entry in remembered]
        if self.iteration in evaluated and self.iteration not in [0, *known]:
            health = mean_health(self.state.health)
            self.state.health = []
            remembered = [*remembered, {"iteration": self.iteration, **remember(health)}]
        self.base = self.latest = self.read_evaluation(0)
        for entry in remembered:
            self.latest = self.read_evaluation(entry["iteration"])
            health = TrainingHealth(*(entry[name] for name in TrainingHealth._fields))
            self.state.history.append(
                held_out.monitor_record(entry["iteration"], self.latest, self.base, health)
            )

    def evaluated_iterations(self) -> list[int]:
        """Return the iterations whose evaluation was finished: their line is the last thing it writes."""
        lines = read_metrics(self.folder.path / "metrics.jsonl")
        return [int(line["iteration"] or 0) for line in lines if line["kind"] == "eval"]

    def read_evaluation(self, iteration: int) -> HeldOutScores:
        """Return the scores that an evaluation of this run wrote."""
        table = self.engine.from_main(lambda: self.folder.read_json(_evaluation_file(iteration)))
        return HeldOutScores.from_json(table)

    def finish(self) -> None:
        """Write the adapter for diffusers and the summary."""
        self.evaluate_if_due()  # resumed, with train.iterations lowered to what was already done
        self.save()
        if not self.engine.is_main:
            return
        with self.result():
            self.policy.save_lora(self.folder.path / "lora")
        facts = {
            "iterations": self.iteration,
            "rollouts": self.state.rollouts,
            "wall_s": round(time.monotonic() - self.started, 1),
            "seed": self.config.run.seed,
            "device": str(self.policy.device),
            "processes": self.engine.world_size,
            "finished": True,
        }
        scores = held_out.summary(self.base, self.latest) if self.base and self.latest else {}
        self.folder.write_json("summary.json", {**scores, **facts})


def _evaluation_file(iteration: int) -> str:
    return f"evaluations/iteration_{iteration:06d}.json"
