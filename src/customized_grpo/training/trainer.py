"""The training loop of Customized-GRPO, which reads as its own table of contents: `Trainer.fit`.

What an iteration draws and what its loss is belongs to `algorithm`: GRPO, NFT or AWM. How this GRPO departs
from the textbook: advantages are normalised per reward and stay apart until the loss;
there they are combined by a rule (SARS) with weights of the true denoising step (TDW); the policy is a
stochastic sampler of a flow model, whose last step is deterministic and never trained; only a LoRA is
trained; there is no critic, and no KL unless the recipe sets train.kl_weight.

Every process runs this loop on its own whole groups. Decisions are made from numbers that all processes have,
and only the main process writes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from customized_grpo.config import Config
from customized_grpo.engine.interrupts import Interrupted, StopFlag
from customized_grpo.errors import UserError
from customized_grpo.pages.run_page import write_report
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.policies.provenance import Provenance
from customized_grpo.reporting.ending import forget_ending
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import RunFolder, disk_errors
from customized_grpo.runs.lock import RunLock
from customized_grpo.runs.reading import run_config
from customized_grpo.training.algorithm import build_algorithm
from customized_grpo.training.best import BestCheckpoint
from customized_grpo.training.calibration import check_calibration
from customized_grpo.training.drawing import Drawing, Groups
from customized_grpo.training.ending import noted_ending
from customized_grpo.training.evaluator import Evaluator
from customized_grpo.training.expected import announce
from customized_grpo.training.graph_memory import GraphMemory
from customized_grpo.training.log import RunLog, check_resumable, check_start
from customized_grpo.training.metrics import Clock, pixel_diversities, signal_health, signal_metrics
from customized_grpo.training.notes import start_notes
from customized_grpo.training.parts import Parts, build_engine, open_parts
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.state import RunCheckpoints, RunState
from customized_grpo.training.update_report import UpdateReport
from customized_grpo.training.updater import Updater
from customized_grpo.training.waste import find_waste


def train(config: Config) -> int:
    """Train a new run; return the exit status: 0, or 128 plus the number of a signal.

    Raises:
        UserError: Something the user can fix; the run folder is then untouched or resumable.
    """
    engine = build_engine(config)
    engine.from_main(lambda: check_start(config))
    folder = RunFolder(config.run.dir)
    with ExitStack() as stack:
        parts = stack.enter_context(open_parts(config, engine))
        check_calibration(config, parts.sampler.sigmas)

        def create_folder() -> None:  # after the parts: what cannot be loaded must not delete an older run
            stack.enter_context(RunLock(RunFolder.make(folder.path)))
            RunFolder.create(parts.config)

        engine.from_main(create_folder)
        return Trainer(folder, parts).run()


def resume(
    run_dir: Path, step: int | None = None, *, overrides: Sequence[str] = (), allowed: Sequence[str] = ()
) -> int:
    """Continue a run exactly where a checkpoint left it; return the exit status as `train` does.

    Args:
        run_dir: The run's folder.
        step: Iteration of the checkpoint, whose successors are set aside; None: the newest.
        overrides: Settings that replace the recipe's from here on, such as train.iterations=400.
        allowed: Keys, or sections of them, that may differ from the checkpoint.

    Raises:
        UserError: There is nothing to continue, or it is not the run of this folder's config.
    """
    config = run_config(run_dir, overrides)
    engine = build_engine(config)
    with ExitStack() as stack:

        def open_folder() -> None:
            stack.enter_context(RunLock(run_dir))
            check_resumable(config)

        engine.from_main(open_folder)
        parts = stack.enter_context(open_parts(config, engine))
        check_calibration(config, parts.sampler.sigmas)
        trainer = Trainer(RunFolder(run_dir), parts)
        trainer.load(step, allowed)
        if overrides:
            engine.from_main(lambda: trainer.folder.replace_config(parts.config))
        return trainer.run()


class Trainer:
    """One run: its parts, its state, and the loop.

    Args:
        folder: The run's folder, which exists and is locked.
        parts: The run's parts.
    """

    def __init__(self, folder: RunFolder, parts: Parts) -> None:
        self.folder = folder
        self.parts = parts
        self.config = parts.config
        self.engine = parts.engine
        self.data = parts.data
        self.scorer = parts.scorer
        self.policy = parts.policy
        self.partition = self.engine.partition(self.config.train.updates_per_iteration)
        self.algorithm = build_algorithm(parts, self.partition)
        self.updater = Updater(self.config, self.algorithm.loss, self.engine)
        self.graph_memory = GraphMemory(parts, lambda note: self.log.progress.message(f"note: {note}"))
        self.state = RunState(processes=self.engine.world_size)
        self.store = CheckpointStore(folder.path / "checkpoints", self.config.checkpoint.keep)
        self.checkpoints = RunCheckpoints(self.store, parts, self.updater, self.algorithm, self.state)
        self.log = RunLog(self.config, folder, self.state, self.engine)
        self.stop = StopFlag(self.engine)
        self.drawing = Drawing(
            parts,
            self.algorithm,
            self.partition,
            self.state,
            self.graph_memory,
            self.stop,
            lambda name: self.log.progress.phase(name),  # the terminal is there while the log is open
        )
        self.notes: list[tuple[str, str]] = []  # events of a resumed run, for when the log is open
        self.best = BestCheckpoint(self.config.checkpoint.best, folder, self.store, self.engine)
        self.evaluator = Evaluator(folder, parts, self.updater, self.state, self.log, self.stop)

    @property
    def iteration(self) -> int:
        """Return the number of finished iterations."""
        return self.state.iteration

    # The loop

    def run(self) -> int:
        """Train to the end and write the report, or stop at a signal; return the exit status."""
        with disk_errors(self.folder.path):
            self.engine.from_main(self.prepare_folder)
            savings = self.graph_memory.savings
            with self.log.open(), self.stop:
                self.report_notes()
                try:
                    with (
                        noted_ending(self.folder.path, is_writer=self.engine.is_main),
                        explained(self.config.model, self.config.batch_sizes, first=savings),
                    ):
                        if self.config.model.text_encoders == "drop":
                            self.log.progress.phase("encode")
                            self.parts.encode_and_drop_encoders(self.stop)
                        self.fit()
                except Interrupted as signal:
                    self.save()
                    self.log.progress.message(f"interrupted; continue with: cgrpo resume {self.folder.path}")
                    self.engine.close()
                    return signal.status
        if self.engine.is_main:
            print(f"report: {write_report(self.folder.path)}")
        self.engine.close()
        return 0

    def prepare_folder(self) -> None:
        """Remove what killed writers have left, and see that checkpoints can be saved there."""
        self.folder.sweep()
        self.store.sweep()
        self.store.probe()
        forget_ending(self.folder.path)
        if self.iteration < self.config.train.iterations:  # a finished run goes on for longer
            (self.folder.path / "summary.json").unlink(missing_ok=True)

    def fit(self) -> None:
        """Alternate sampling, scoring and updating; evaluate and save on the way."""
        started = time.monotonic()
        self.evaluator.evaluate_base()
        first = self.drawing.next_example()
        announce(self.parts, self.state, first, time.monotonic() - started, self.log.progress.message)
        self.evaluate_if_due()  # resumed: a checkpoint is saved before its iteration is evaluated
        while self.iteration < self.config.train.iterations:
            clock = Clock()
            groups = self.drawing.draw(clock)
            signal = self.signal(groups.scores)
            with clock.phase("update"):
                report = self.update(groups, signal)
            self.state.iteration += 1
            self.state.rollouts += groups.n_drawn * self.config.train.group_size
            self.state.further_prompts += groups.n_further
            self.record(signal, report, groups, clock)
            self.count_waste(groups.scores, signal, report)
            self.log.check()
            if self.is_due(self.config.checkpoint.every):
                self.save()
            self.evaluate_if_due()
            self.stop.check()
        self.finish()

    def is_due(self, every: int) -> bool:
        """Return whether something done every so many iterations (0: only at the end) is due now."""
        return self.iteration == self.config.train.iterations or (every > 0 and self.iteration % every == 0)

    def report_notes(self) -> None:
        """Report, at the start, what has changed, what the data lack, what has no effect, and what is cut."""
        for name, message in self.notes:
            self.log.event(name, message)
        for note in self.data.notes:
            self.log.progress.message(f"note: {note}")
        if self.iteration == 0 and self.engine.is_main:  # a resumed run has them in metrics.jsonl
            for name, sentence in start_notes(self.parts):
                self.log.event(name, sentence, prefix="note: ")

    # Updating

    def signal(self, scores: torch.Tensor) -> LearningSignal:
        """Normalise every reward in its group and reduce rewards [N, K] to kinds."""
        return LearningSignal.from_scores(self.config, self.scorer.rewards, scores, self.iteration)

    def update(self, groups: Groups, signal: LearningSignal) -> UpdateReport:
        """Take the iteration's optimizer steps."""
        self.log.progress.phase("update")
        self.stop.check()

        def record_skip(update: int) -> None:
            self.record_skip(groups.rows, update)

        report = self.updater.update(groups.samples, signal, self.iteration, record_skip)
        self.algorithm.finish_iteration(self.iteration)
        return report

    def record_skip(self, rows: Sequence[int], update: int) -> None:
        """Write down the prompts of an update that is left out, as one of them may be to blame."""
        n_update = len(rows) // self.config.train.updates_per_iteration
        rows_of_update = rows[update * n_update : (update + 1) * n_update]
        ids = ", ".join(self.data.train[row].id for row in rows_of_update)
        self.log.event(
            "skipped",
            f"an update with a non-finite loss or gradient was left out; its prompts: {ids}",
            iteration=self.iteration + 1,
        )

    # Measuring

    def record(self, signal: LearningSignal, report: UpdateReport, groups: Groups, clock: Clock) -> None:
        """Write the iteration's line of metrics."""
        group_size = self.config.train.group_size
        diversities = self.engine.gather(pixel_diversities(groups.samples.images, group_size))
        line = {
            **signal_metrics(signal, group_size),
            **groups.metrics(self.config.train.dynamic_sampling),
            **report.metrics(),
            "policy/learning_rate": self.updater.learning_rate(self.iteration - 1),  # it is counted by now
            "diversity/in_group": float(diversities.mean()),
            **clock.metrics(),
        }
        self.state.health.append(signal_health(signal, group_size))
        self.log.progress.iteration(self.log.write("train", line))
        self.log.failures(self.scorer.take_dropped())

    def count_waste(self, scores: torch.Tensor, signal: LearningSignal, report: UpdateReport) -> None:
        """Warn of the first iteration that taught nothing; stop when there are too many in a row."""
        train = self.config.train
        names = [reward.name for reward in self.scorer.rewards]
        waste = find_waste(names, scores, signal, report.grad_norms, train.max_unscored_share)
        if waste is None:
            self.state.wasted_in_a_row = 0
            return
        self.state.wasted_in_a_row += 1
        n_wasted = self.state.wasted_in_a_row
        if n_wasted == 1:
            self.log.event("wasted", waste.message, prefix=f"wasted iteration {self.iteration}: ")
        if n_wasted > train.max_wasted_iterations:
            self.give_up(
                f"stopped after {n_wasted} wasted iterations in a row: {waste.message}", waste.advice
            )

    def evaluate_if_due(self) -> None:
        """Evaluate after an iteration for which the recipe asks it, once."""
        is_new = self.evaluator.last_iteration < self.iteration
        if is_new and self.is_due(self.config.evaluation.every):
            self.evaluate()

    def evaluate(self) -> None:
        """Measure the policy; stop at an alarm if the recipe says so."""
        alarms = self.evaluator.evaluate()
        self.best.offer(self.iteration, self.evaluator.latest, self.save)
        if alarms and self.config.evaluation.on_alarm == "stop":
            self.give_up(f"stopped by alarm {alarms[0].name}: {alarms[0].message}")

    # Saving

    def save(self) -> None:
        """Write a checkpoint of the state after the last finished iteration, unless there is one."""
        self.state.seconds = self.log.seconds
        self.log.sync()  # first: a checkpoint promises that no line up to its iteration is missing
        self.checkpoints.save()

    def load(self, step: int | None = None, allowed: Sequence[str] = ()) -> None:
        """Restore the checkpoint of that iteration, or the newest.

        Args:
            step: Iteration of the checkpoint; None: the newest.
            allowed: Keys, or sections of them, that may differ from it.

        Raises:
            UserError: It is not there, is damaged, or belongs to another recipe, base, data, rewards or code.
        """
        restored = self.checkpoints.restore(step, allowed)
        missing = self.evaluator.restore(
            restored.history, is_comparable=restored.is_comparable, allowed=allowed
        )
        self.best.restore(self.evaluator.base)
        self.notes = [*restored.notes(self.engine.world_size), *(("missing", text) for text in missing)]

    def give_up(self, reason: str, advice: str = "") -> None:
        """Save, and stop the run.

        Raises:
            UserError: Always, with the reason and the advice.
        """
        self.save()
        hint = f"{advice} The run is saved; go on with `cgrpo resume {self.folder.path}`."
        raise UserError(reason, hint=hint.strip())

    def finish(self) -> None:
        """Write the adapter for diffusers; write the summary and show it."""
        self.evaluate_if_due()  # resumed, with train.iterations lowered to the number already finished
        self.save()
        if not self.engine.is_main:
            return
        with self.updater.result():
            self.policy.save_lora(self.folder.path / "lora", Provenance.from_config(self.config).to_header())
        self.folder.write_json(
            "summary.json",
            {
                **self.evaluator.report_result(),
                "iterations": self.iteration,
                "rollouts": self.state.rollouts,
                "wall_s": round(self.log.seconds, 1),
                "seed": self.config.run.seed,
                "device": str(self.policy.device),
                "processes": self.engine.world_size,
                "finished": True,
            },
        )
