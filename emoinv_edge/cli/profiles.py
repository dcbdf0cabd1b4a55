"""``emoinv profiles``: look at, carry, renew and remove what is enrolled."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EmoinvError, EnrolmentError, StoreError
from .coverage import add_language, coverage_fields, coverage_lines
from .options import add_command, add_json, add_model, add_store, ask_passphrase, open_encoder, open_store, parse_name
from .terminal import EXIT_ACCEPT, EXIT_ERROR, console, print_error, print_json, shown

if TYPE_CHECKING:
    from ..coverage import Coverage
    from ..store import KeySource, ProfileInfo, ProfileStore

__all__ = ["add_parser"]

EXPORT_PASSPHRASE = "EMOINV_EXPORT_PASSPHRASE"
NEW_PASSPHRASE = "EMOINV_NEW_PASSPHRASE"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of ``emoinv profiles`` and its own subcommands."""
    parser = add_command(
        subparsers,
        "profiles",
        "List, show, remove, export, import, roll back, upgrade, purge or re-seal the enrolled speakers.",
        "emoinv profiles list",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def action(
        name: str, summary: str, example: str, run_action: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        added = add_command(actions, name, summary, f"emoinv profiles {example}")
        added.set_defaults(run=run_action)
        return added

    listing = action("list", "List the profiles; each one is opened and checked.", "list", run_list)
    show = action(
        "show", "Show a profile and what was done with it; never its audio or embeddings.", "show ana", run_show
    )
    show.add_argument("name")
    remove = action("remove", "Remove profiles and overwrite what they left in the file.", "remove ana", run_remove)
    remove.add_argument("names", nargs="*", metavar="name")
    remove.add_argument("--all", action="store_true", help="remove every profile, damaged ones too")
    export = action(
        "export",
        f"Write a profile to one sealed file; its passphrase is asked for, or taken from ${EXPORT_PASSPHRASE}.",
        "export ana -o ana.emoinv",
        run_export,
    )
    export.add_argument("name")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    export.add_argument("--without-audio", action="store_true", help="leave out the speech that was kept")
    export.add_argument("--force", action="store_true", help="overwrite a file that exists")
    import_ = action(
        "import",
        f"Keep the profile of an exported file; its passphrase is asked for, or taken from ${EXPORT_PASSPHRASE}.",
        "import ana.emoinv",
        run_import,
    )
    import_.add_argument("file", type=Path)
    import_.add_argument("--as", dest="new_name", type=parse_name, metavar="NAME", help="keep it under another name")
    import_.add_argument("--replace", action="store_true", help="replace a profile of the same name")
    import_.add_argument(
        "--upgrade", action="store_true", help="if another model made it, enrol it again from the speech in the file"
    )
    purge = action(
        "purge", "Remove the profiles that have expired, and overwrite what was removed.", "purge", run_purge
    )
    rollback = action("rollback", "Undo the last adaptation of a profile.", "rollback ana", run_rollback)
    rollback.add_argument("name")
    upgrade = action(
        "upgrade",
        "Enrol profiles of another model again on this one, from the speech kept by `enroll --keep-audio`.",
        "upgrade",
        run_upgrade,
    )
    upgrade.add_argument("names", nargs="*", metavar="name", help="which (default: all that another model made)")
    rotate = action(
        "rotate",
        "Seal the store anew with fresh secrets; a key file that lies beside the store is renewed too.",
        "rotate --new-passphrase",
        run_rotate,
    )
    new_key = rotate.add_mutually_exclusive_group()
    new_key.add_argument(
        "--new-key-file", type=Path, metavar="FILE", help="from now on this key file (made if missing)"
    )
    new_key.add_argument(
        "--new-passphrase", action="store_true", help=f"from now on a passphrase: asked for, or ${NEW_PASSPHRASE}"
    )
    new_key.add_argument("--new-plaintext", action="store_true", help="from now on unsealed: anyone can read it")
    for added in (listing, show, remove, export, import_, purge, rollback, upgrade, rotate):
        add_store(added)
        add_json(added)
    add_language(show)
    for added in (show, import_, upgrade):
        add_model(added)


def run_list(args: argparse.Namespace) -> int:
    """Print every profile on a line; 3 if one is damaged."""
    store = open_store(args)
    infos = store.list()
    status = EXIT_ERROR if any(info.problem.startswith("damaged") for info in infos) else EXIT_ACCEPT
    if args.json:
        print_json({"store": str(store.path), "profiles": [fields(info) for info in infos]})
        return status
    if not infos:
        console().print(f"No profiles in {store.path}; make one with `emoinv enroll`.", markup=False, soft_wrap=True)
        return status
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "recordings", "enrolled", "last used", "expires", "model", ""):
        table.add_column(title)
    for info in infos:
        row = (
            info.name,
            f"{info.num_exemplars}" + (" with speech" if info.num_clips else ""),
            f"{info.created:%Y-%m-%d}" if info.created else "",
            f"{info.last_used:%Y-%m-%d}" if info.last_used else "never",
            f"{info.expires:%Y-%m-%d}" if info.expires else "never",
            info.model_fingerprint[:12],
            info.problem.partition(":")[0],
        )
        table.add_row(*map(escaped, row))
    console().print(table)
    for info in infos:
        if info.problem.startswith("damaged"):
            print_error(info.problem.removeprefix("damaged: "))
    return status


def run_show(args: argparse.Namespace) -> int:
    """Print one profile and its audit trail."""
    store = open_store(args)
    info = store.info(args.name)
    if info.problem.startswith("damaged"):
        raise StoreError(info.problem.removeprefix("damaged: "))
    audit = store.audit(info.name)
    coverage = None if info.problem else profile_coverage(args, store, info)
    if args.json:
        events = [{"at": at.isoformat(), "event": event} for at, event in audit.events]
        covered = None if coverage is None else coverage_fields(coverage, args.lang)
        agreed = None if info.problem else profile_agreement(args, store, info)
        found = {"coverage": covered, "agreement": agreed, "events": events, "verified": audit.verified}
        print_json({**fields(info), **found})
        return EXIT_ACCEPT
    lines = [
        f"name        {info.name}",
        f"recordings  {info.num_exemplars}, {info.num_clips} with their speech",
        f"enrolled    {info.created:%Y-%m-%d %H:%M} UTC",
        f"heard in    {info.condition}",
        f"expires     {f'{info.expires:%Y-%m-%d %H:%M} UTC' if info.expires else 'never'}",
        f"consent     {info.consent or 'no note'}",
        f"model       {info.model_fingerprint}",
        f"last used   {f'{info.last_used:%Y-%m-%d %H:%M} UTC' if info.last_used else 'never'}",
        f"undoable    {info.adaptations} adaptations",
        *(f"  {at:%Y-%m-%d %H:%M} UTC  {event}" for at, event in audit.events),
        *(
            f"  {day}  verified: "
            + ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items())
            for day, counts in sorted(audit.verified.items())
        ),
    ]
    if coverage is not None:
        lines += coverage_lines(coverage, info.name, args.lang)
        lines.append(agreement_line(profile_agreement(args, store, info)))
    console().print("\n".join(map(shown, lines)), markup=False, soft_wrap=True)
    return EXIT_ACCEPT


def profile_coverage(args: argparse.Namespace, store: ProfileStore, info: ProfileInfo) -> Coverage | None:
    """What a profile covers; how many rejects that leaves only with the model that made it."""
    from ..coverage import coverage_of

    encoder = open_encoder(args)
    own = info.model_fingerprint == encoder.fingerprint
    exemplars = store.get(info.name, audio=False).exemplars
    return coverage_of([each.quality for each in exemplars], encoder.calibration if own else None)


def profile_agreement(args: argparse.Namespace, store: ProfileStore, info: ProfileInfo) -> float | None:
    """The least LLR of one of the profile's recordings against the others; None for one, or by another model."""
    from ..clips import agreement

    encoder = open_encoder(args)
    if encoder.calibration is None or encoder.fingerprint != info.model_fingerprint:
        return None
    return agreement(encoder.calibration, encoder.guards, store.get(info.name, audio=False).exemplars)


def agreement_line(agreed: float | None) -> str:
    """The message about a profile's agreement with itself."""
    if agreed is None:
        return "agreement   unknown: it needs two recordings, and their model (--model)"
    return f"agreement   LLR {agreed:.1f} or more for one speaker, of each recording against the others"


def run_remove(args: argparse.Namespace) -> int:
    """Remove the named profiles, or all."""
    if args.all == bool(args.names):
        raise StoreError("expected the names of the profiles to remove, or --all; `emoinv profiles list` shows them")
    store = open_store(args)
    if args.all:
        return report(args, "removed", store.remove_all())
    for name in args.names:
        store.info(name)  # before anything is removed
    for name in args.names:
        store.remove(name)
    return report(args, "removed", args.names)


def run_export(args: argparse.Namespace) -> int:
    """Write a portable file."""
    store = open_store(args)
    store.info(args.name)
    if args.output.exists() and not args.force:
        raise StoreError(f"{args.output} exists already; give another -o, or --force to overwrite it")
    passphrase = ask_passphrase(EXPORT_PASSPHRASE, "Passphrase for the exported file: ", twice=True)
    store.export_profile(args.name, args.output, passphrase, audio=not args.without_audio)
    return report(args, "exported", [args.name], file=str(args.output))


def run_import(args: argparse.Namespace) -> int:
    """Keep the profile of a portable file."""
    store, encoder = open_store(args), open_encoder(args)
    passphrase = ask_passphrase(EXPORT_PASSPHRASE, f"Passphrase of {args.file}: ")
    profile = store.import_profile(
        args.file,
        passphrase,
        model_fingerprint=encoder.fingerprint,
        name=args.new_name,
        replace=args.replace,
        encoder=encoder,
        upgrade=args.upgrade,
    )
    return report(args, "imported", [profile.name], file=str(args.file))


def run_purge(args: argparse.Namespace) -> int:
    """Remove what has expired."""
    return report(args, "purged", open_store(args).purge())


def run_rollback(args: argparse.Namespace) -> int:
    """Undo the last adaptation."""
    profile = open_store(args).rollback(args.name)
    return report(args, "rolled back", [profile.name], recordings=len(profile.exemplars))


def run_upgrade(args: argparse.Namespace) -> int:
    """Enrol again on this model; the profiles that cannot be are named, and the status is 3."""
    store, encoder = open_store(args), open_encoder(args)
    infos = [store.info(name) for name in args.names] or store.list()
    upgraded, refused = [], []
    for info in infos:
        if info.model_fingerprint == encoder.fingerprint:
            continue
        try:
            store.upgrade(info.name, encoder)
            upgraded.append(info.name)
        except EmoinvError as error:
            refused.append({"name": info.name, "message": str(error)})
    if refused and not upgraded and not args.json:
        raise EnrolmentError("; ".join(each["message"] for each in refused))
    report(args, "upgraded", upgraded, refused=refused)
    for each in refused:
        print_error(each["message"])
    return EXIT_ERROR if refused else EXIT_ACCEPT


def run_rotate(args: argparse.Namespace) -> int:
    """Seal the store anew."""
    from ..store import PLAINTEXT, KeyFile

    store = open_store(args)
    key: KeySource | None = None
    if args.new_plaintext:
        key = PLAINTEXT
    elif args.new_passphrase:
        key = ask_passphrase(NEW_PASSPHRASE, "New passphrase of the store: ", twice=True)
    elif args.new_key_file is not None:
        key = KeyFile(args.new_key_file)
    else:
        key = store.own_key_file()
    store.rotate(key)
    return report(args, "sealed anew", store.names())


def fields(info: ProfileInfo) -> dict[str, Any]:
    """The JSON object of a profile: times as text, nothing of the speech."""
    return {
        key: value.isoformat() if hasattr(value, "isoformat") else value
        for key, value in dataclasses.asdict(info).items()
    }


def escaped(text: str) -> str:
    """Text that a rich table prints as it is."""
    from rich.markup import escape

    return escape(shown(text))


def report(args: argparse.Namespace, done: str, names: list[str], **more: Any) -> int:
    """Print what was done with which profiles, for people or as JSON; 0."""
    if args.json:
        print_json({"action": done, "names": names, **more})
    else:
        what = ", ".join(names) if names else "nothing"
        where = f" ({more['file']})" if "file" in more else ""
        console().print(shown(f"{done}: {what}{where}"), markup=False, soft_wrap=True)
    return EXIT_ACCEPT
