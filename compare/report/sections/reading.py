"""How to read a report."""

from compare.load import LIMIT, WAVERS
from compare.report.facts.overview import Overview
from compare.report.facts.stats import APART, FAR, SOLVED
from compare.report.sections.section import Section

READING = (
    "Score: mean over seeds ± half of the 95 % t interval, or its ends where it is cut at 0 or 100 %; n is the number "
    "of seeds. The test split is scored once, after training. Fewer than 3 seeds allow no ranking.",
    "k of n solved: where seeds fall apart, their mean and its interval say nothing of a seed. A seed solved the task "
    f"if it has {100 * SOLVED:g} % of the gain of the table's best run over the best trivial baseline. Seeds fall "
    f"apart where one did and another has less than {100 * FAR:g} % of that gain and {100 * APART:g} points less. "
    "What is said of such a variant rests on the exact sign test of seeds that just one side solved (McNemar).",
    "Against full: the mean difference on the same seeds ± half of its 95 % interval, in percentage points. All seeds "
    "share one test set, so its luck is not in their spread: the interval adds the binomial noise that two scores have "
    "on a test set of that size, as if their mistakes were independent, which is rather too much, as models find the "
    "same samples hard.",
    "Above or below full is said where that is beyond noise, judged for all variants of a table together "
    "(Benjamini-Hochberg at 5 %): of those named, one in twenty is so by chance on average, at the most; if none "
    "differed from full, one table in twenty would name any. So of many variants one may be within noise although its "
    "own interval leaves out 0. Who leads is decided in the same way. Controls do not count in a table's tests: each "
    "is judged by itself.",
    "At equal terms: validation scores at the largest number of steps, time or FLOPs that every finished run of the "
    "table reached, read from the learning curves between the two nearest validations. The learning rate was annealed "
    "for each run's own budget, so a score read in mid-course is below what a run of that length would end with; "
    "where shorter samples come first, it may be from before the run saw its full length.",
    "tokens/s: tokens of one step at full length over its median time.",
    "step, forward, forward + backward: median [quartiles] of timed repetitions after warm-up, averaged over seeds.",
    "Memory of training: weights, gradients, optimizer state and what a step adds at its peak: all that is held. "
    "Peak memory of a step: what a step adds to weights and optimizer state, gradients included. Saved for backward: "
    "bytes that autograd keeps between the forward and the backward pass.",
    "State a layer: what stands between the positions of one sample and a query, the keys and values that it attends "
    "to or what takes their place; it bounds what the query can recall (Zoology, arXiv:2312.04927).",
    "FLOPs: counted for one training step.",
    "Test length: the model that was trained at one length, tested at others, at most half a million tokens at each. "
    "Costs are measured at the training length; every encoder is built for the longest test length.",
    f"Disturbed: a run that lost more than {100 * LIMIT:g} % of the CPU time that it was ready to use, while it was "
    "measured or trained, or whose steps in training took a time that differs by as much from what was measured; by "
    f"{100 * WAVERS:g} % where the system counted hardly any lost time, as times waver on virtual machines. "
    "No verdict by time rests on it: neither on speed nor on crossovers, nor on scores where the budget is in seconds. "
    "Where the records do not tell, as older ones do not, that is unknown. A run that was repeated counts instead of "
    "the disturbed one where both folders are reported together, the newer one last.",
    "none (control) mixes no tokens by attention at all. What does not beat it gains nothing from attention here.",
)


def sections(overview: Overview) -> list[Section]:
    del overview
    return [Section("How to read this", "reading", sentences=READING)]
