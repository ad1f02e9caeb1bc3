"""Ends runs by SIGKILL, SIGTERM and SIGINT in all phases, continues them, and compares them with an uninterrupted run.

A chain is a run that is ended one to four times, each time continued in the same folder. The places are drawn by a
seed: before an event (a file that is opened, renamed, flushed or removed, a step of an optimizer, the beginning or end
of a phase), or at a moment within a phase. In the end, weights, banks, metrics, curves, predictions and classifiers
have to be those of the uninterrupted run to the bit, and nothing may be left over.

    PRIME_XMC_FAULTS_CHAINS=17-20 python tests/faults/fault_kills.py --keep some_folder   # some chains again
"""

import os
import random
import shlex
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import toys
from comparing import differences, leftovers
from findings import Row, main
from forks import PHASES, Ended, Kill, learn, prepare_process, run

KILLS = 120  # at least 100 of them hit: a place may lie in what a continued run has done already
SHORT_KILLS = 6
SEED = 0
_CHAINS = "PRIME_XMC_FAULTS_CHAINS"
_SIGNALS = (*[signal.SIGKILL] * 6, signal.SIGTERM, signal.SIGINT)
_STATUS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130,)}


def rows(short: bool, folder: Path) -> Iterator[Row]:
    """Inject the kills."""
    prepare_process()
    toys.make_encoder(folder / "encoder"), toys.make_dataset(folder / "data")
    settings = training(folder)
    reference = folder / "reference"
    whole = run("train", begin(settings, reference), reference)
    learn(whole)
    again = folder / "again"
    run("train", begin(settings, again), again)
    if whole.status != 0 or (unequal := differences(reference / "run", again / "run")):
        yield Row("two uninterrupted runs", lost=[whole.last_line if whole.status else "; ".join(unequal)])
        return
    shutil.rmtree(again)
    print(f"a run takes {whole.seconds:.1f} s; events: {whole.events}", flush=True)
    hits: Counter[str] = Counter()
    by_signal: Counter[str] = Counter()
    lost: list[str] = []
    begun = time.monotonic()
    wanted = SHORT_KILLS if short else KILLS
    first, last = map(int, os.environ.get(_CHAINS, f"0-{wanted}").split("-"))
    chains = first
    while chains <= last and (sum(hits.values()) < wanted or not (short or hits.keys() >= set(PHASES))):
        chain = draw_chain(random.Random(f"{SEED} {chains}"), whole, chains)
        place = folder / f"chain-{chains}"
        problem = play(chain, settings, place, reference, hits, by_signal)
        if problem:
            lost.append(f"{problem} [{_CHAINS}={chains}-{chains}; chain {chains}: {'; '.join(map(str, chain))}]")
        else:
            shutil.rmtree(place)
        print(f"chain {chains}, {time.monotonic() - begun:.0f} s: {problem or 'as uninterrupted'}", flush=True)
        chains += 1
    kills = sum(hits.values())
    missed = [phase for phase in PHASES if not hits[phase]]
    note = (
        f"{chains - first} runs; {', '.join(f'{count} {name}' for name, count in by_signal.most_common())}; "
        + ", ".join(f"{phase} {hits[phase]}" for phase in PHASES if hits[phase])
    )
    if not short and _CHAINS not in os.environ:
        lost += [f"no kill in the phase {phase}, so that nothing is known of it" for phase in missed]
    yield Row("runs ended in all phases and continued", kills, lost=lost, note=note)


def training(folder: Path) -> list[str]:
    """Return the settings of the toy training."""
    return [
        *toys.toy_settings(folder / "encoder", folder / "data"),
        *("dataset.batch_size=64", "dataset.max_epochs=3", "dataset.validate_every=2"),
        *("sampling.clusters.first_epoch=1", "sampling.clusters.every_n_epochs=1"),
        "classify_settings=[trainer.max_epochs=2,trainer.check_val_every_n_epoch=2]",
    ]


def begin(settings: list[str], place: Path) -> list[str]:
    """Return the command line that begins a run in a folder."""
    return [*settings, f"hydra.run.dir={place}/run", f"cache_dir={place}/cache"]


def go_on(settings: list[str], place: Path) -> list[str]:
    """Return the command line that continues a run, or begins it again where it has not come to its settings."""
    metadata = place / "run" / ".hydra"
    whole = (metadata / "config.yaml").is_file() and (metadata / "overrides.yaml").is_file()
    return [f"resume={place}/run"] if whole else begin(settings, place)


def draw_chain(random: random.Random, whole: Ended, number: int) -> list[Kill]:
    """Return kills at places of the uninterrupted run, in its order; each phase gets its turn."""
    length = random.choice((1, 2, 3, 4))
    phases = {PHASES[number % len(PHASES)], *random.sample(PHASES, length - 1)}
    order = list(dict.fromkeys(phase for phase, _ in whole.entries))
    chain = []
    for phase in sorted(phases, key=lambda each: order.index(each) if each in order else len(order)):
        signal_number = random.choice(_SIGNALS)
        moments = [at for name, at in whole.entries if name == phase]
        if moments and random.random() < 0.4:
            entry = random.randrange(len(moments))
            later = [at for _, at in whole.entries if at > moments[entry]]
            chain.append(
                Kill(phase, signal_number, None, entry, random.random() * (min(later, default=1.0) - moments[entry]))
            )
        else:
            chain.append(Kill(phase, signal_number, random.randrange(max(1, whole.events.get(phase, 1)))))
    return chain


def play(
    chain: list[Kill],
    settings: list[str],
    place: Path,
    reference: Path,
    hits: Counter[str],
    by_signal: Counter[str],
) -> str | None:
    """Play a chain and return what was lost, None where nothing was."""
    for kill in chain:
        ended = run("train", go_on(settings, place), place, kill=kill)
        if ended.status in _STATUS[kill.number]:
            hits[kill.phase] += 1
            by_signal[signal.Signals(kill.number).name] += 1
        elif ended.status != 0:
            return f"exit {ended.status} at {kill}: {ended.last_line}"
        if ended.status == 0:
            break
    ended = run("train", go_on(settings, place), place)
    if ended.status != 0:
        return f"continued, it ends with {ended.status}: {ended.last_line} ({shlex.join(go_on(settings, place))})"
    found = differences(reference / "run", place / "run")
    found += [f"{path.relative_to(place)} is left over" for path in leftovers(place)]
    return "; ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "") if found else None


if __name__ == "__main__":
    main(__doc__, rows)
