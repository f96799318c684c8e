"""The command `memlib`."""

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Command line: `memlib score MODEL ...`; a refused input is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="memlib", description="Which training data has a diffusion model memorised?")
    commands = parser.add_subparsers(dest="command", required=True)
    _score_options(commands.add_parser("score", help="score pictures or prompts by detectors, a table a detector"))
    commands.add_parser("detectors", help="list the detectors with what they need and their usual settings")
    _bench_options(commands.add_parser("bench", help="judge all detectors, and yours, on the models of the study"))
    _audit_options(commands.add_parser("audit", help="what a model has memorised, as a report with error rates"))
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of picture processors that nothing here uses
    options.line = shlex.join(["memlib", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        {"score": _score, "detectors": _detectors, "bench": _bench, "audit": _audit}[options.command](options)
        sys.stdout.flush()
    except ValueError as error:
        sys.exit(f"memlib {options.command}: {error}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for every command
            raise
        from memlib.cluster import GOES_ON, LESS

        sys.exit(f"memlib {options.command}: memory ran out; {LESS}; {GOES_ON}")
    except BrokenPipeError:  # the reader has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.exit(f"memlib {options.command}: {error.strerror or error} ({error.filename})")


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a diffusers model, or its name on the hub")
    parser.add_argument("--images", type=Path, help="folder of images or of an image set; captions become prompts")
    parser.add_argument("--splits", nargs="*", default=[], help="splits of the image set (all, if not given)")
    parser.add_argument("--prompts", type=Path, help="prompt file: one a line, or .jsonl with a caption a line")
    parser.add_argument("--samples", type=Path, help="samples of every item (safetensors)")
    parser.add_argument("--training", type=Path, help="folder of the pictures that the model was trained on")
    parser.add_argument("--training-splits", nargs="*", default=[], help="its splits, if that is an image set")
    parser.add_argument("--reference", help="model that was trained without the items")
    parser.add_argument("--detectors", nargs="+", required=True, help="names, see `memlib detectors`")
    parser.add_argument(
        "--setting",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="setting of all named detectors in place of the usual ones, such as sigma=0.2 draws=[1,4]",
    )
    parser.add_argument("--output", type=Path, default=Path("scores"), help="folder for the tables")
    parser.add_argument("--seed", type=int, default=0, help="decides, with an item's id, its random numbers")
    parser.add_argument(
        "--batch", type=int, help="items between two writes (default: --rows pictures, 4 x --rows prompts)"
    )
    parser.add_argument("--rows", type=int, default=64, help="items in one call of the network")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--replace", action="store_true", help="replace a table of another model, setting or items")
    _ray_option(parser)


def _ray_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ray",
        metavar="auto|HOST:PORT",
        help="score by the workers of a Ray cluster: of this machine, started if there is none, or at an address",
    )


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", help="of models (all, if not given)")
    parser.add_argument(
        "--contrast", help="membership, memorisation, copies, control, or one by its name (the headline of each family)"
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="most network evaluations an item")
    parser.add_argument(
        "--with", dest="path", type=Path, metavar="FILE", help="file of Python that defines Detectors of yours"
    )
    parser.add_argument(
        "--seconds", type=float, default=90, help="that scoring yours may take; fewer items or models, if it must"
    )
    parser.add_argument("--output", type=Path, default=Path("results/bench.csv"), help="table of the rows")
    parser.add_argument("--seed", type=int, default=25, help="of the halves that settings are chosen and reported on")


def _bench(options: argparse.Namespace) -> None:
    from memlib import bench
    from memlib.evaluation.intervals import flat

    known, found, told = bench.entries(), None, []
    if options.path is not None:
        from memlib.candidate import read_candidates, score_candidates

        detectors = read_candidates(options.path)
        asked = {name: entry for name, entry in known.items() if options.family in (None, bench.family_of(entry))}
        scores, told = score_candidates(detectors, asked, options.seconds)
        found = bench.beside(scores, known)
        names = ", ".join(detector.name for detector in detectors)
        told = [f"\n{names}: scored in at most {options.seconds:.0f} s; the others are read from tables.", *told]
    if options.budget < 0:
        raise ValueError(f"--budget is {options.budget:g}; it must be at least 0")
    chosen = bench.selected(bench.cases(options.seed, found=found), options.family, options.contrast)
    rows = bench.table(chosen, options.budget, bench.seconds_of(known))
    for block in [*bench.printed(rows), *told]:
        print(block)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    flat(rows).to_csv(options.output, index=False)
    print(f"\n{len(rows)} rows in {options.output}")


def _score(options: argparse.Namespace) -> None:
    from memlib.detectors import find

    detectors = [find(name) for name in dict.fromkeys(options.detectors)]
    setting = [_setting(options.setting)] if options.setting else []
    for name in ("batch", "rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")

    import torch

    from memlib.datasets.items import load_items
    from memlib.fields.digest import weights_digest
    from memlib.fields.load import load_field
    from memlib.processes import processes
    from memlib.score import Table, write_tables

    workers = None
    if options.ray is not None:
        from memlib.cluster import Source, connect, located, score_batches

        needed = [path for path in (options.model, options.reference, options.images) if path is not None]
        connect(options.ray, needed)
    dtype = getattr(torch, options.dtype)
    field = load_field(options.model, dtype, options.rows)
    items, notes = load_items(
        images=options.images,
        splits=options.splits,
        prompts=options.prompts,
        samples=options.samples,
        training=options.training,
        training_splits=options.training_splits,
        size=field.picture_shape,
        seed=options.seed,
        reference=load_field(options.reference, dtype, options.rows) if options.reference else None,
    )
    tables = [Table(items, each, setting, options.output / f"{each.name}.parquet", notes) for each in detectors]
    digest = weights_digest(field)
    if options.ray is not None:
        reference = None if options.reference is None else located(options.reference)
        source = Source(located(options.model), options.dtype, options.rows, digest, reference)
        workers = partial(score_batches, source)
    write_tables(field, tables, digest, options.batch, options.replace, workers=workers)
    first = processes().is_main_process
    for table in tables if first else ():
        print(table.output)
    for name, note in notes.items() if first else ():
        print(f"not scored: {name}: {note}", file=sys.stderr)


def _setting(pairs: list[str]) -> dict[str, Any]:
    from memlib.tables import parse_setting

    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"--setting {pair!r} is not KEY=VALUE, such as sigma=0.2")
    return parse_setting(" ".join(pairs))


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder of a diffusers model, or its name on the hub")
    parser.add_argument("--images", type=Path, help="pictures to be audited: a folder of images or of an image set")
    parser.add_argument("--splits", nargs="*", default=[], help="splits of the image set (all, if not given)")
    parser.add_argument("--prompts", type=Path, help="prompts to be audited: one a line, or .jsonl with captions")
    parser.add_argument("--null-images", type=Path, help="pictures of the same source, known to be outside of training")
    parser.add_argument("--null-splits", nargs="*", default=[], help="their splits, if that is an image set")
    parser.add_argument("--null-prompts", type=Path, help="prompts of the same source, known to be outside of training")
    parser.add_argument("--reference", help="model that was trained without the items")
    parser.add_argument("--training", type=Path, help="training pictures, to look copies up")
    parser.add_argument("--training-splits", nargs="*", default=[], help="their splits, if that is an image set")
    parser.add_argument("--fdr", type=float, default=0.1, help="rate of false discoveries (default 0.1)")
    parser.add_argument(
        "--detectors", nargs="+", default=[], help="names, see `memlib detectors` (default: recommended)"
    )
    parser.add_argument("--setting", nargs="*", default=[], metavar="KEY=VALUE", help="setting of all named detectors")
    parser.add_argument("--budget", type=int, help="network evaluations an item, for the recommended detector")
    parser.add_argument("--output", type=Path, default=Path("audit"), help="folder for the report and the tables")
    parser.add_argument("--show", type=int, default=50, help="suspects that are shown (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="decides, with an item's id, its random numbers")
    parser.add_argument("--rows", type=int, default=64, help="items in one call of the network")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--device", help="such as cpu, cuda, cuda:1 or mps (default: the one that is there)")
    parser.add_argument("--replace", action="store_true", help="replace another audit at the output")
    _ray_option(parser)


def _audit(options: argparse.Namespace) -> None:
    setting = _setting(options.setting) if options.setting else None

    from memlib.audit import Options, audit
    from memlib.processes import processes

    given = vars(options) | {"setting": setting, "command": options.line}
    report = audit(Options(**{name: value for name, value in given.items() if name != "line"}))
    if processes().is_main_process:
        print(report)


def _detectors(options: argparse.Namespace) -> None:
    from memlib.detectors import ALL, find
    from memlib.tables import setting_name

    for name in ALL:
        detector = find(name)
        usual = "; ".join(setting_name(setting) for setting in detector.settings)
        print(f"{name}: needs {', '.join(sorted(detector.needs))}; {usual or 'no settings'}")


if __name__ == "__main__":
    main()
