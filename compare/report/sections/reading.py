"""How to read a report."""

from compare.load import LIMIT, WAVERS
from compare.report.facts.overview import Overview
from compare.report.facts.stats import APART, FAR, SOLVED
from compare.report.sections.section import Section

READING = (
    "Score: mean over seeds ± half of the 95 % t interval. Where 0 or 100 % cuts the interval, its ends are shown "
    "instead. n is the number of seeds. The test split is scored once, after training. Fewer than 3 seeds allow no "
    "ranking.",
    "k of n solved: shown where some seeds solve the task and others are far off, since a mean and its interval then "
    f"describe no seed. A seed solves the task if it reaches {100 * SOLVED:g} % of the gain that the table's best run "
    "has over the best trivial baseline. Another seed is far off if it has less than "
    f"{100 * FAR:g} % of that gain and scores at least {100 * APART:g} points lower. Verdicts on such a variant use "
    "the exact sign test (McNemar) on the seeds that only one of the two variants solved.",
    "Against full: mean difference on the same seeds ± half of its 95 % interval, in percentage points. All seeds "
    "share one test set, so their spread does not show its sampling noise. The interval therefore adds the binomial "
    "noise of two scores on a test set of that size, as if the two models' mistakes were independent. That rather "
    "overstates the noise, since models find the same samples hard.",
    "Above or below full: the difference is beyond noise. All variants of a table are tested together "
    "(Benjamini-Hochberg at 5 %): on average at most one in twenty of the named differences is due to chance, and if "
    "no variant differed from full, one table in twenty would name one. So a variant can be within noise although its "
    "own interval excludes 0. The same test decides who leads. Controls are left out of a table's tests: each is "
    "tested alone.",
    "At equal terms: validation scores at the largest number of steps, time or FLOPs that every finished run of the "
    "table reached, interpolated between the two nearest validations of each learning curve. The learning rate was "
    "annealed over each run's own budget, so a score read midway is below the final score of a run of that length. "
    "Where training begins with shorter samples, the score may predate the full length.",
    "tokens/s: tokens of one step at full length, divided by the median time of a step.",
    "step, forward, forward + backward: median [quartiles] of timed repetitions after warm-up, averaged over seeds.",
    "Memory of training: all that training holds: weights, gradients, optimizer state and what a step adds at its "
    "peak. Peak memory of a step: what a step adds to weights and optimizer state, gradients included. Saved for "
    "backward: bytes that autograd keeps between the forward and the backward pass.",
    "State a layer: bytes, of one sample and in one layer, of the values that a query attends to (keys and values) or "
    "of the summary that replaces them. They bound what the query can recall (Zoology, arXiv:2312.04927).",
    "FLOPs: counted for one training step.",
    "Test length: a model trained at one length is tested at others, on at most half a million tokens at each. "
    "Costs are measured at the training length; every encoder is built for the longest test length.",
    f"Disturbed: a run that lost more than {100 * LIMIT:g} % of the CPU time it was ready to use, while it was "
    "measured or in training; or a run whose training steps took a time that differs by more than that from the "
    f"measured one (by more than {100 * WAVERS:g} % where the system counted hardly any lost time, since times vary "
    "on virtual machines). No verdict on time uses a disturbed run: not on speed, not on crossovers, and not on scores "
    "under a time budget. Older records do not say whether a run was disturbed. To replace a disturbed run, repeat it "
    "and report both folders together, the newer one last.",
    "none (control) mixes no tokens by attention. A variant that does not beat it gains nothing from attention here.",
)


def sections(overview: Overview) -> list[Section]:
    del overview
    return [Section("How to read this", "reading", sentences=READING)]
