"""lmp_trainer: train one experiment on one plan."""

import argparse
import json
import sys

from lmplay import code_diff, registry
from lmplay.cli import lists
from lmplay.cli.command import add_trust, command_parser, run_command, trust_code
from lmplay.errors import DONE, UserError
from lmplay.runs.settings import Settings
from lmplay.train import settings as settings_module

EXAMPLES = """\
  lmp_trainer --exp list                                      what there is to train
  lmp_trainer --exp gpt2ish:tiny --training-plan quick        a first run, without a network, in minutes
  lmp_trainer --exp gpt2ish --copy my_idea                    your own experiment: edit experiments/my_idea/model.py
  lmp_trainer --exp my_idea --diff                            what you changed
  lmp_trainer --exp my_idea --check                           does it look ahead, is all of it trained?
  lmp_trainer --amp --device cuda --exp pldr                  in mixed precision on a GPU
The same command typed again continues the run."""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_trainer with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_trainer", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    p = command_parser(
        "lmp_trainer",
        description="Train an experiment on the data of a plan.",
        examples=EXAMPLES,
    )
    settings_module.add_flags(p.add_argument_group("settings of the run"))
    ask = p.add_argument_group("instead of training")
    ask.add_argument("--describe", action="store_true", help="print what the experiment is and what it costs")
    ask.add_argument("--copy", metavar="NEW", help="copy the experiment to ./experiments/NEW")
    ask.add_argument(
        "--diff",
        nargs="?",
        const="",
        metavar="OTHER",
        help="print how the experiment differs from its parent, or from OTHER",
    )
    ask.add_argument("--markdown", action="store_true", help="with --exp list, print the list as a Markdown table")
    ask.add_argument("--json", action="store_true", help="with a list (--exp list and others), print it as JSON")
    ask.add_argument("--check", action="store_true", help="check the model: does it look ahead, is all of it trained?")
    ask.add_argument("--prepare-only", action="store_true", help="fetch and tokenize the data, to be offline later")
    ask.add_argument(
        "--export-data", metavar="FILE", help="prepare the data and write them into FILE for another machine"
    )
    ask.add_argument(
        "--import-data",
        metavar="FILE",
        help="take over data that --export-data wrote: they stand for its plan from then on",
    )
    ask.add_argument("--dry-run", action="store_true", help="do everything except the training")
    ask.add_argument("--dump-config", action="store_true", help="print the settings as JSON, for --use-config")
    add_trust(ask, what="")
    ask.add_argument("--verify", metavar="RUN", help="check a run and its data for damage; old ones get checksums")
    ask.add_argument(
        "--accept", action="store_true", help="with --verify, take the run's files as they are from now on"
    )
    ask.add_argument(
        "--prune", nargs="+", metavar="RUN", help="remove the checkpoints of finished runs; their curves are kept"
    )
    how = p.add_argument_group("how to start")
    how.add_argument(
        "--use-config",
        metavar="NAME|FILE",
        help="read settings from a file, or those of a published run; typed flags come first; 'list' shows all",
    )
    how.add_argument("--fresh", action="store_true", help="start the run over instead of continuing it")
    how.add_argument(
        "--cooldown-now",
        nargs="?",
        type=settings_module.number,
        const=True,
        metavar="F",
        help="cool down linearly from the newest checkpoint, over this fraction of the steps so far "
        "(default: --cooldown-fraction)",
    )
    how.add_argument(
        "--allow-leak",
        action="store_true",
        help="train a model even if it looks ahead or mixes the rows of a batch (default: refuse it)",
    )
    how.add_argument(
        "--devices",
        metavar="N|all",
        help="train the run with N processes, each on a GPU of its own, or with --device cpu on the CPU; all: on every "
        "GPU of this machine",
    )
    how.add_argument(
        "--shard",
        action="store_true",
        help="with several devices, hold a part of weights, gradients and optimizer states on each (FSDP2)",
    )
    how.add_argument("--check-grads", action="store_true", help="first check that every parameter gets a gradient")
    return p


def command(argv: list[str]) -> int:
    """Do what the flags ask for and return the exit status."""
    typed = parser().parse_args(argv)
    if typed.trust_code is not None:
        trust_code(typed.trust_code)
        return 0
    if lists.show(typed):
        return DONE
    if typed.import_data:
        return take_over(typed.import_data)
    settings = settings_module.from_flags(typed, typed.use_config)
    if typed.dump_config:
        print(json.dumps(settings.as_json(), indent=1))
        return 0
    if typed.copy:
        return copy(settings, typed.copy)
    if typed.diff is not None:
        return diff(settings, typed.diff)
    if typed.verify or typed.prune:
        return prune_runs(settings, typed.prune) if typed.prune else verify_run(settings, typed.verify, typed.accept)
    # before torch: it looks at its environment once
    from lmplay.model.device import prepare_process

    prepare_process()
    if typed.describe:
        return describe(settings)
    if typed.prepare_only or typed.export_data:
        return prepare_only(settings, typed.export_data)
    from lmplay.cli.training import train_by_flags

    return train_by_flags(settings, typed, argv)


def prune_runs(settings: Settings, runs: list[str]) -> int:
    """Remove the checkpoints of runs and print what was removed."""
    from lmplay.runs.folder import find_run
    from lmplay.runs.prune import prune

    found = {run.folder.resolve(): run for run in (find_run(one, settings.out_folder) for one in runs)}
    print("\n".join(prune(list(found.values()))))
    return DONE


def copy(settings: Settings, new: str) -> int:
    """Copy the experiment to ./experiments/NEW."""
    entry, variant = registry.find(settings.exp)
    folder = registry.copy_experiment(entry, new)
    if ":" not in settings.exp and "tiny" in entry.variants:
        variant = "tiny"
    default = settings.training_plan == Settings.training_plan
    plan = "quick" if default else settings.training_plan  # minutes, without a network
    print(
        f"{folder} is a copy of {entry.name}. Next:\n  edit {folder / 'model.py'}\n  lmp_trainer --exp {new} --diff\n"
        f"  lmp_trainer --exp {new}:{variant} --training-plan {plan}"
    )
    return 0


def diff(settings: Settings, other: str) -> int:
    """Print how the experiment differs from `other`, or from its parent if that is ""."""
    entry, _ = registry.find(settings.exp)
    other = other or entry.parent or ""
    if not other:
        raise UserError(f"{entry.name} names no parent: say what to compare it with, --diff OTHER")
    text = code_diff.diff(entry, registry.find(other)[0])
    print(text or f"{entry.name} is the same as {other}, docstrings aside", end="" if text else "\n")
    return 0


def describe(settings: Settings) -> int:
    """Print what the experiment is and what it costs."""
    from lmplay.model.no_compiler import without_compiler
    from lmplay.train.describe import describe_experiment

    print(without_compiler(describe_experiment)(settings))
    return 0


def verify_run(settings: Settings, path: str, accept: bool) -> int:
    """Check a run and its data for damage, and print what was checked. Raises UserError if something is damaged."""
    from lmplay.runs.folder import find_run, only_trainer
    from lmplay.runs.verify import verify

    run = find_run(path, settings.out_folder)
    lock = only_trainer(run.folder)
    damage = []
    for what, wrong in verify(run, accept):
        print(f"{'DAMAGED' if wrong else 'intact'}: {what}")
        damage += [wrong] if wrong else []
    lock.release()
    if damage:
        others = f" (and {len(damage) - 1} more)" if damage[1:] else ""
        raise UserError(
            f"{damage[0]}{others}: type the run's training command again, which goes on from what is intact; "
            f"--verify {path} --accept takes the run's files as they are"
        )
    return 0


def take_over(file: str) -> int:
    """Import prepared data and print for which plan."""
    from lmplay.data.exported import import_data
    from lmplay.files import data_folder

    print(f"plan {import_data(file)}: its data are those of {file} from now on, in {data_folder()}")
    return DONE


def prepare_only(settings: Settings, export: str | None = None) -> int:
    """Prepare the data, print what there is, and write it into a file if `export` names one."""
    from lmplay.data.exported import check_target, export_data
    from lmplay.data.prepare import prepare, trained_on
    from lmplay.files import data_folder
    from lmplay.text import count
    from lmplay.train.phases import choose_plan

    if export:
        check_target(export)
    plan = choose_plan(settings)
    data = prepare(plan, settings.tokenizer)
    for name, store in data.train.items():
        print(
            f"{name}: {count(store.n_tokens)} tokens in {store.n_documents:,} documents for training, "
            f"{count(data.validation[name].n_tokens)} in {data.validation[name].n_documents:,} for validation"
        )
    if export:
        stores = {"train": data.train, "validation": data.validation}
        _, asked = trained_on(plan, settings.tokenizer)
        path = export_data(data.plan, data.tokenizer, stores, asked=asked, data_hash=data.hash, file=export)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB for lmp_trainer --import-data on another machine")
        return DONE
    print(
        f"all of it is in {data_folder()}: copy that folder to use it on another machine "
        "(there, LMPLAY_DATA says where it is)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
