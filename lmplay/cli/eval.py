"""lmp_eval: evaluate a run on tasks of the lm-evaluation-harness."""

import argparse
import json
import sys

from lmplay.cli.command import add_device, add_out, add_trust, command_parser, run_command, trust_code
from lmplay.errors import check_at_least
from lmplay.train.settings import whole

EXAMPLES = """\
  lmp_eval my_run --tasks hellaswag arc_easy --limit 200    tasks of the harness, 200 documents of each
  lmp_eval my_run --tasks my_task.yaml                      a task of your own, on data beside it
The results are kept in the run's folder, and lmp_plotstats --report shows them. No verdict uses them."""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_eval with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_eval", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    p = command_parser(
        "lmp_eval",
        description="Evaluate a run on tasks of EleutherAI's lm-evaluation-harness. Beside the accuracy stand the bits "
        "per byte of the right answers: at small sizes accuracy is noise.",
        examples=EXAMPLES,
    )
    p.add_argument(
        "run", metavar="RUN", help="a run's folder, its name in --out, one of its checkpoints, or hf:FOLDER_OR_ID"
    )
    p.add_argument("--tasks", nargs="+", required=True, metavar="TASK|FILE", help="names of tasks, or their YAML files")
    p.add_argument("--limit", type=whole, metavar="N", help="score the first N documents of each task (default: all)")
    p.add_argument("--few-shot", type=whole, metavar="N", help="show N solved documents first (default: the task's)")
    p.add_argument(
        "--batch-size", type=whole, default=16, metavar="N", help="texts per forward pass (default: %(default)s)"
    )
    p.add_argument("--no-cache", action="store_true", help="ask again what the same weights have answered before")
    p.add_argument("--json", action="store_true", help="print the results as JSON")
    add_out(p)
    add_trust(p)
    add_device(p)
    return p


def command(argv: list[str]) -> None:
    """Evaluate the run, print the results and keep them in its folder."""
    typed = parser().parse_args(argv)
    trust_code(typed.trust_code)
    check_at_least(1, limit=typed.limit, batch_size=typed.batch_size)
    check_at_least(0, few_shot=typed.few_shot)
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.data.published import is_published
    from lmplay.generate.harness import evaluate
    from lmplay.runs.evaluations import keep_evaluations, line_of
    from lmplay.runs.folder import find_run
    from lmplay.runs.published import load_published
    from lmplay.runs.trained import load_run

    device, published = choose_device(typed.device), is_published(typed.run)
    run = load_published(typed.run, device) if published else load_run(find_run(typed.run, typed.out), device)
    results = evaluate(
        run,
        typed.tasks,
        few_shot=typed.few_shot,
        limit=typed.limit,
        batch_size=typed.batch_size,
        use_cache=not typed.no_cache,
    )
    if not published:
        keep_evaluations(run.run, results)
    print(json.dumps(results, indent=1) if typed.json else "\n".join(map(line_of, results)))


if __name__ == "__main__":
    sys.exit(main())
